"""Schedules, the rerun sensor and the report of flips, on real instances."""

import json
import logging
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import tiny_automation
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.sensor import execute_sensor_iteration
from forge_instance import failure_text, launch, made, verdict

from forge_assets import schedules
from forge_assets.gate_flips import FILE, flip_sensor, new_flips
from forge_assets.reruns import Wanted, changed_phases
from forge_assets.schedules import due_times
from forge_resources import forge_home
from forge_resources.gatekeeping import override_gate
from training_core.registry import CONTROLS

BAD = {"value": 2.0}
GOOD = {"value": 0.5}
CHECKS = tiny_automation.gate_checks()
ALL_CHECKS = [key for check in tiny_automation.CHECKS for key in check.check_keys]
PARENTS = {asset.key: sorted(asset.asset_deps[asset.key]) for asset in tiny_automation.PHASES}
CHAIN = ("trunk", "left", "left_child")


def make(instance: dg.DagsterInstance, *assets: str, **config: dict[str, Any]) -> dg.ExecuteInProcessResult:
    return tiny_automation.materialize(instance, *assets, config=config)


def wanted(instance: dg.DagsterInstance) -> Wanted:
    return changed_phases(instance, PARENTS, CHECKS)


def asked(instance: dg.DagsterInstance) -> list[str]:
    return [key.to_user_string() for request in wanted(instance).requests for key in request.asset_selection or ()]


@pytest.fixture
def served(instance: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    """The forge with sensors, served by a process of its own."""
    folder = str(Path(tiny_automation.__file__).parent)
    target = ModuleTarget("tiny_automation", attribute="defs", working_directory=folder, location_name="tiny")
    with WorkspaceProcessContext(instance, target) as context:
        yield context
    context._grpc_server_registry.wait_for_processes()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def written(text: str) -> Path:
    path = forge_home() / schedules.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


TABLE = """
timezone: Europe/Berlin
nightly: {cron: "0 3 * * *", assets: [trunk, left]}
weekly:  {cron: "30 6 * * 1", assets: [tokens]}
often:   {cron: "*/5 * * * *", assets: [left]}
"""


def test_a_schedule_is_due_once_at_its_last_time(instance: dg.DagsterInstance) -> None:
    """Cron expressions in Berlin, an hour before UTC in winter and two in summer; missed times count once."""
    table = schedules.read_table(written(TABLE), ["trunk", "left", "tokens"])

    def due(since: str, now: str) -> dict[str, str]:
        return {name: f"{time:%d %H:%M}" for name, time in due_times(table, at(since), at(now)).items()}

    assert due("2026-01-07 01:59:00", "2026-01-07 01:59:59") == {}
    assert due("2026-01-07 01:59:59", "2026-01-07 02:00:00") == {"nightly": "07 02:00", "often": "07 02:00"}
    assert due("2026-01-07 02:00:00", "2026-01-07 02:00:30") == {}
    assert due("2026-07-08 00:59:59", "2026-07-08 01:00:00") == {"nightly": "08 01:00", "often": "08 01:00"}
    assert due("2025-01-01 00:00:00", "2026-01-07 12:01:00") == {
        "nightly": "07 02:00",
        "weekly": "05 05:30",
        "often": "07 12:00",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nightly: 3", r"line 1: nightly must be fields with values, got 3; the form is 'nightly: \{cron"),
        ("a: {cron: hourly, assets: [trunk]}", r"line 1: a\.cron must be a cron expression of five .* got 'hourly'"),
        ('a: {cron: "0 0 30 2 *", assets: [trunk]}', r"a\.cron must be a cron expression .* got '0 0 30 2 \*'"),
        ('a: {cron: "* * * * * *", assets: [trunk]}', r"a\.cron must be a cron expression of five fields"),
        ('\na: {cron: "0 3 * * *", assets: [trunc]}', r"line 2: a\.assets names 'trunc', .* did you mean trunk\?"),
        ('a: {cron: "0 3 * * *", assets: []}', r"a\.assets: must be at least 1 values, got \[\]"),
        ('a: {cron: "0 3 * * *", assets: trunk}', r"a\.assets: must be a list, got 'trunk'"),
        ('a: {cron: "0 3 * * *", asset: [trunk]}', r"a\.asset: there is no such value, did you mean assets\?"),
        ('a: {cron: "0 3 * * *"}', r"a\.assets: must be given"),
        ("timezone: Mars", r"line 1: timezone must be a time zone such as .* got 'Mars'"),
        ("timezone: 3", r"timezone must be a time zone such as .* got 3"),
        ("a: {cron: x, cron: y}", r"line 1: 'cron' stands a second time \(first in line 1\)"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(instance: dg.DagsterInstance, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        schedules.read_table(written(text), ["trunk"])
    assert str(refused.value).startswith(str(forge_home() / schedules.FILE))
    assert "\n" not in str(refused.value)


def test_schedules_follow_the_table_without_a_restart(instance: dg.DagsterInstance) -> None:
    """One sensor definition throughout: the table appears, breaks and is repaired; no time is lost; gates apply."""
    sensor = schedules.schedule_sensor(tiny_automation.ASSETS, checks=CHECKS)

    def tick(cursor: str | None) -> Any:
        with dg.build_sensor_context(instance, cursor=cursor) as context:
            return sensor.evaluate_tick(context)

    begun = tick(None)
    assert begun.skip_message == f"there is no schedule in {forge_home() / schedules.FILE}"
    earlier = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    written("a: {cron: daily}")
    broken = tick(earlier)
    assert broken.run_requests == []
    assert broken.skip_message.startswith(f"{forge_home() / schedules.FILE}, line 1: a.assets: must be given")
    assert broken.cursor == earlier
    written(
        'a: {cron: "0 3 * * *", assets: [left_child]}\n'
        'b: {cron: "0 4 * * *", assets: [trunk, left]}\n'
        'c: {cron: "0 5 * * *", assets: [forge_report]}\n'
    )
    asked_for = tick(broken.cursor)
    requested = {
        request.tags["forge/schedule"]: [key.to_user_string() for key in request.asset_selection]
        for request in asked_for.run_requests
    }
    assert requested == {"b": ["trunk", "left"], "c": ["forge_report"]}  # three days were missed: one run each
    assert tick(asked_for.cursor).skip_message == "no schedule is due"
    make(instance, *CHAIN[:2])
    (open_gate, *_) = tick(earlier).run_requests
    assert open_gate.tags["forge/schedule"] == "a"
    assert open_gate.run_config == {}
    make(instance, "trunk", "left", left=BAD)
    written('a: {cron: "0 3 * * *", assets: [left_child]}')
    closed = tick(earlier)
    assert closed.run_requests == []
    assert closed.skip_message.startswith("a is skipped, quality gate closed: left:gate: FAILED")


def test_everything_is_off_until_turned_on() -> None:
    from forge_assets.definitions import defs

    for name in ("rerun_changed_phases", "gate_flips", "schedules"):
        assert defs.resolve_sensor_def(name).default_status == dg.DefaultSensorStatus.STOPPED
    graph = defs.resolve_asset_graph()
    above = {k.to_user_string() for k in graph.get(dg.AssetKey("forge_report")).parent_keys}
    assert above == {"compressed_model", *CONTROLS}, "the report comes after the controls, if they are made"


def test_changed_input_asks_for_the_next_level_only(instance: dg.DagsterInstance) -> None:
    assert make(instance, *CHAIN, left={"step_s": 0.001}).success
    assert wanted(instance) == Wanted()
    make(instance, "trunk", trunk={"step_s": 0.001})  # made again, the same weights
    assert wanted(instance) == Wanted()
    make(instance, "trunk", trunk={"value": 0.25, "step_s": 0.001})
    (request,) = wanted(instance).requests
    assert [key.to_user_string() for key in request.asset_selection or ()] == ["left"]
    assert request.run_config == {}  # an asset keeps the values that it was made with
    assert request.tags["forge/changed_inputs"] == "trunk"
    make(instance, "left", left={"value": 0.75, "step_s": 0.001})
    assert asked(instance) == ["left_child"]
    make(instance, "trunk", trunk={"value": 0.3, "step_s": 0.001})
    assert asked(instance) == ["left"]
    assert wanted(instance).waiting == ["left_child waits for left, which is about to change"]


def test_closed_gate_holds_the_rerun_and_an_override_lets_it_go(instance: dg.DagsterInstance) -> None:
    make(instance, *CHAIN)
    make(instance, "trunk", trunk=BAD)
    found = wanted(instance)
    assert found.requests == []
    assert found.waiting[0].startswith("left waits, quality gate closed: trunk:gate: FAILED, small FAILED")
    key = dg.AssetKey("trunk")
    override_gate(instance, key, CHECKS[key], reason="known and accepted by me", who="ada")
    assert asked(instance) == ["left"]
    make(instance, "trunk", trunk={"value": 2.5})
    assert asked(instance) == []


def test_failing_phase_is_asked_for_once(instance: dg.DagsterInstance) -> None:
    make(instance, "trunk", "left")
    make(instance, "trunk", trunk={"value": 0.25})
    (first,) = wanted(instance).requests
    assert not make(instance, "left", left={"value": -1.0}).success
    (second,) = wanted(instance).requests
    assert second.run_key == first.run_key  # which Dagster runs once
    make(instance, "trunk", trunk={"value": 0.3})
    (other,) = wanted(instance).requests
    assert other.run_key != first.run_key


def test_stale_data_another_profile_and_a_run_in_progress_wait(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(instance, "trunk", "left")
    with monkeypatch.context() as patch:
        patch.setenv("FORGE_PROFILE", "mini")
        make(instance, "trunk")
    assert wanted(instance) == Wanted()
    make(instance, "trunk", trunk={"value": 0.25})
    with monkeypatch.context() as patch:
        patch.setenv("FORGE_PROFILE", "mini")
        assert wanted(instance).waiting == ["left was made at profile nano, and here it would be mini"]
        assert asked(instance) == []
    for making in ("trunk", "left"):
        with instance_run(instance, making):
            assert asked(instance) == []
            assert re.match(f"{making} is being made by run [0-9a-f]{{8}}$", wanted(instance).waiting[0])
    assert asked(instance) == ["left"]
    make(instance, "tokens", tokens={"count": 9})
    found = wanted(instance)
    assert found.requests == []
    assert found.waiting[0] == "evaluation_suite was made from an earlier tokens: make it again"
    assert "trunk waits for evaluation_suite, which is about to change" in found.waiting


class instance_run:
    """A run that makes `asset` while the block lasts."""

    def __init__(self, instance: dg.DagsterInstance, asset: str) -> None:
        self._instance, self._asset = instance, asset

    def __enter__(self) -> None:
        chosen = frozenset({dg.AssetKey(self._asset)})
        job = tiny_automation.everything().get_subset(asset_selection=chosen)
        self._run = self._instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, asset_selection=chosen)

    def __exit__(self, *_: object) -> None:
        self._instance.delete_run(self._run.run_id)


@pytest.mark.slow
def test_daemon_queues_the_run_of_one_phase_with_its_checks_once(
    instance: dg.DagsterInstance, served: WorkspaceProcessContext
) -> None:
    make(instance, "trunk", "left")
    make(instance, "trunk", trunk={"value": 0.25})
    location = served.create_request_context().get_code_location("tiny")
    sensor = location.get_repository("__repository__").get_sensor("rerun_changed_phases")
    instance.start_sensor(sensor)

    def tick() -> Any:
        list(execute_sensor_iteration(served, logging.getLogger("test"), None, None))
        return instance.get_ticks(sensor.get_remote_origin_id(), sensor.selector_id, limit=1)[0]

    first = tick()
    assert first.status.value == "SUCCESS", first.error
    (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
    assert run.asset_selection == {dg.AssetKey("left")}
    assert run.asset_check_selection in (None, {dg.AssetCheckKey(dg.AssetKey("left"), "gate")})
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id or "")
    assert set(plan.step_keys_to_execute) == {"left", "left_gate"}
    instance.report_run_failed(run)
    state = instance.get_instigator_state(sensor.get_remote_origin_id(), sensor.selector_id)
    data = state.instigator_data.with_sensor_start_timestamp(1.0)._replace(
        last_tick_start_timestamp=1.0, last_tick_timestamp=1.0
    )
    instance.update_instigator_state(state.with_data(data))
    tick()
    assert instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])) == []

    make(instance, "trunk", trunk=BAD)  # a report may be made below a closed gate, a phase may not
    assert launch(served, "__ASSET_JOB", "left", "forge_report")["status"] == "FAILURE"
    make(instance, *CHAIN, left_child=BAD)
    assert launch(served, "__ASSET_JOB", "forge_report")["status"] == "QUEUED"


def test_a_value_out_of_bounds_is_one_line_of_the_failure(instance: dg.DagsterInstance) -> None:
    """Dagster's configuration has no bounds: they are checked in the asset, which is not retried."""
    failed = make(instance, "trunk", trunk={"steps": 0, "value": -1.0})
    assert (
        failure_text(failed, "trunk")
        == "refused: trunk.value: must be more than 0, got -1.0; trunk.steps: must be at least 1, got 0"
    )


def test_one_failing_sibling_of_three_blocks_only_its_own_child(instance: dg.DagsterInstance) -> None:
    siblings = ("left", "middle", "right")
    result = make(instance, "trunk", *siblings, *(f"{name}_child" for name in siblings), middle=BAD)
    assert not result.success
    assert not verdict(result, "middle").passed
    assert made(result) == ["left", "left_child", "middle", "right", "right_child", "trunk"]
    assert made(make(instance, "middle_child")) == []


def test_reexecution_from_failure_judges_again_and_trains_nothing_twice(instance: dg.DagsterInstance) -> None:
    job = dg.reconstructable(tiny_automation.everything)
    selection = [dg.AssetKey(name) for name in ("trunk", "left")]
    config = {"ops": {"trunk": {"config": BAD}}}
    with dg.execute_job(job, instance, run_config=config, asset_selection=selection) as failed:
        assert not failed.success
        assert [e.asset_key for e in failed.filter_events(lambda e: e.is_step_materialization)] == [selection[0]]
    options = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
    with dg.execute_job(
        job, instance, run_config=config, asset_selection=selection, reexecution_options=options
    ) as again:
        assert not again.success
        assert {e.step_key for e in again.all_events if e.is_step_start} == {"trunk_gate"}
        assert not list(again.filter_events(lambda e: e.is_step_materialization))


def flips(instance: dg.DagsterInstance, seen: dict[str, float] | None) -> tuple[list[str], dict[str, float]]:
    found, newest = new_flips(instance, ALL_CHECKS, seen)
    return [f"{now.asset}.{now.gate}" for _, now in found], newest


def test_flips_are_reported_once_and_not_those_of_before(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(instance, "trunk", trunk=BAD)
    make(instance, "trunk")
    make(instance, "trunk", trunk=BAD)
    found, seen = flips(instance, None)
    assert found == []
    assert flips(instance, seen) == ([], seen)
    make(instance, "trunk", trunk={"value": 3.0})  # failed before, fails again
    found, seen = flips(instance, seen)
    assert found == []
    monkeypatch.setenv("FORGE_PROFILE", "mini")
    make(instance, "trunk")
    monkeypatch.setenv("FORGE_PROFILE", "nano")
    make(instance, "trunk", trunk={"value": 3.5})  # passed before, at another profile
    found, seen = flips(instance, seen)
    assert found == []
    passed = make(instance, "trunk", trunk={"value": 0.5})
    failed = make(instance, "trunk", trunk=BAD)
    ((before, now),), _ = new_flips(instance, ALL_CHECKS, seen)
    assert (now.asset, now.gate, now.value, now.threshold) == ("trunk", "small", 4.0, 1.0)
    assert (before.value, before.run_id, now.run_id) == (0.25, passed.run_id, failed.run_id)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that keeps what is posted to it."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/secret", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_flip_sensor_logs_writes_and_posts(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, received = webhook
    sensor = flip_sensor(ALL_CHECKS)

    def tick(cursor: str | None) -> tuple[str, str]:
        with dg.build_sensor_context(instance, cursor=cursor) as context:
            answer = sensor.evaluate_tick(context)
        assert answer.skip_message is not None
        assert answer.cursor is not None
        return answer.skip_message, answer.cursor

    make(instance, "trunk")
    said, cursor = tick(None)
    assert said == "no gate flipped from pass to fail"
    failed = make(instance, "trunk", trunk=BAD)
    monkeypatch.setenv("FORGE_ALERT_WEBHOOK", address)
    said, cursor = tick(cursor)
    assert said.startswith(
        "gate trunk.small flipped from pass to FAIL: mean_square = 4 (before: 0.25), required <= 1; "
        f"run {failed.run_id}, passed last in run "
    )
    (line,) = (forge_home() / FILE).read_text().splitlines()
    assert [json.loads(line)] == received
    assert (received[0]["value"], received[0]["threshold"], received[0]["text"]) == (4.0, 1.0, said)
    assert tick(cursor)[0] == "no gate flipped from pass to fail"
    for unreachable in ("http://127.0.0.1:9/secret", "ftp://127.0.0.1/secret"):
        make(instance, "trunk", trunk=GOOD)
        make(instance, "trunk", trunk=BAD)
        monkeypatch.setenv("FORGE_ALERT_WEBHOOK", unreachable)
        said, cursor = tick(cursor)
        assert said.startswith("gate trunk.small flipped")
        assert "secret" not in said
    assert len((forge_home() / FILE).read_text().splitlines()) == 3
    assert len(received) == 1


def test_damaged_model_flips_its_gate(instance: dg.DagsterInstance) -> None:
    result = make(instance, "trunk")
    _, seen = flips(instance, None)
    path = result.get_asset_materialization_events()[0].materialization.metadata["path"].value
    (Path(str(path)) / "tokenizer.json").write_text("{}")
    dg.materialize(
        [*tiny_automation.ASSETS, *tiny_automation.CHECKS],
        selection=dg.AssetSelection.checks_for_assets(dg.AssetKey("trunk")),
        instance=instance,
        resources=dict(tiny_automation.defs.resources or {}),
        raise_on_error=False,
    )
    assert flips(instance, seen)[0] == ["trunk.gate"]
