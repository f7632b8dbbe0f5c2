"""An override opens the failed gate of one version: everywhere, on the record, until the next materialization."""

import dagster as dg
import pytest
import tiny_forge
from dagster._core.workspace.context import WorkspaceProcessContext
from forge_instance import Make, failure_text, launch, made, materialize, verdict
from test_gates_block import BAD, CHECKS, GOOD, closed, refusal, tick

from forge_assets.checks import asset_checks
from forge_assets.freshness import plan, resolve_config
from forge_assets.graph_view import Forge
from forge_resources.gatekeeping import judge_latest, override_gate
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.overrides import Override, overrides_of
from forge_resources.tracking import MlflowTracking
from training_core.gates import Gate

TRUNK = dg.AssetKey("trunk")
REASON = "the probe itself was wrong: see the log of May"


def override(instance: dg.DagsterInstance, asset: str = "trunk", reason: str = REASON) -> Override:
    key = dg.AssetKey(asset)
    return override_gate(instance, key, CHECKS.get(key, []), reason=reason, who="ada")


def test_override_opens_the_gate_for_one_version_and_is_kept_for_ever(make: Make, instance: dg.DagsterInstance) -> None:
    failed = make("trunk", config={"trunk": BAD})
    assert made(make("left")) == []
    record = override(instance)
    digest = str(failed.get_asset_materialization_events()[0].materialization.metadata["digest"].value)
    assert (record.asset, record.digest, record.failed, record.who, record.reason) == (
        "trunk",
        digest,
        ("small",),
        "ada",
        REASON,
    )
    assert record.verdict == "trunk:gate: FAILED, small FAILED: mean_square = 4, required <= 1"
    assert closed(instance, "trunk") == []

    child = make("left")
    assert made(child) == ["left"]
    metadata = child.get_asset_materialization_events()[0].materialization.metadata
    assert metadata["overridden/trunk"].value == record.describe()
    assert record.describe().startswith("overridden by ada on 20")
    assert record.describe().endswith(f": {REASON}")
    logged = [e.user_message for e in instance.all_logs(child.run_id) if e.level == 30]
    assert f"the gate of trunk FAILED and was {record.describe()}" in logged

    make("trunk", config={"trunk": BAD})  # the same weights, judged anew
    assert closed(instance, "trunk") == ["trunk:gate: FAILED, small FAILED: mean_square = 4, required <= 1"]
    assert failure_text(make("left"), "left").startswith("refused, quality gate closed: trunk:gate: FAILED")
    make("trunk", config={"trunk": GOOD})
    assert "overridden/trunk" not in make("left").get_asset_materialization_events()[0].materialization.metadata
    assert overrides_of(instance, TRUNK) == [record]


def test_override_leaves_the_verdict_red(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk", config={"trunk": BAD})
    override(instance)
    history = instance.event_log_storage.get_asset_check_execution_history(CHECKS[TRUNK][0], limit=9)
    assert [row.status.value for row in history] == ["FAILED"]
    again = make("trunk", only_checks=True)
    assert not verdict(again, "trunk").passed
    assert closed(instance, "trunk") == []  # the same version with the same failure


def test_override_does_not_cover_a_gate_that_fails_later(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk", config={"trunk": BAD})
    override(instance)
    stricter = (*tiny_forge.GATES, Gate("trunk", "tiny", "params", "at_most", 1, "parameters"))
    dg.materialize(
        [*tiny_forge.ASSETS, *asset_checks(stricter, assets=["trunk"])],
        selection=dg.AssetSelection.checks_for_assets(TRUNK),
        instance=instance,
        resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False), "launcher": Launcher()},
        raise_on_error=False,
    )
    assert "tiny FAILED: params = 6, required <= 1" in closed(instance, "trunk")[0]
    assert override(instance).failed == ("small", "tiny")
    assert closed(instance, "trunk") == []


