"""Atomic, durable replacement of files: after a crash at any moment the old content or the new one is there, complete.

The content is written to a temporary file in the same folder, flushed to disk and renamed over the target; flushing the
folder makes the rename itself survive a power loss. The temporary file's name contains the process id, so two writers
never share one. A killed writer leaves it behind; nothing reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file replaces `path` if the context exits without an error.

    Raises:
        OSError: from the file system; the old content of `path` is then still in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the content of `path` (text as UTF-8) atomically and durably.

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
    """Flush a file's content or a folder's entries to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
