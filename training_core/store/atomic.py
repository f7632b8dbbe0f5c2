"""Files that are replaced in one durable step: a reader, or a run after a crash, finds the old content or the new one.

The content goes to a temporary file in the same folder, which is flushed to the disk and then renamed over the target;
flushing the folder makes the rename itself survive a loss of power. The temporary file carries the number of the
process, so that two writers do not share one. A killed writer leaves it behind; nothing reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path; what is written there takes the place of `path` when the block ends without an error.

    Raises:
        OSError: as the file system raises it; what `path` held is then still in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the content of `path` (text as UTF-8) in one durable step.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_durably(temporary: Path, path: Path) -> None:
    """Flush a finished file, rename it over `path` and flush the folder. Both must lie on one file system."""
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have the operating system put a file's content, or a folder's entries, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
