"""Dagster's default run launcher, extended to detect whether a run's process is alive and to cancel it directly.

Otherwise both go through the code server, which forgets its runs when it is killed: a run whose process died with it
would stay "started", and keep its accelerator slot, for ever; one that is alive could not be cancelled. Configured in
`dagster.yaml`; it runs inside the webserver and the daemon, so it loads no model code.
"""

import time
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError, DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from forge_resources.run_process import died, lives, request_cancel

_SETTLED_S = 5.0  # by then the daemon has noticed as well that the code server is back
_GIVEN_UP_S = 120.0


class AttendedRunLauncher(DefaultRunLauncher):
    """A `DefaultRunLauncher` for runs that hold a lock while they execute (`forge_resources.run_process`)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._dead_since: dict[str, float] = {}
        self._answered_since: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True, so that the daemon's run monitoring calls `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return whether the run's process died; one that has not taken its lock yet counts as running.

        A death is reported only once the code server answers, or after two minutes: Dagster attempts the retry of a
        failed run once, and gives it up for good if the code server does not answer then.
        """
        if not died(run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        now = time.monotonic()
        if self._answers(run.run_id):
            ready = now - self._answered_since.setdefault(run.run_id, now) >= _SETTLED_S
        else:
            self._answered_since.pop(run.run_id, None)
            ready = False
        if ready or now - self._dead_since.setdefault(run.run_id, now) >= _GIVEN_UP_S:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process is gone")
        return CheckRunHealthResult(WorkerStatus.RUNNING, "its process is gone; its code server does not answer yet")

    def _answers(self, run_id: str) -> bool:
        client = self._get_grpc_client_for_termination(run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return True  # a run of `forge run` has no code server
        try:
            client.ping("")
        except DagsterUserCodeUnreachableError:
            return False
        return True

    def terminate(self, run_id: str) -> bool:
        """Cancel through the code server, or else directly; return whether the run's process was reached."""
        try:
            if super().terminate(run_id):  # type: ignore[no-untyped-call]
                return True
        except (DagsterUserCodeProcessError, DagsterUserCodeUnreachableError):
            pass  # a code server that was restarted since does not know the run
        if not lives(run_id):
            return False
        request_cancel(run_id)
        return True
