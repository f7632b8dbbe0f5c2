"""State and control of a run's process without the code server that started it.

    <forge home>/runs/<run>-<token>    locked by the run's process while it executes
    <forge home>/runs/<run>.cancel     asks that process to end; it is polled every half second

A run outlives a code server that is killed, and is then unknown to everyone else. The operating system releases a lock
however a process ends, so an existing file without a lock is the trace of a process that died.
"""

import fcntl
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forge_resources import forge_home
from training_core.terminal import hear_interrupts

_LOOK_S = 0.5


@contextmanager
def executing(run_id: str, ended: Callable[[str], bool] = lambda run_id: False) -> Iterator[None]:
    """Hold the run's lock within the context, and interrupt this process when cancellation is requested.

    The interrupt is heard even if the process was started with SIGINT ignored, as a script's background job is.
    Traces of dead processes are removed once their run has `ended`.
    """
    hear_interrupts()
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    for other in {trace.name.rpartition("-")[0] for trace in folder.glob("*-*-*")}:
        if ended(other):
            forget(other)
    new, trace = folder / f"new-{secrets.token_hex(4)}", folder / f"{run_id}-{secrets.token_hex(4)}"
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    new.rename(trace)  # renamed after locking, so it is never visible unlocked while this process lives
    cancel, left = folder / f"{run_id}.cancel", threading.Event()
    threading.Thread(target=_await_cancel, args=(cancel, left), name="await-cancel", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        trace.unlink(missing_ok=True)
        os.close(descriptor)
        cancel.unlink(missing_ok=True)


def lives(run_id: str) -> bool:
    """Return whether a process is executing the run."""
    return any(_held(trace) is True for trace in _folder().glob(f"{run_id}-*"))


def died(run_id: str) -> bool:
    """Return whether a process that executed the run ended without cleaning up."""
    return any(_held(trace) is False for trace in _folder().glob(f"{run_id}-*"))


def forget(run_id: str) -> None:
    """Remove the traces of dead processes of the run."""
    for trace in _folder().glob(f"{run_id}-*"):
        if _held(trace) is False:
            trace.unlink(missing_ok=True)


def request_cancel(run_id: str) -> None:
    """Ask the process that executes the run to end."""
    (_folder() / f"{run_id}.cancel").touch()


@contextmanager
def alone(folder: Path, name: str, run_id: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time make `name`, however it was started; others wait, and report once through `say`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a+") as file:
        said = False
        while not _lock(file.fileno()):
            if not said:
                file.seek(0)
                holder = file.read() or "another run"
                say(f"{name} is being made by {holder}: waiting until that ends; cancel one of the two to go on")
                said = True
            time.sleep(_LOOK_S)
        file.truncate(0)
        file.write(f"run {run_id} in process {os.getpid()}")
        file.flush()
        yield


def _await_cancel(cancel: Path, left: threading.Event) -> None:
    while not left.wait(_LOOK_S):
        if cancel.exists():
            os.kill(os.getpid(), signal.SIGINT)  # the signal that Dagster itself uses
            return


def _held(trace: Path) -> bool | None:
    """Whether a process holds the lock of `trace`; None if it has been removed in the meantime."""
    try:
        descriptor = os.open(trace, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if not _lock(descriptor, fcntl.LOCK_SH):
            return True
        return False if os.fstat(descriptor).st_nlink else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _folder() -> Path:
    return forge_home() / "runs"
