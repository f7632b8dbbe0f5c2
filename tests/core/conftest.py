"""Fixtures of the core's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.small_data import folders_in, make_small_data
from tests.shared import made_once

torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives, the more so on a busy machine


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a small real data set."""
    return folders_in(made_once(tmp_path_factory, "small_data", make_small_data))
