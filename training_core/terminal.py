"""Output on a terminal: characters that it lacks and a reader that is gone do not end the work that is reported."""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, TextIO

FALLBACK = "forge.ascii"  # name of the error handler for characters that an encoding lacks
PROGRESS = "FORGE_PROGRESS"  # file descriptor of the terminal while the standard streams are captured
_ASCII = {
    "✓": "+",
    "✗": "x",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "\N{MULTIPLICATION SIGN}": "x",
    "±": "+-",
    "·": ".",
    "…": "...",
    "\N{EN DASH}": "-",
    "—": "-",
}
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # a closed pipe, a terminal that hung up, a stream closed from the start


def _ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in lacking), error.end


codecs.register_error(FALLBACK, _ascii)


class LastingFile(io.FileIO):
    """A file descriptor to write to; what nobody can read any more is dropped.

    Args:
        descriptor: The file descriptor.
        closefd: Close it with this object.
        always: Drop what cannot be written for any reason, for instance a full disk, not only for want of a reader.
    """

    def __init__(self, descriptor: int, *, closefd: bool, always: bool) -> None:
        super().__init__(descriptor, "w", closefd=closefd)
        self._always = always

    def write(self, data: Any, /) -> int:
        """Write `data` and return the number of bytes that are dealt with."""
        try:
            return super().write(data)
        except OSError as error:
            if not self._always and error.errno not in _GONE:
                raise
            return memoryview(data).nbytes


def own_stream(descriptor: int) -> TextIO:
    """Return a text stream on a duplicate of `descriptor`; nothing that is written to it can fail."""
    encoding = getattr(sys.__stderr__, "encoding", None) or "utf-8"
    return _stream(LastingFile(os.dup(descriptor), closefd=True, always=True), encoding)


def progress_stream() -> TextIO | None:
    """Return a stream to the terminal of `forge run`, from within its steps, or None where there is none."""
    descriptor = os.environ.get(PROGRESS, "")
    return own_stream(int(descriptor)) if descriptor.isdecimal() else None


def prepare_process() -> None:
    """Make standard output and standard error last (see above), and let the process hear interrupts.

    A terminal that hangs up interrupts like Ctrl-C, unless nohup said otherwise. Streams that were replaced, for
    instance by a test, stay as they are.
    """
    for descriptor in range(3):  # one that is closed would be given to the next file: a database, for instance
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if (out := sys.__stdout__) is not None and sys.stdout is out:
        sys.stdout = _stream(LastingFile(1, closefd=False, always=False), out.encoding)
    if (error := sys.__stderr__) is not None and sys.stderr is error:
        sys.stderr = _stream(LastingFile(2, closefd=False, always=False), error.encoding)
    hear_interrupts()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)


def hear_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt in a process that was started with SIGINT ignored.

    Shells start background jobs of scripts so, and build servers and init scripts their children; the run would hear
    neither Ctrl-C nor its cancellation, which is a SIGINT to itself. Only the main thread can change this.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGINT)  # through whatever handler an interrupt has now


def _stream(raw: LastingFile, encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, FALLBACK, line_buffering=True)
