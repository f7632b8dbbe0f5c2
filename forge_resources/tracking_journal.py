"""Journals of what runs track, each kept until MLflow has taken all of it.

    <forge home>/tracking/<root run>.<asset>.<token>.jsonl    one run of one asset; locked by the process that writes it
    <forge home>/tracking/champion.<asset>.<token>.jsonl      a verdict that makes a registered model the champion

Everything that is tracked is appended here first and delivered from here, so that a server that is away, a locked
database or a killed run loses nothing. A journal without a lock has no writer any more: anyone may deliver and remove
it. Each line is one JSON object with one of the keys `run`, `metrics`, `figure`, `model`, `champion`, `end`, and
usually `at`, in milliseconds since 1970; a line that a kill cut short is skipped.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

LIMIT_BYTES = 256 * 2**20  # of all journals together; beyond it metrics and figures are dropped, and counted
_NEW_S = 60.0
_BOUNDED = ("metrics", "figure")

Entry = Mapping[str, Any]


class Journal:
    """A locked journal file."""

    def __init__(self, path: Path, descriptor: int, allowed_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self.num_dropped = 0
        self._descriptor = descriptor
        self._allowed_bytes = allowed_bytes
        self._first = b""

    @classmethod
    def begin(cls, folder: Path, name: str, first: Entry) -> Self:
        """Return a new journal in `folder` that starts with `first`.

        Raises:
            OSError: when nothing can be written there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        taken = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
        new = folder / f"{secrets.token_hex(4)}.new"
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        journal = cls(folder / f"{name}.{new.stem}.jsonl", descriptor, LIMIT_BYTES - taken)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            journal._first = _line(first)
            journal._write(journal._first)
            new.rename(journal.path)  # renamed after locking, so it is never visible unlocked while its writer lives
        except OSError:
            new.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return journal

    @classmethod
    def abandoned(cls, folder: Path) -> Iterator[Self]:
        """Yield the journals without a writer, each locked meanwhile; those of runs first, then the oldest first."""
        for new in folder.glob("*.new"):
            if time.time() - new.stat().st_mtime > _NEW_S:  # its process was killed before it could name it
                new.unlink(missing_ok=True)
        for path in sorted(folder.glob("*.jsonl"), key=lambda path: (path.name.startswith("champion."), _age(path))):
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            journal = cls(path, descriptor)
            try:
                if os.fstat(descriptor).st_nlink:
                    yield journal
            finally:
                journal.close()

    def append(self, entry: Entry) -> None:
        """Append `entry`; metrics and figures beyond the limit are dropped and counted in `num_dropped`.

        Raises:
            OSError: when the disk is full or fails. The journal is as before.
        """
        line = _line(entry)
        size = os.fstat(self._descriptor).st_size
        if size + len(line) > self._allowed_bytes and any(kind in entry for kind in _BOUNDED):
            self.num_dropped += 1
            return
        try:
            self._write(line)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield all whole entries."""
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if (entry := _parsed(line)) is not None:
                    yield entry

    def empty(self) -> None:
        """Remove all entries but the first, once they are delivered."""
        os.pwrite(self._descriptor, self._first, 0)
        os.ftruncate(self._descriptor, len(self._first))

    def remove(self) -> None:
        """Remove the journal, once it is delivered."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock, so that others may deliver the journal."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, line: bytes) -> None:
        os.lseek(self._descriptor, 0, os.SEEK_END)
        while line:
            line = line[os.write(self._descriptor, line) :]


def now_ms() -> int:
    """Return the time in milliseconds since 1970, as MLflow counts it."""
    return int(time.time() * 1000)


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, default=float).encode() + b"\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
