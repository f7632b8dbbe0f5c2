"""Runs that are killed with SIGKILL at a point that they report, and started again until they end.

Each run is a process of its own, forked from a server that has imported torch once. (A fork of the test's process would
share its sandbox: pydantic-monty's threads do not survive that.)
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

# A function of a module: makes something with who hears of its progress, a folder for its checkpoint and its outcome,
# and whatever else it is given.
Run = Callable[..., None]
KILLED = -signal.SIGKILL
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "tests.core.small_experts", "tests.core.small_curriculum"])


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run reported, as `label done`, and how it ended: 0, or the negative number of the signal."""

    told: list[str]
    status: int | None


class _Deadly(SilentReporter):
    """Writes down what happens, and kills its process at one of these things."""

    def __init__(self, log: Path, killed_at: str) -> None:
        self.log, self.killed_at = log, killed_at

    def progress(self, done: int, total: int, label: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{label} {done}\n")
        if f"{label} {done}" == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _start(run: Run, log: Path, killed_at: str, folder: Path, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())  # what else drew numbers in this process is of no account
    run(_Deadly(log, killed_at), folder, **given)


def run_apart(run: Run, folder: Path, killed_at: str = "", **given: Any) -> Ran:
    """Run in a process of its own, which is killed as soon as it reports `killed_at`."""
    folder.mkdir(exist_ok=True)
    log = folder / f"told {len(list(folder.glob('told *')))}"
    log.touch()
    process = SERVER.Process(target=_start, args=(run, log, killed_at, folder, given))
    process.start()
    process.join()
    return Ran(log.read_text().splitlines(), process.exitcode)


def killed_at_each(run: Run, folder: Path, kills: Sequence[str], **given: Any) -> list[Ran]:
    """A run that is killed at the first point, one that goes on and is killed at the next, ..., and one that ends, all
    in the same folder. Each was killed where it was to be."""
    runs = [run_apart(run, folder, at, **given) for at in [*kills, ""]]
    assert [one.status for one in runs] == [*[KILLED] * len(kills), 0]
    assert [one.told[-1] for one in runs[:-1]] == list(kills)
    return runs
