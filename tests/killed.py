"""Run functions in processes that are killed with SIGKILL at a reported point and restarted until one completes.

Each run is a separate process, forked from a server that has imported torch once. (A fork of the test process would
inherit its sandbox, and pydantic-monty's threads do not survive a fork.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training_core.reporting import SilentReporter

# A module-level function (it is pickled). Arguments: a reporter, a folder for checkpoint and outcome, and any others.
Run = Callable[..., None]
KILLED = -signal.SIGKILL
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "tests.core.small_experts", "tests.core.small_curriculum"])


@dataclass(frozen=True, slots=True)
class Ran:
    """The progress that a run reported, as `label done`, and its exit code: 0, or minus the signal number."""

    told: list[str]
    status: int | None


class _Deadly(SilentReporter):
    """Logs every progress report and kills its own process at one of them."""

    def __init__(self, log: Path, killed_at: str) -> None:
        self.log, self.killed_at = log, killed_at

    def progress(self, done: int, total: int, label: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{label} {done}\n")
        if f"{label} {done}" == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _start(run: Run, log: Path, killed_at: str, folder: Path, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())  # a result must not depend on torch's global generator
    run(_Deadly(log, killed_at), folder, **given)


def run_apart(run: Run, folder: Path, killed_at: str = "", **given: Any) -> Ran:
    """Run in a separate process, which is killed as soon as it reports `killed_at`."""
    folder.mkdir(exist_ok=True)
    log = folder / f"told {len(list(folder.glob('told *')))}"
    log.touch()
    process = SERVER.Process(target=_start, args=(run, log, killed_at, folder, given))
    process.start()
    process.join()
    return Ran(log.read_text().splitlines(), process.exitcode)


def killed_at_each(run: Run, folder: Path, kills: Sequence[str], **given: Any) -> list[Ran]:
    """Run, kill at the first point, resume, kill at the next, and so on until a run completes, all in the same folder.

    Asserts that each run was killed exactly where it should be.
    """
    runs = [run_apart(run, folder, at, **given) for at in [*kills, ""]]
    assert [one.status for one in runs] == [*[KILLED] * len(kills), 0]
    assert [one.told[-1] for one in runs[:-1]] == list(kills)
    return runs
