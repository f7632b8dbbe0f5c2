"""Settings for all tests."""

from __future__ import annotations

import os

import hypothesis
import pytest

# One thread a process, those that tests start included: tensors are small, and workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("tests.killed", "tests.core.declared")
hypothesis.settings.register_profile("forge", deadline=None)  # machines are shared: a slow example is not a failure
hypothesis.settings.load_profile("forge")
