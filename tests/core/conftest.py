"""Fixtures for the tests of the core."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.small_data import make_small_data

torch.set_num_threads(1)  # for small tensors a second thread costs more than it saves, above all on a busy machine


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of a small real data set."""
    return make_small_data(tmp_path_factory.mktemp("data"))
