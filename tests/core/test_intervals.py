"""Score intervals: against the paper's definition, by hand where answers agree, and their coverage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles import tango
from training_core.evaluation.intervals import Z95, paired_difference, proportion, rate, weighted_proportion, wilson


def table(b: int, c: int, n: int) -> tuple[Tensor, Tensor]:
    """Outcomes of two models on n items: b that only the first solves, c that only the second does."""
    own, other = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    own[:b], other[b : b + c] = 1, 1
    return own, other


def test_the_oracle_gives_the_paper_s_example() -> None:
    """Section 6.1: one pair of 44 is better under the standard; at a margin of .1 the statistic is 1.709."""
    assert tango.score(0, 1, 44, -0.1) == pytest.approx(1.709, abs=5e-4)


@pytest.mark.parametrize(
    ("b", "c", "n"), [(0, 1, 44), (40, 20, 160), (0, 24, 30), (3, 3, 24), (0, 0, 100), (1, 17, 400)]
)
def test_paired_differences_are_tango_s(b: int, c: int, n: int) -> None:
    """At the ends of the interval the statistic is +-1.96, to the accuracy of the oracle's minimum."""
    found = paired_difference(*table(b, c, n))
    assert found.value == pytest.approx((b - c) / n, abs=1e-12)
    assert (tango.score(b, c, n, found.low), tango.score(b, c, n, found.high)) == pytest.approx((Z95, -Z95), rel=1e-4)
    mirrored = paired_difference(*table(c, b, n))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_equal_answers_leave_an_interval() -> None:
    wrong = torch.zeros(24, dtype=torch.float64)
    assert (rate(wrong, wrong + 1).low, rate(wrong, wrong + 1).high) == (0.0, 0.0)  # what a bootstrap says
    assert proportion(wrong, wrong + 1) == wilson(0, 24)
    assert proportion(3 * (wrong + 1), 3 * (wrong + 1)) == wilson(24, 24)
    same = paired_difference(wrong, wrong)
    assert (same.value, same.low, same.high) == pytest.approx((0, -(Z95**2) / (24 + Z95**2), Z95**2 / (24 + Z95**2)))
    every = paired_difference(wrong + 1, wrong)
    assert (every.value, every.high) == (1.0, 1.0)
    assert 0.7 < every.low < 0.9
    shares, trials = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([4.0, 4.0, 2.0])
    assert proportion(shares, trials) == rate(shares, trials)


def test_weights_count_as_kish_s_number_of_items() -> None:
    own, other = table(5, 2, 60)
    plain = paired_difference(own, other)
    assert paired_difference(own, other, torch.full((60,), 0.2)) == plain
    halves = torch.cat([torch.full((60,), 1.0), torch.full((20,), 3.0)])  # two strata of equal weight: n_eff 60 of 80
    found = paired_difference(torch.cat([own, torch.zeros(20)]), torch.cat([other, torch.zeros(20)]), halves)
    assert found.value == pytest.approx(plain.value / 2)
    assert tango.score(2.5, 1.0, 60, found.low) == pytest.approx(Z95, rel=1e-4)
    assert weighted_proportion(own, torch.full((60,), 7.0)) == wilson(5, 60)
    assert weighted_proportion(torch.cat([own, torch.zeros(20)]), halves) == wilson(2.5, 60)


def test_partial_outcomes_widen_the_interval_and_are_bounded() -> None:
    own, chance = table(150, 0, 400)[0], torch.full((400,), 0.25, dtype=torch.float64)
    found = paired_difference(own, chance)
    assert found.value == pytest.approx(0.125)
    deviation = float((own - chance).std()) / 400**0.5
    assert found.value - found.low > Z95 * deviation
    assert wilson(2.5, 10).value == 0.25
    for wrong in (own * 2, own - 1):
        with pytest.raises(ValueError, match=r"outcomes must lie in \[0, 1\]"):
            paired_difference(wrong, chance)
    with pytest.raises(ValueError, match="item by item, got 400 and 3"):
        paired_difference(own, chance[:3])
    with pytest.raises(ValueError, match="successes must lie in"):
        wilson(11, 10)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.05])
def test_paired_intervals_cover_small_differences(p: float) -> None:
    """Items that differ with probability p each way: at least 95 % of 400 draws of 60 cover 0, within 3 sigma."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(400):
        drawn = torch.rand(60, generator=generator, dtype=torch.float64)
        found = paired_difference((drawn < p).double(), (drawn > 1 - p).double())
        covered += found.low <= 0 <= found.high
    assert covered / 400 > 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5
