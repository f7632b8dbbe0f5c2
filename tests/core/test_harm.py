"""The rule by which a candidate is not kept, and which levels are in reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.small_cycles import parent
from training_core.evaluation.harm import (
    BAKES,
    EXPERTS,
    PRACTICE,
    REACH,
    RULES,
    THOUGHTS,
    HarmLimits,
    in_reach,
    text_ratio,
)
from training_core.phase import PhaseContext


def test_a_candidate_is_refused_beyond_either_limit_and_kept_at_it() -> None:
    limits = HarmLimits(text_ratio=1.01, accuracy_drop=0.03)
    assert not limits.exceeded(1.01, 0.03)
    assert limits.exceeded(1.0101)
    assert limits.exceeded(0.9, 0.0301)
    assert not HarmLimits(text_ratio=1.01).exceeded(1.0, 0.9), "a limit that is not given refuses nothing"
    assert not HarmLimits(accuracy_drop=0.01).exceeded(9.0, 0.01)


def test_the_limits_of_the_phases() -> None:
    found = {name: (limits.text_ratio, limits.accuracy_drop) for name, limits in {
        "thoughts": THOUGHTS, "practice": PRACTICE, "rules": RULES, "bakes": BAKES, "experts": EXPERTS,
    }.items()}  # fmt: skip
    assert found == {
        "thoughts": (1.01, float("inf")),
        "practice": (1.015, 0.03),
        "rules": (1.01, 0.03),
        "bakes": (1.01, 0.01),
        "experts": (1.01, 0.01),
    }


def test_levels_in_reach_by_hand() -> None:
    assert REACH == 0.1
    assert in_reach({1: 0.9, 2: 0.1, 3: 0.099, 4: 0.5}) == [1, 2, 4]
    assert in_reach({1: 0.0, 2: 0.05}) == [1, 2], "all where none is in reach"


def test_the_text_ratio_is_that_of_bits_per_byte(small_data: dict[str, Path]) -> None:
    context, one, other = PhaseContext(folders=small_data), parent(), parent()
    with torch.no_grad():
        other.embedding.weight.mul_(3.0)
    windows, size = context.selection.text, context.batch_size
    assert text_ratio(one, one, windows, size) == 1.0
    ratio = text_ratio(other, one, windows, size)
    assert ratio != 1.0
    assert text_ratio(one, other, windows, size) == pytest.approx(1 / ratio, rel=1e-9)
