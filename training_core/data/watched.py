"""A file that reports how far it has been read, so that hours of reading show progress whatever reads it."""

from __future__ import annotations

import io
from pathlib import Path

from training_core.reporting import Reporter

_STEPS = 100  # reports for a whole source, at most


class _Watched(io.FileIO):
    """A file opened for reading; `before` and `total` are the bytes of earlier files and of all."""

    def __init__(self, path: Path, before: int, total: int, reporter: Reporter, label: str) -> None:
        super().__init__(path, "rb")
        self._before, self._total, self._reporter, self._label = before, total, reporter, label
        self._reported = before

    def readinto(self, buffer: bytearray | memoryview, /) -> int | None:  # type: ignore[override]
        count = super().readinto(buffer)
        done = self._before + self.tell()
        if done - self._reported >= max(self._total // _STEPS, 1 << 20) or (not count and done > self._reported):
            self._reported = done
            self._reporter.progress(done // 1000, max(self._total, done) // 1000, self._label)
        return count


def watched(path: Path, before: int, total: int, reporter: Reporter | None, label: str) -> io.BufferedReader:
    """Open a file for reading bytes; progress is reported in kB of `total`, `before` of which were read earlier.

    Raises:
        OSError: when the file cannot be opened.
    """
    return io.BufferedReader(
        io.FileIO(path, "rb") if reporter is None else _Watched(path, before, total, reporter, label)
    )