@pytest.mark.parametrize("reason", ["", "   ", "because", "\n\t \x00\x1b", "so it is   !"])
def test_override_needs_a_reason(make: Make, instance: dg.DagsterInstance, reason: str) -> None:
    make("trunk", config={"trunk": BAD})
    with pytest.raises(ValueError, match="must have at least 12 characters, got '.*': say why"):
        override(instance, reason=reason)
    assert overrides_of(instance, TRUNK) == []


def test_only_a_failed_gate_can_be_overridden(make: Make, instance: dg.DagsterInstance, store: ModelStore) -> None:
    def refused(words: str, asset: str = "trunk") -> None:
        with pytest.raises(ValueError, match=words):
            override(instance, asset)

    refused("trunk was never materialized: there is no failed gate to override")
    refused("evaluation_suite has no quality gate in the table", "evaluation_suite")
    make("trunk", config={"trunk": BAD}, checks=False)
    refused("trunk:gate gave no verdict on the current version: only a failed gate can be overridden")
    make("trunk", config={"trunk": GOOD})
    refused("the gate of trunk is open: there is nothing to override")
    make("trunk", config={"trunk": BAD})
    override(instance)
    refused(f"is open already: it was overridden by ada on .*: {REASON}")
    make("trunk", config={"trunk": BAD}, checks=False)
    (folder,) = [f for f in store.versions("trunk") if '"value": 2.0' in (f / "lineage.json").read_text()]
    (folder / "tokenizer.json").write_text("{}")
    make("trunk", only_checks=True)
    refused("trunk could not be judged .*: only a failed gate can be overridden; make it again")
    assert len(overrides_of(instance, TRUNK)) == 1


def test_override_is_no_new_version(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk", config={"trunk": BAD})
    before = judge_latest(instance, TRUNK, CHECKS[TRUNK])
    record = override(instance)
    after = judge_latest(instance, TRUNK, CHECKS[TRUNK])
    assert before.record is not None
    assert after.record is not None
    assert (after.record.storage_id, after.override) == (before.record.storage_id, record)
    tags = make("left").get_asset_materialization_events()[0].materialization.tags
    assert tags is not None
    assert tags["dagster/input_data_version/trunk"] == record.digest


def test_forge_run_builds_upon_an_overridden_model(make: Make, instance: dg.DagsterInstance, store: ModelStore) -> None:
    forge = Forge(tiny_forge.defs, instance, store, tiny_forge.GATES)
    make("trunk", config={"trunk": BAD})
    configs = resolve_config(forge, {"trunk": BAD})
    assert {step.asset: step.action for step in plan(forge, configs)}["left"] == "closed"
    record = override(instance)
    steps = {step.asset: step for step in plan(forge, configs)}
    assert (steps["trunk"].action, steps["trunk"].reason) == ("keep", f"fresh, gate {record.describe()}")
    assert (steps["left"].action, steps["left_child"].action) == ("make", "make")
    (alone,) = plan(forge, configs, select=["left"])
    assert alone.action == "make"


@pytest.mark.slow
def test_override_opens_launch_and_schedule(
    make: Make, instance: dg.DagsterInstance, workspace: WorkspaceProcessContext
) -> None:
    make("trunk", "left", config={"left": BAD})
    assert launch(workspace, "__ASSET_JOB", "left_child")["status"] == "FAILURE"
    assert tick(workspace, instance, "left_child").skip_message.startswith(
        "nightly is skipped, quality gate closed: left:gate"
    )
    override(instance, "left")
    assert launch(workspace, "__ASSET_JOB", "left_child")["status"] == "QUEUED"
    asked = tick(workspace, instance, "left_child")
    assert (asked.skip_message, len(asked.run_requests)) == (None, 1)
    assert made(materialize(instance, "left_child")) == ["left_child"]
    make("left", config={"left": BAD})
    run = launch(workspace, "__ASSET_JOB", "left_child")
    assert run["status"] == "FAILURE"
    assert refusal(instance, run["runId"]).startswith("refused, quality gate closed: left:gate: FAILED, small FAILED")
    assert tick(workspace, instance, "left_child").run_requests == []
