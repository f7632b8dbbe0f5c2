"""`python -m forge_resources.pipes_worker JOB.json`: one of the processes that `forge_resources.launcher` starts.

Every rank does its share of the work; the first one reports for all of them through Dagster Pipes.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, open_dagster_pipes
from safetensors import SafetensorError

from forge_resources.full_disk import disk_full, no_room
from forge_resources.sandbox import probed_sandbox
from training_core.reporting import Figure, SilentReporter
from training_core.training import distributed
from training_core.worker import Job, find_phase, make

_PATIENCE_S = 5.0
_PROGRESS_S = 0.5


class PipesReporter:
    """Sends all reports to the Dagster step that launched this process (`forge_resources.launcher`).

    One that cannot be written, for instance because the shared file system is full, is dropped.
    """

    def __init__(self, pipes: PipesContext) -> None:
        self._pipes = pipes
        self._told: dict[str, float] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics."""
        self._send({"metrics": [step, {k: float(v) for k, v in values.items()}]})

    def progress(self, done: int, total: int, label: str) -> None:
        """Send the progress, at most twice a second, and always when the work is done."""
        now = time.monotonic()
        if done >= total or now - self._told.get(label, -float("inf")) >= _PROGRESS_S:
            self._told[label] = now
            self._send({"progress": [done, total, label]})

    def figure(self, name: str, figure: Figure) -> None:
        """Send the figure."""
        self._send({"figure": [name, asdict(figure)]})

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._pipes.report_custom_message(message)


def work(job_file: Path) -> None:
    """Run the job in `job_file` together with the other ranks."""
    job = Job.model_validate_json(job_file.read_text(encoding="utf-8"))
    phase = find_phase(job)
    with distributed.joined(job_file.parent):
        if not distributed.is_first():
            make(phase, job, SilentReporter(), probed_sandbox)
            return
        with open_dagster_pipes() as pipes:
            size = distributed.world_size()
            pipes.log.info(f"{phase.name} is made by {size} process{'es' * (size > 1)}; the first is on {_host()}")
            try:
                bundle = make(phase, job, PipesReporter(pipes), probed_sandbox)
            except ValueError as error:  # a retry would fail in the same way
                pipes.report_custom_message({"refused": f"{type(error).__name__}: {error}"})
                raise
            except (OSError, SafetensorError) as error:
                if disk_full(error):
                    pipes.report_custom_message({"refused": no_room(error)})
                raise
            if bundle is not None:
                pipes.report_asset_materialization({"processes": size, "first_process": _host()}, bundle.digest())


def end_with_the_launcher() -> None:
    """Stop this process when the other end of its standard input is closed, which means that the launcher is gone."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_PATIENCE_S)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


if __name__ == "__main__":
    # A rank blocked in a collective operation never returns to Python, where KeyboardInterrupt would be raised. And
    # what a run is started by may ignore both signals, which its processes would inherit.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    end_with_the_launcher()
    work(Path(sys.argv[1]))
