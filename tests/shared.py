"""What several workers of one test session share is made by the first that asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled once in this session, whichever worker of pytest-xdist asked first. Nothing may
    change it afterwards."""
    worker = "PYTEST_XDIST_WORKER" in os.environ
    root = factory.getbasetemp().parent if worker else factory.getbasetemp()
    folder, made = root / name, root / f"{name} is made"
    with FileLock(root / f"{name}.lock"):
        if not made.exists():
            folder.mkdir()  # where a worker that failed has left it, that is said, not covered up
            make(folder)
            made.touch()
    return folder
