"""Settings for all tests."""

from __future__ import annotations

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.killed", "tests.core.declared")
hypothesis.settings.register_profile("forge", deadline=None)  # machines are shared: a slow example is not a failure
hypothesis.settings.load_profile("forge")
