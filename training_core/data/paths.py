"""Absolute forms of the paths that a configuration names, which mean the same from every working directory."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def expanded(path: str) -> Path:
    """Return the path with `~` expanded.

    Raises:
        ValueError: when the path begins with the home of a user that does not exist.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path!r} begins with a home that does not exist ({error}); write the whole path") from error


def absolute(pattern: str) -> str:
    """Return the absolute form of a path or glob. Brackets in the working directory or home are no part of the glob.

    Raises:
        ValueError: as `expanded`.
    """
    literal = expanded(pattern).absolute()
    if literal.exists() or glob.escape(pattern) == pattern:
        return str(literal)
    if pattern.startswith("~"):
        first, _, rest = pattern.partition("/")
        return os.path.join(glob.escape(str(expanded(first))), rest)
    return os.path.join(glob.escape(str(Path.cwd())), pattern)


def absolute_if_folder(name: str) -> str:
    """Return the absolute path of the folder `name`, or `name` itself where there is no such folder."""
    folder = expanded(name)
    return str(folder.absolute()) if name and folder.is_dir() else name
