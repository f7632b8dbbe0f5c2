"""Fronts, hypervolumes and the knee by hand; pymoo's sorting, which the search rests on, by the numbers known of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_core.phases.p7_experts.pareto import Box, hypervolume, knee, non_dominated

FIVE = np.array([[1.0, 5.0], [2.0, 3.0], [4.0, 1.0], [3.0, 4.0], [5.0, 5.0]])
UNIT = Box((0.0, 0.0), (1.0, 1.0))


def test_the_first_front_is_the_one_of_pymoo() -> None:
    """Deb et al., section III A, by hand: (3, 4) is worse than (2, 3), and (5, 5) than all."""
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    assert non_dominated(FIVE) == [0, 1, 2]
    assert [front.tolist() for front in NonDominatedSorting().do(FIVE)] == [[0, 1, 2], [3], [4]]


def test_crowding_is_the_mean_over_objectives_of_the_gaps() -> None:
    """In pymoo 0.6.2 the middle point has ((4 - 1) / 3 + (5 - 1) / 4) / 2 = 1, where the paper's sum is 2."""
    from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function

    crowding = get_crowding_function("cd").do(FIVE[:3], n_remove=0)
    assert crowding.tolist() == [np.inf, 1.0, np.inf]


def test_of_equal_points_the_first_stays() -> None:
    points = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [1.0, 3.0]])
    assert non_dominated(points) == [0, 2]
    assert non_dominated(np.zeros((0, 2))) == []


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25))
def test_a_front_is_what_comparing_pair_by_pair_gives(points: list[tuple[int, int, int]]) -> None:
    def better(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    naive = [i for i, p in enumerate(points) if p not in points[:i] and not any(better(q, p) for q in points)]
    assert non_dominated(np.array(points, dtype=float)) == naive


def test_hypervolume_of_two_points_by_hand() -> None:
    """(.2, .6) covers .8 * .4, (.5, .1) covers .5 * .9, both of them .5 * .4: .32 + .45 - .2."""
    points = np.array([[0.2, 0.6], [0.5, 0.1]])
    assert hypervolume(points, UNIT) == pytest.approx(0.57, abs=1e-12)
    assert hypervolume(points * [10, 4] + [5, 1], Box((5.0, 1.0), (15.0, 5.0))) == pytest.approx(0.57, abs=1e-12)


def test_what_lies_outside_the_box_adds_nothing() -> None:
    inside = np.array([[0.5, 0.5]])
    outside = np.array([[0.1, 1.0], [1.7, 0.0]])
    assert hypervolume(np.vstack([inside, outside]), UNIT) == pytest.approx(0.25, abs=1e-12)
    assert hypervolume(outside, UNIT) == 0.0
    assert hypervolume(np.zeros((0, 2)), UNIT) == 0.0
    assert hypervolume(np.array([[-3.0, 0.5]]), UNIT) == pytest.approx(0.5, abs=1e-12), "as on the low end"


def test_a_box_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="low < high in every objective"):
        Box((0.0, 1.0), (1.0, 1.0))


def test_knee_by_hand() -> None:
    """Gains over the last point are .4, .37, .35 and 0; nine tenths of the largest are .36. Costs are .9 + .5, .5 + .6
    and .1 + .1: the third would be the cheapest and gains too little. The last objective counts for nothing."""
    points = np.array(
        [
            [0.5, 9.0, 50.0, 3.0],
            [0.53, 5.0, 60.0, 3.0],
            [0.55, 1.0, 10.0, 3.0],
            [0.9, 0.0, 0.0, 3.0],
            [0.2, 10.0, 100.0, 3.0],
        ]
    )
    assert knee(points, [True, True, True, True, False], 3) == 1
    assert knee(points, [True, False, True, True, False], 3) == 0
    assert knee(points, [False, False, True, True, False], 3) == 2
    assert knee(points, [False, False, False, True, False], 3) == 3
    with pytest.raises(ValueError, match="no point is allowed"):
        knee(points, [False] * 5, 3)


def test_of_points_that_cost_alike_the_better_is_the_knee_and_without_a_gain_the_cheapest() -> None:
    points = np.array([[0.50, 1.0, 0.0], [0.49, 0.0, 1.0], [0.9, 0.0, 0.0]])
    assert knee(points, [True] * 3, 2) == 1
    assert knee(points[2:], [True], 0) == 0, "a point alone, without a span"
    worse = np.array([[0.6, 0.0, 0.0], [0.5, 1.0, 0.0]])
    assert knee(worse, [False, True], 1) == 1
