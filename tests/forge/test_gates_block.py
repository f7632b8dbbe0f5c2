"""A closed quality gate blocks: in the same run, in a later run, at submission, at a schedule's tick."""

import io
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
import tiny_forge
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from forge_instance import Make, failure_text, launch, made, verdict
from rich.console import Console

from forge_assets import schedules
from forge_assets.checks import asset_checks
from forge_assets.factory import phase_asset
from forge_assets.freshness import plan, resolve_config
from forge_assets.gates import gate_checks
from forge_assets.graph_view import Forge
from forge_assets.run_graph import execute
from forge_resources import forge_home
from forge_resources.gatekeeping import (
    MEASURED_ON,
    closed_gates,
    judge_latest,
    latest_materialization,
    override_gate,
)
from forge_resources.model_store import ModelStore, recorded_text
from training_core.gates import Gate
from training_core.store.bundle import open_bundle

DATA = ("tokens", "evaluation_suite")
BAD = {"value": 2.0}  # mean square 4, above the gate's 1
GOOD = {"value": 0.5}
CHECKS = tiny_forge.gate_checks()


def closed(instance: dg.DagsterInstance, *assets: str) -> list[str]:
    return closed_gates(instance, [dg.AssetKey(asset) for asset in assets], CHECKS)


def test_passing_gates_let_everything_through(make: Make, instance: dg.DagsterInstance) -> None:
    result = make(*DATA, *tiny_forge.MODELS)
    assert result.success
    assert made(result) == sorted([*DATA, *tiny_forge.MODELS])
    evaluation = verdict(result, "trunk")
    assert evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert evaluation.metadata["mean_square"].value == 0.25
    assert evaluation.metadata["threshold/small"].value == 1.0
    assert [row.data["passed"] for row in evaluation.metadata["verdicts"].records] == [True, True]
    assert closed(instance, *tiny_forge.MODELS) == []


def test_failing_gate_blocks_in_the_same_run(make: Make) -> None:
    result = make("trunk", "left", "left_child", config={"trunk": BAD})
    assert not result.success
    assert made(result) == sorted(["trunk"])
    assert not verdict(result, "trunk").passed
    assert verdict(result, "trunk").metadata["mean_square"].value == 4.0


