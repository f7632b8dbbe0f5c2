"""`forge run`: what is fresh is kept, what is stale is made, and a killed run goes on from its checkpoint."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import tiny_forge
import torch
from forge_instance import Make
from rich.console import Console

from forge_assets.freshness import PlannedStep, plan, resolve_config
from forge_assets.graph_view import Forge, UserError
from forge_assets.run_graph import RunOutcome, execute, release_dead_runs, unfinished_run
from forge_resources.gatekeeping import latest_materialization
from forge_resources.model_store import ModelStore
from training_core.gates import Gate
from training_core.store.bundle import open_bundle

DRIVER = Path(__file__).with_name("drive_tiny_run.py")
ALL_MODELS = ["left", "left_child", "right", "right_child", "trunk"]
Overrides = dict[str, dict[str, Any]]


@pytest.fixture
def forge(instance: dg.DagsterInstance, store: ModelStore) -> Forge:
    return Forge(tiny_forge.defs, instance, store, tiny_forge.GATES)


def planned(
    forge: Forge, overrides: Overrides | None = None, *, defaults: bool = False, **options: Any
) -> dict[str, PlannedStep]:
    configs = resolve_config(forge, overrides or {}, select=options.get("select", ()), defaults=defaults)
    return {step.asset: step for step in plan(forge, configs, **options)}


def run(forge: Forge, overrides: Overrides | None = None, **options: Any) -> tuple[RunOutcome, str]:
    steps = list(planned(forge, overrides, **options).values())
    text = io.StringIO()
    defaults = bool(options.get("defaults"))
    configs = resolve_config(forge, overrides or {}, select=options.get("select", ()), defaults=defaults)
    outcome = execute(forge, steps, configs, Console(file=text, width=200), defaults=defaults)
    return outcome, text.getvalue()


def actions(steps: dict[str, PlannedStep]) -> dict[str, str]:
    return {asset: step.action for asset, step in steps.items()}


def test_everything_is_made_once_then_only_what_changed(forge: Forge) -> None:
    fresh_data = {"tokens": "keep", "evaluation_suite": "keep"}
    assert actions(planned(forge)) == fresh_data | dict.fromkeys(ALL_MODELS, "make")
    outcome, text = run(forge)
    assert sorted(outcome.made) == ALL_MODELS
    assert outcome.problems == []
    assert forge.instance.get_run_by_id(outcome.run_id).status == dg.DagsterRunStatus.SUCCESS
    assert "✓ trunk" in text
    assert "right: claims FAILED  smaller FAILED: mean_square = 0.5625, required <= 0.25" in text
    assert actions(planned(forge)) == dict.fromkeys([*ALL_MODELS, *fresh_data], "keep")

    changed = planned(forge, {"right": {"value": 0.5}})
    assert {asset for asset, step in changed.items() if step.action == "make"} == {"right", "right_child"}
    assert changed["right"].reason == "its code, configuration or inputs changed"
    assert actions(planned(forge, select=["left"], force=["left"])) == {"left": "make"}
    outcome, _ = run(forge, {"right": {"value": 0.5}})
    assert outcome.made == ["right", "right_child"]


def test_model_made_again_with_the_same_content_leaves_its_children_fresh(forge: Forge) -> None:
    run(forge)
    outcome, _ = run(forge, {"trunk": {"step_s": 0.001}}, select=["trunk"])  # slower, the same weights
    assert outcome.made == ["trunk"]
    steps = planned(forge, {"trunk": {"step_s": 0.001}})
    assert set(actions(steps).values()) == {"keep"}


def test_closed_gate_stops_what_is_below_and_running_again_changes_nothing(forge: Forge) -> None:
    too_big: Overrides = {"left": {"value": 2.0}}
    outcome, text = run(forge, too_big)
    assert sorted(outcome.made) == ["left", "right", "right_child", "trunk"]
    assert outcome.problems == ["the gate of left is closed: small FAILED: mean_square = 4, required <= 1"]
    assert "not made: left_child" in text
    steps = planned(forge, too_big)
    assert steps["left"].action == "closed"
    assert steps["left"].reason == "small FAILED: mean_square = 4, required <= 1"
    assert steps["left_child"].action == "closed"
    assert "make" not in actions(steps).values()
    (alone,) = planned(forge, too_big, select=["left_child"]).values()
    assert (alone.action, alone.inputs) == ("closed", None)
    assert "left:gate: FAILED" in alone.reason


def test_missing_parent_is_named(forge: Forge) -> None:
    (step,) = planned(forge, select=["left"]).values()
    assert step.action == "closed"
    assert "trunk was never materialized" in step.reason
    assert "forge run --select trunk" in step.reason


def test_fresh_asset_without_a_verdict_is_only_judged(forge: Forge, make: Make) -> None:
    make("trunk", checks=False)
    assert planned(forge)["trunk"].action == "judge"
    before = latest_materialization(forge.instance, dg.AssetKey("trunk"))
    outcome, text = run(forge)
    assert sorted(outcome.made) == ["left", "left_child", "right", "right_child"]
    assert "trunk: gate passed" in text
    after = latest_materialization(forge.instance, dg.AssetKey("trunk"))
    assert before is not None
    assert after is not None
    assert after.storage_id == before.storage_id


def test_changed_threshold_asks_for_a_new_verdict(forge: Forge) -> None:
    run(forge)
    rows = [Gate("trunk", "small", "mean_square", "at_most", 0.2, "mean of squares")]
    stricter = [row for row in tiny_forge.GATES if (row.asset, row.name) != ("trunk", "small")] + rows
    changed = Forge(forge.definitions, forge.instance, forge.store, stricter)
    assert planned(changed)["trunk"].action == "judge"
    assert planned(forge)["trunk"].action == "keep"


def test_damaged_version_is_made_again(forge: Forge) -> None:
    run(forge)
    (folder,) = forge.store.versions("left")
    (folder / "tokenizer.json").write_text("{}")
    steps = planned(forge)
    assert "missing or damaged" in steps["left"].reason
    assert {asset for asset, step in steps.items() if step.action == "make"} == {"left", "left_child"}
    outcome, _ = run(forge)
    assert outcome.made == ["left", "left_child"]
    assert set(actions(planned(forge)).values()) == {"keep"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trunc": {"steps": 1}}, "'trunc', and there is no such asset: did you mean trunk"),
        ({"trunk": {"stepz": 1}}, "stepz"),
        ({"trunk": {"steps": 0}}, "trunk.steps: must be at least 1, got 0"),
        ({"trunk": 3}, "must be fields with values"),
    ],
)
def test_wrong_configuration_is_refused_before_anything_runs(forge: Forge, overrides: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_config(forge, overrides)


def test_unknown_asset_is_refused(forge: Forge) -> None:
    with pytest.raises(UserError, match="there is no asset branch"):
        planned(forge, select=["branch"])


def test_checkpoint_of_other_inputs_is_not_continued(forge: Forge) -> None:
    folder = forge.store.checkpoint("trunk", "a-run", "inputs one")
    (folder / "state.safetensors").write_bytes(b"begun from inputs one")
    assert forge.store.unfinished("trunk", "inputs one") == ["a-run"]
    assert forge.store.unfinished("trunk", "inputs two") == []
    assert (forge.store.checkpoint("trunk", "a-run", "inputs one") / "state.safetensors").exists()
    assert not (forge.store.checkpoint("trunk", "a-run", "inputs two") / "state.safetensors").exists()
    assert forge.store.unfinished("trunk", "inputs one") == []


def start(overrides: Overrides) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(DRIVER), json.dumps(overrides)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def wait_for_steps(store: ModelStore, process: subprocess.Popen[bytes], count: int) -> None:
    """Wait until the checkpoint of `trunk` was written `count` times."""
    end, seen = time.monotonic() + 60, set[int]()
    while len(seen) < count:
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < end, "waited too long"
        states = store.path.glob(".checkpoints/*-trunk/state.safetensors")
        seen.update(state.stat().st_mtime_ns for state in states)
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on_from_the_checkpoint(forge: Forge, store: ModelStore) -> None:
    overrides: Overrides = {"trunk": {"steps": 40, "step_s": 0.05}}
    killed = start(overrides)
    wait_for_steps(store, killed, 5)
    with pytest.raises(UserError, match=f"process {killed.pid} is still going"):
        release_dead_runs(forge.instance)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    (dead,) = forge.instance.get_runs(dg.RunsFilter(tags={"forge/pid": str(killed.pid)}))
    assert dead.status == dg.DagsterRunStatus.STARTED

    interrupted = start(overrides)
    wait_for_steps(store, interrupted, 5)
    interrupted.send_signal(signal.SIGINT)
    out, _ = interrupted.communicate(timeout=60)
    assert json.loads(out)["interrupted"]
    assert forge.instance.get_run_by_id(dead.run_id).status == dg.DagsterRunStatus.FAILURE
    second = forge.instance.get_run_by_id(json.loads(out)["run_id"])
    assert (second.root_run_id, second.parent_run_id) == (dead.run_id, dead.run_id)
    assert second.status == dg.DagsterRunStatus.CANCELED

    last = unfinished_run(forge, list(planned(forge, overrides).values()))
    assert last is not None
    assert last.run_id == second.run_id
    assert unfinished_run(forge, list(planned(forge, {"trunk": {"steps": 41}}).values())) is None
    outcome, text = run(forge, overrides)
    assert sorted(outcome.made) == ALL_MODELS
    assert f"Going on from the checkpoint of run {second.run_id[:8]}" in text
    (folder,) = store.versions("trunk")
    bundle = open_bundle(folder)
    assert 9 <= bundle.lineage().metrics["steps_resumed"] < 40
    expected = torch.zeros(2, 3)
    for _ in range(40):
        expected = expected + 0.5 / 40
    assert torch.equal(bundle.tensors()["weight"], expected)
    assert list((store.path / ".checkpoints").iterdir()) == []
