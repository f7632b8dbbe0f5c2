"""Dagster's default launcher, which here also knows whether a run's process lives, and reaches it to cancel it.

Both go through the code server otherwise, which forgets its runs when it is killed: a run whose process died with it
would stay "started", and keep its accelerator slot, for ever; one that lives could not be cancelled. Configured in
`dagster.yaml`; it runs inside the webserver and the daemon, so it loads no model code.
"""

import time
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError, DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from forge_resources.run_process import died, lives, request_cancel

_SETTLED_S = 5.0  # after that the daemon, too, has noticed that the code server is back
_GIVEN_UP_S = 120.0


class AttendedRunLauncher(DefaultRunLauncher):
    """`DefaultRunLauncher` for runs that hold a lock as long as they execute (`forge_resources.run_process`)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._dead_since: dict[str, float] = {}
        self._answered_since: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """The daemon's run monitoring asks."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process died; one that has not taken its lock yet counts as running.

        The news waits for the code server, for two minutes at most: Dagster tries to retry a failed run once, and
        gives that up for ever where the code server does not answer.
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
            return True  # `forge run`: nobody has to answer
        try:
            client.ping("")
        except DagsterUserCodeUnreachableError:
            return False
        return True

    def terminate(self, run_id: str) -> bool:
        """Cancel through the code server, or else directly; whether the run's process was reached."""
        try:
            if super().terminate(run_id):  # type: ignore[no-untyped-call]
                return True
        except (DagsterUserCodeProcessError, DagsterUserCodeUnreachableError):
            pass  # a code server that was started since does not know the run
        if not lives(run_id):
            return False
        request_cancel(run_id)
        return True