def test_failing_gate_blocks_a_child_launched_alone_later(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk", config={"trunk": BAD})
    later = make("left")
    assert not later.success
    assert made(later) == []
    text = failure_text(later, "left")
    assert text.startswith("refused, quality gate closed: trunk:gate: FAILED, small FAILED")
    assert "mean_square = 4, required <= 1" in text
    assert not [e for e in later.all_events if e.event_type_value == "STEP_RESTARTED"]  # refusals are not retried


def test_child_of_a_never_made_parent_is_refused(make: Make) -> None:
    assert failure_text(make("left"), "left").endswith("trunk was never materialized")


def test_unticked_check_leaves_the_gate_closed(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk", checks=False)
    assert closed(instance, "trunk") == ["trunk:gate: the current version has no completed verdict; run the check"]
    assert made(make("left")) == []


def test_stale_verdict_closes_until_the_new_version_is_judged(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk")
    assert closed(instance, "trunk") == []
    make("trunk", config={"trunk": {"value": 0.6}}, checks=False)
    assert "no completed verdict" in closed(instance, "trunk")[0]
    assert made(make("left")) == []
    rejudged = make("trunk", only_checks=True)
    assert made(rejudged) == []
    assert verdict(rejudged, "trunk").passed
    assert closed(instance, "trunk") == []
    assert made(make("left")) == ["left"]


def test_old_failure_does_not_close_the_repaired_version(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk", config={"trunk": BAD})
    assert closed(instance, "trunk") != []
    make("trunk", config={"trunk": GOOD})
    assert closed(instance, "trunk") == []


def test_planned_row_of_a_dead_run_does_not_close(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk", "left")
    key = dg.AssetCheckKey(dg.AssetKey("left"), "gate")
    dead = make("left", config={"left": {"value": -1.0}})  # fails before its check runs
    assert not dead.success
    newest = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)[0]
    assert newest.status == AssetCheckExecutionRecordStatus.PLANNED
    assert newest.run_id == dead.run_id
    assert closed(instance, "left") == []
    assert made(make("left_child")) == ["left_child"]


def test_verdict_targets_the_materialization_it_judged(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk")
    judged = judge_latest(instance, dg.AssetKey("trunk"), CHECKS[dg.AssetKey("trunk")])
    assert judged.record is not None
    assert (
        judged.record.storage_id == instance.fetch_materializations(dg.AssetKey("trunk"), limit=1).records[0].storage_id
    )
    rows = instance.event_log_storage.get_asset_check_execution_history(CHECKS[dg.AssetKey("trunk")][0], limit=5)
    assert [row.evaluation.target_materialization_data.storage_id for row in rows] == [judged.record.storage_id]


def test_failing_sibling_does_not_block_the_others_child(make: Make) -> None:
    result = make(*tiny_forge.MODELS, config={"left": BAD})
    assert not result.success
    assert made(result) == sorted(["trunk", "left", "right", "right_child"])


def test_parent_without_a_row_in_the_table_is_closed(make: Make, instance: dg.DagsterInstance) -> None:
    make("trunk")
    assert closed_gates(instance, [dg.AssetKey("trunk")], {}) == ["trunk has no quality gate in the table"]


def test_failing_claim_is_reported_and_blocks_nothing(make: Make, instance: dg.DagsterInstance) -> None:
    result = make("trunk", "right", "right_child")  # right's preset is 0.75: mean square 0.5625 > 0.25
    assert result.success
    claim = verdict(result, "right", "claims")
    assert not claim.passed
    assert claim.severity == dg.AssetCheckSeverity.WARN
    assert claim.metadata["mean_square"].value == 0.5625
    assert closed(instance, "right") == []


@pytest.mark.parametrize("name", ["model.safetensors", "lineage.json"])
def test_changed_bundle_closes_the_gate(make: Make, store: ModelStore, instance: dg.DagsterInstance, name: str) -> None:
    make("trunk")
    file = store.versions("trunk")[0] / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    child = make("left")  # the verdict stands, the bytes behind it do not
    assert made(child) == []
    assert "changed or damaged" in failure_text(child, "left")
    rejudged = make("trunk", only_checks=True)
    assert "changed or damaged" in verdict(rejudged, "trunk").description
    assert "changed or damaged" in closed(instance, "trunk")[0]
    again = make("trunk", "left")
    assert made(again) == ["left", "trunk"]


def test_missing_bundle_closes_the_gate(make: Make, store: ModelStore, instance: dg.DagsterInstance) -> None:
    make("trunk")
    shutil.rmtree(store.versions("trunk")[0])
    assert not make("trunk", only_checks=True).success
    assert "materialize it again" in closed(instance, "trunk")[0]


def test_child_reads_the_version_that_was_judged(make: Make, store: ModelStore) -> None:
    make("trunk")
    judged = store.versions("trunk")[0]
    with store.stage("trunk") as staged:  # a newer version, which no materialization names
        shutil.copytree(judged, staged)
        (staged / "tokenizer.json").write_text('{"tokens": 9}')
        newer = open_bundle(staged).digest()
        store.commit("trunk", staged, newer)
    assert {folder.name for folder in store.versions("trunk")} == {judged.name, newer[:16]}
    assert make("left").success
    lineage = open_bundle(store.versions("left")[0]).lineage()
    assert lineage.parents == {"trunk": open_bundle(judged).digest()}
    assert lineage.metrics["parents_sum"] == 6 * 0.5


def refusal(instance: dg.DagsterInstance, run_id: str) -> str:
    events = [record.event_log_entry for record in instance.get_records_for_run(run_id).records]
    messages = [e.dagster_event.message for e in events if e.dagster_event and e.dagster_event.is_run_failure]
    assert len(messages) == 1
    return messages[0]


def test_ui_launch_and_schedule_tick(
    make: Make, instance: dg.DagsterInstance, workspace: WorkspaceProcessContext
) -> None:
    make("trunk", "left", config={"left": BAD})
    for job, assets in (("__ASSET_JOB", ("left_child",)), ("only_left_child", ())):
        run = launch(workspace, job, *assets)
        assert run["status"] == "FAILURE"
        reason = refusal(instance, run["runId"])
        assert reason.startswith("refused, quality gate closed: left:gate: FAILED, small FAILED")
    both = launch(workspace, "__ASSET_JOB", "left", "left_child")  # makes its own parent: the run itself blocks
    assert both["status"] == "QUEUED"
    assert launch(workspace, "__ASSET_JOB", "right")["status"] == "QUEUED"

    asked = tick(workspace, instance, "left_child")
    assert asked.skip_message.startswith("nightly is skipped, quality gate closed: left:gate: FAILED")
    assert asked.run_requests == []
    make("left", config={"left": GOOD})
    asked = tick(workspace, instance, "left_child")
    assert asked.skip_message is None
    assert len(asked.run_requests) == 1
    assert launch(workspace, "__ASSET_JOB", "left_child")["status"] == "QUEUED"


def tick(workspace: WorkspaceProcessContext, instance: dg.DagsterInstance, asset: str) -> Any:
    """Evaluate the sensor of schedules in the code location's process, as the daemon does, with `asset` being due."""
    path = forge_home() / schedules.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'nightly: {{cron: "0 3 * * *", assets: [{asset}]}}\n')
    location = workspace.create_request_context().get_code_location("tiny")
    repository = location.get_repository("__repository__")
    earlier = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    return location.get_sensor_execution_data(instance, repository.handle, "schedules", None, None, earlier, None, None)


def test_gate_that_blocks_one_child_lets_the_other_through(instance: dg.DagsterInstance, store: ModelStore) -> None:
    light = Gate("trunk", "light", "mean_square", "at_most", 0.1, "mean of squares", blocks=("left",))
    table = (*tiny_forge.GATES, light)
    models = [
        phase_asset(tiny_forge.PHASES[name], preset=tiny_forge.no_preset, checks=gate_checks(table))
        for name in ("trunk", "left", "right")
    ]
    definitions = dg.Definitions(
        [tiny_forge.tokens, tiny_forge.evaluation_suite, *models],
        asset_checks=asset_checks(table, ["trunk", "left", "right"]),
        resources=tiny_forge.defs.resources,
        executor=dg.in_process_executor,
    )
    forge = Forge(definitions, instance, store, table)
    configs = resolve_config(forge, {})
    outcome = execute(forge, plan(forge, configs), configs, Console(file=io.StringIO()))
    assert sorted(outcome.made) == ["right", "trunk"]
    reason = "trunk:gate: FAILED for left, light FAILED: mean_square = 0.25, required <= 0.1"
    assert f"left: refused, quality gate closed: {reason}" in outcome.problems
    trunk, checks = [dg.AssetKey("trunk")], gate_checks(table)
    assert closed_gates(instance, trunk, checks, "left") == [reason]
    assert closed_gates(instance, trunk, checks, "right") == []
    assert closed_gates(instance, trunk, checks) == [reason]  # not knowing whom: closed
    again = {step.asset: step for step in plan(forge, configs)}
    assert (again["trunk"].action, again["trunk"].blocks) == ("keep", ("left",))
    assert (again["left"].action, again["right"].action) == ("closed", "keep")
    (alone,) = plan(forge, configs, select=["left"])
    assert alone.reason.startswith(f"refused: {reason}")
    elsewhere = Forge(definitions, instance, store, (*tiny_forge.GATES, replace(light, blocks=("right",))))
    assert plan(elsewhere, configs, select=["trunk"])[0].reason == "the table of gate changed"
    override_gate(instance, trunk[0], checks[trunk[0]], reason="known and accepted by me", who="ada")
    assert closed_gates(instance, trunk, checks, "left") == []


def test_verdict_on_other_data_opens_no_gate(make: Make, instance: dg.DagsterInstance) -> None:
    judged = verdict(make("trunk"), "trunk")
    suite = latest_materialization(instance, dg.AssetKey("evaluation_suite"))
    assert suite is not None
    assert judged.metadata[MEASURED_ON].value == {"evaluation_suite": recorded_text("suite", suite, "digest")}
    make("tokens", config={"tokens": {"count": 9}})  # the training text alone judges nothing
    assert closed(instance, "trunk") == []
    make("evaluation_suite")
    assert closed(instance, "trunk") == [
        "trunk:gate: the verdict is on an earlier evaluation_suite: make trunk again, which measures it "
        "(forge run --select trunk)"
    ]
    assert failure_text(make("left"), "left").startswith("refused, quality gate closed: trunk:gate: the verdict is on")
    make("trunk", only_checks=True)  # judging the old measurements again does not help
    assert "an earlier evaluation_suite" in closed(instance, "trunk")[0]
    make("trunk")
    assert closed(instance, "trunk") == []
