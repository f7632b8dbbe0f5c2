"""Crashes are tried again from the checkpoint; what cannot succeed is not. Kills and cancellation: `test_kills`."""

import dagster as dg
import pytest
import torch
from forge_instance import Make, failure_text, made

from forge_resources.model_store import ModelStore
from training_core.store.bundle import open_bundle


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
    [({"value": -1.0}, "trunk.value: must be more than 0, got -1.0"), ({"widths": [-1, 2]}, "RuntimeError")],
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
