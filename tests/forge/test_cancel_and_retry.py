"""Crashes are tried again from the checkpoint; what cannot succeed is not; a cancelled run really ends."""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable

import dagster as dg
import pytest
import torch
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import (
    consume_new_runs_for_automatic_reexecution,
)
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from forge_instance import Make, failure_text, launch, made

from forge_resources.model_store import ModelStore
from training_core.bundle import open_bundle


def retries(result: dg.ExecuteInProcessResult, step: str) -> int:
    return sum(e.event_type_value == "STEP_RESTARTED" and e.step_key == step for e in result.all_events)


def test_crash_at_a_step_is_retried_from_the_checkpoint(make: Make, store: ModelStore) -> None:
    straight = make("trunk", config={"trunk": {"steps": 5}})
    assert straight.success
    expected = open_bundle(store.versions("trunk")[0]).tensors()["weight"]
    crashed = make("trunk", config={"trunk": {"steps": 5, "crash_at": 3}})
    assert crashed.success
    assert retries(crashed, "trunk") == 1
    newest = open_bundle(store.versions("trunk")[-1])
    assert newest.lineage().metrics["steps_resumed"] == 3.0
    assert torch.equal(newest.tensors()["weight"], expected)
    assert list((store.path / ".checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [({"value": -1.0}, "greater than 0"), ({"widths": [-1, 2]}, "RuntimeError")],
)
def test_wrong_configuration_is_not_retried_a_crash_is_once(
    make: Make, config: dict[str, object], message: str
) -> None:
    result = make("trunk", config={"trunk": config})
    assert not result.success
    assert made(result) == []
    if message == "RuntimeError":
        assert retries(result, "trunk") == 1
    else:
        assert retries(result, "trunk") == 0
        assert message in failure_text(result, "trunk")


def test_failed_rerun_leaves_the_earlier_version(make: Make, store: ModelStore, instance: dg.DagsterInstance) -> None:
    make("trunk")
    before = store.versions("trunk")
    assert not make("trunk", config={"trunk": {"widths": [-1, 2]}}).success
    assert store.versions("trunk") == before
    assert made(make("left")) == ["left"]


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def start(workspace: WorkspaceProcessContext, instance: dg.DagsterInstance, store: ModelStore, steps: int) -> str:
    """Launch a run of `trunk` in a process of its own and wait until it trains; the run's id."""
    config = {"trunk": {"steps": steps, "step_s": 0.05}}
    tags = {"dagster/max_retries": "1"}
    run_id = launch(workspace, "__ASSET_JOB", "trunk", config=config, tags=tags)["runId"]
    instance.launch_run(run_id, workspace.create_request_context())
    wait_for(lambda: list(store.path.glob(".checkpoints/*/state.safetensors")))
    return run_id


def finish(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    wait_for(lambda: instance.get_run_by_id(run_id).is_finished)
    return instance.get_run_by_id(run_id).status


def test_cancelled_run_ends_and_a_killed_one_resumes(
    instance: dg.DagsterInstance, store: ModelStore, workspace: WorkspaceProcessContext
) -> None:
    run_id = start(workspace, instance, store, steps=600)  # takes 30 s, and a retry would take them again
    cancelled = time.monotonic()
    assert instance.run_launcher.terminate(run_id)
    assert finish(instance, run_id) == dg.DagsterRunStatus.CANCELED
    assert time.monotonic() - cancelled < 20
    assert store.versions("trunk") == []
    assert list((store.path / ".staging").glob("*")) == []
    shutil.rmtree(store.path / ".checkpoints")

    run_id = start(workspace, instance, store, steps=40)
    events = [record.event_log_entry.dagster_event for record in instance.get_records_for_run(run_id).records]
    os.kill(next(e.pid for e in events if e is not None and e.is_step_start), signal.SIGKILL)
    wait_for(lambda: _monitored(instance, workspace, run_id))  # the daemon finds the run dead
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    record = instance.get_run_record_by_id(run_id)
    list(consume_new_runs_for_automatic_reexecution(workspace, [record], logging.getLogger("test")))
    (retry,) = [run for run in instance.get_runs() if run.parent_run_id == run_id]
    assert retry.root_run_id == run_id
    instance.launch_run(retry.run_id, workspace.create_request_context())
    assert finish(instance, retry.run_id) == dg.DagsterRunStatus.SUCCESS
    (folder,) = store.versions("trunk")
    bundle = open_bundle(folder)
    assert 0 < bundle.lineage().metrics["steps_resumed"] < 40
    expected = torch.zeros(2, 3)
    for _ in range(40):
        expected = expected + 0.5 / 40
    assert torch.equal(bundle.tensors()["weight"], expected)
    assert list((store.path / ".checkpoints").iterdir()) == []


def _monitored(instance: dg.DagsterInstance, workspace: WorkspaceProcessContext, run_id: str) -> bool:
    list(execute_run_monitoring_iteration(workspace, logging.getLogger("test"), None))
    return instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE
