"""`forge run`: make stale assets, judge unjudged ones, and resume where a killed run stopped.

The run is an ordinary Dagster run executed in this process: it appears in the UI with its events, and the same gates
apply to it.
"""

import os
import socket
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

import dagster as dg
import psutil
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.errors import DagsterAssetCheckFailedError
from dagster._core.execution.api import create_execution_plan, execute_run_iterator
from dagster._core.snap import snapshot_from_execution_plan
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from forge_assets import kept_values
from forge_assets.freshness import PlannedStep, run_values
from forge_assets.graph_view import Forge, UserError
from forge_assets.launchpad import selected_profile
from forge_resources.run_process import died, forget
from training_core.terminal import PROGRESS, own_stream

CANCELLED = "the run was cancelled"  # the message with which the asset factory reports an interrupt
_ACTIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_BLOCKED = f"{DagsterAssetCheckFailedError.__module__}.{DagsterAssetCheckFailedError.__name__}"
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(slots=True)
class RunOutcome:
    """The outcome of a run. `problems` are the reasons why an asset was not made or did not pass its gate."""

    run_id: str
    made: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False


@contextmanager
def terminal() -> Iterator[TextIO]:
    """Yield the real terminal while a run executes; the standard streams are redirected to the null device.

    Dagster keeps what steps print in its compute logs. `FORGE_PROGRESS` holds the file descriptor of the terminal, to
    which progress bars are drawn. A terminal that goes away, or lacks a character, does not end the run.
    """
    saved_out, saved_error = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.environ[PROGRESS] = str(saved_error)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with own_stream(saved_error) as stream:
            yield stream
    finally:
        os.environ.pop(PROGRESS, None)
        os.dup2(saved_out, 1)
        os.dup2(saved_error, 2)
        for descriptor in (saved_out, saved_error, nowhere):
            os.close(descriptor)


def release_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """End runs whose process is gone, free their accelerator slots, and return their ids.

    Raises:
        UserError: when a run of `forge run` is alive on this machine.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE)):
        if died(run.run_id):
            _end_dead(instance, run)
            ended.append(run.run_id)
    for run in instance.get_runs(dg.RunsFilter(statuses=_ACTIVE, tags={"forge/host": socket.gethostname()})):
        if _alive(run):
            raise UserError(
                f"run {run.run_id[:8]} of process {run.tags['forge/pid']} is still going: wait for it, or "
                "stop it with Ctrl-C in its terminal"
            )
        _end_dead(instance, run)
        ended.append(run.run_id)
    return ended


def unfinished_run(forge: Forge, steps: Sequence[PlannedStep]) -> dg.DagsterRun | None:
    """Return the newest finished run that left a checkpoint, with the same inputs, of an asset that is to be made."""
    for step in steps:
        if step.action != "make" or step.inputs is None:
            continue
        for root in forge.store.unfinished(step.asset, step.inputs):
            if (original := forge.instance.get_run_by_id(root)) is None:
                continue
            group = forge.instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": root}), limit=1)
            newest = group[0] if group else original
            if newest.is_finished:
                return newest
    return None


def execute(
    forge: Forge,
    steps: Sequence[PlannedStep],
    configs: Mapping[str, BaseModel],
    console: Console,
    *,
    defaults: bool = False,
) -> RunOutcome:
    """Make and judge the assets of `steps`, made with `configs`, printing a line for each asset and verdict.

    `defaults` marks a run that goes back to the profile's values (`kept_values`).
    Dagster's own events are recorded in the instance and not printed.
    """
    making = [step.asset for step in steps if step.action == "make"]
    judging = [step.asset for step in steps if step.action == "judge"]
    earlier = unfinished_run(forge, steps)
    if earlier is not None:
        console.print(f"Going on from the checkpoint of run {earlier.run_id[:8]}.")
    values = {asset: given for asset, given in run_values(forge, configs).items() if asset in making and given}
    run = _create_run(forge, making, judging, values, earlier, defaults=defaults)
    outcome = RunOutcome(run.run_id)
    progress = _Progress(console, outcome)
    events = execute_run_iterator(InMemoryJob(forge.job()), run, forge.instance)
    try:
        for event in events:
            progress.observe(event)
            if outcome.interrupted:
                break
    except KeyboardInterrupt:
        outcome.interrupted = True
    if outcome.interrupted:
        _end_cancelled(forge.instance, run.run_id, events)
    else:
        progress.missing(making)
    return outcome


def _create_run(
    forge: Forge,
    making: Sequence[str],
    judging: Sequence[str],
    values: Mapping[str, Mapping[str, Any]],
    earlier: dg.DagsterRun | None,
    *,
    defaults: bool,
) -> dg.DagsterRun:
    assets = frozenset(dg.AssetKey(name) for name in making)
    checks = frozenset(check for name in (*making, *judging) for check in forge.checks_of(name))
    job = forge.job().get_subset(asset_selection=assets, asset_check_selection=checks)
    run_config = {"ops": {name: {"config": dict(given)} for name, given in values.items()}, **_QUIET}
    snapshot = job.get_job_snapshot_id()
    execution_plan = create_execution_plan(job, run_config=run_config, instance_ref=forge.instance.get_ref())
    process = psutil.Process()
    tags = {
        "forge/profile": selected_profile(),
        "forge/host": socket.gethostname(),
        "forge/pid": str(process.pid),
        "forge/process_started": f"{process.create_time():.2f}",
    }
    if defaults:
        tags[kept_values.DEFAULTS] = "true"
    root = None
    if earlier is not None:  # checkpoints are keyed by the root run: the new run must join that group to find them
        root = earlier.root_run_id or earlier.run_id
        tags |= {"dagster/root_run_id": root, "dagster/parent_run_id": earlier.run_id}
    return forge.instance.create_run(
        job_name=job.name,
        run_id=None,
        run_config=run_config,
        status=None,
        tags=tags,
        root_run_id=root,
        parent_run_id=None if earlier is None else earlier.run_id,
        step_keys_to_execute=execution_plan.step_keys_to_execute,
        execution_plan_snapshot=snapshot_from_execution_plan(execution_plan, snapshot),
        job_snapshot=job.get_job_snapshot(),
        parent_job_snapshot=job.get_parent_job_snapshot(),
        asset_selection=assets,
        asset_check_selection=checks,
        resolved_op_selection=None,
        op_selection=None,
        remote_job_origin=None,
        job_code_origin=None,
        asset_graph=job.asset_layer.asset_graph,
    )


def _end_dead(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    instance.report_run_failed(run, "its process is gone")
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    forget(run.run_id)


def _alive(run: dg.DagsterRun) -> bool:
    try:
        process = psutil.Process(int(run.tags["forge/pid"]))
        # The start time tells the run's process from a later one that was given the same id.
        same = abs(process.create_time() - float(run.tags["forge/process_started"])) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_cancelled(instance: dg.DagsterInstance, run_id: str, events: Iterator[dg.DagsterEvent]) -> None:
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished and run.status != dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceling(run, "interrupted in the terminal")
    if isinstance(events, Generator):
        events.close()  # Dagster then records how the run ended: as failed, unless it is being cancelled
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_canceled(run)
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)


class _Progress:
    """Turns a run's events into lines on the terminal and into its outcome."""

    def __init__(self, console: Console, outcome: RunOutcome) -> None:
        self._console = console
        self._outcome = outcome
        self._started: dict[str, float] = {}
        self._failed: set[str] = set()

    def observe(self, event: dg.DagsterEvent) -> None:
        """Print what an event means to the user, and record it in the outcome."""
        step, kind = event.step_key or "", event.event_type_value
        if kind == "STEP_START":
            self._started[step] = time.monotonic()
        elif kind == "ASSET_MATERIALIZATION" and event.asset_key is not None:
            self._made(event)
        elif kind == "ASSET_CHECK_EVALUATION":
            self._judged(event.asset_check_evaluation_data)
        elif kind == "STEP_UP_FOR_RETRY":
            error = event.step_retry_data.error
            self._console.print(f"  [yellow]![/] {step:<18} crashed ({escape(_cause(error))}); trying once more")
        elif kind == "STEP_FAILURE":
            self._failure(step, event)
        elif kind == "PIPELINE_FAILURE" and not self._failed and not self._outcome.problems:
            data = event.job_failure_data
            if data.failure_reason is not None and data.failure_reason.value == "UNEXPECTED_TERMINATION":
                self._outcome.interrupted = True
            else:
                reason = _cause(data.error) if data.error is not None else event.message or "the run failed"
                self._problem("run", reason)

    def missing(self, making: Sequence[str]) -> None:
        """Print the assets that were not reached because something upstream failed."""
        left = [asset for asset in making if asset not in self._outcome.made and asset not in self._failed]
        if left:
            self._console.print(f"  [dim]-  not made: {', '.join(left)}[/]", soft_wrap=True)

    def _made(self, event: dg.DagsterEvent) -> None:
        asset = event.asset_key.to_user_string() if event.asset_key is not None else ""
        self._outcome.made.append(asset)
        elapsed = time.monotonic() - self._started.get(event.step_key or "", time.monotonic())
        metadata = event.materialization.metadata
        numbers = [
            text.format(float(metadata[name].value))  # type: ignore[arg-type]
            for name, text in (
                ("params", "{:,.0f} parameters"),
                ("bits_per_byte", "{:.4f} bits per byte"),
                ("bytes_on_disk", "{:,.0f} bytes"),
            )
            if name in metadata
        ]
        line = f"  [green]✓[/] {asset:<18} [dim]{_clock(elapsed):>7}[/]  {', '.join(numbers)}"
        self._console.print(line, soft_wrap=True)

    def _judged(self, evaluation: Any) -> None:
        name = evaluation.asset_key.to_user_string()
        what = evaluation.check_name
        if evaluation.passed:
            self._console.print(f"    [green]{name}: {what} passed[/]")
            return
        reason = evaluation.description or "no reason given"
        if what == "gate":
            self._outcome.problems.append(f"the gate of {name} is closed: {reason}")
        self._console.print(f"    [red]{name}: {what} FAILED[/]  {escape(reason)}", soft_wrap=True)

    def _failure(self, step: str, event: dg.DagsterEvent) -> None:
        data = event.step_failure_data
        described = data.user_failure_data.description if data.user_failure_data else None
        if described == CANCELLED:
            self._outcome.interrupted = True
            return
        self._failed.add(step)
        reason = described or _cause(data.error)
        if not reason.startswith(_BLOCKED):  # the step failed because of a blocking check, whose verdict was printed
            self._problem(step, reason)

    def _problem(self, step: str, reason: str) -> None:
        self._outcome.problems.append(f"{step}: {reason}")
        self._console.print(f"  [red]✗[/] {step:<18} {escape(reason)}", soft_wrap=True)


def _cause(error: Any) -> str:
    """Return the message of the innermost exception, without its traceback."""
    while error is not None and error.cause is not None:
        error = error.cause
    return "no reason given" if error is None else str(error.message).strip().splitlines()[0]


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"
