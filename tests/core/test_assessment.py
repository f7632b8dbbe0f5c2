"""The edge is found: isotonic regression by brute force, and simulated learners whose true curve is known."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_core.tasks.questions.assessment import AssessmentConfig, find_edge, isotonic_decreasing

LEVELS = 10
SEEDS = 200


def learner(curve: Callable[[int], float], seed: int, asked: list[int]) -> Callable[[int, int], int]:
    """Answers each question of a level right with the level's probability."""
    draws = random.Random(seed)

    def ask(level: int, count: int) -> int:
        asked.append(count)
        return sum(draws.random() < curve(level) for _ in range(count))

    return ask


def logistic(middle: float, slope: float) -> Callable[[int], float]:
    return lambda level: 1 / (1 + math.exp(slope * (level - middle)))


def true_edge(curve: Callable[[int], float], target: float = 0.75) -> int:
    return max((level for level in range(1, LEVELS + 1) if curve(level) >= target), default=0)


@pytest.mark.parametrize(("middle", "slope"), [(5.6, 0.7), (3.2, 1.0), (8.3, 0.5), (6.0, 2.0), (0.0, 1.0), (30.0, 0.5)])
def test_the_edge_is_within_one_level_for_known_learners(middle: float, slope: float) -> None:
    curve = logistic(middle, slope)
    within = 0
    for seed in range(SEEDS):
        found = find_edge(learner(curve, seed, []), LEVELS, AssessmentConfig())
        within += abs(found.edge - true_edge(curve)) <= 1
    assert within >= 0.95 * SEEDS


def test_questions_go_to_the_edge_and_stop_when_it_is_decided() -> None:
    curve = logistic(5.5, 1.5)  # .905 at level 4, .679 at level 5
    found = find_edge(learner(curve, 0, []), LEVELS, AssessmentConfig())
    asked = {level.level: level.asked for level in found.levels}
    assert found.edge == 4
    assert all(asked[level] == 40 for level in (1, 2, 8, 9, 10))
    assert asked[4] + asked[5] > 80
    assert max(asked.values()) <= 400
    for level in found.levels:
        assert level.interval.low <= level.right / level.asked <= level.interval.high
    assert [level.fitted for level in found.levels] == sorted((level.fitted for level in found.levels), reverse=True)


def test_a_learner_on_the_target_is_asked_no_more_than_allowed() -> None:
    asked: list[int] = []
    config = AssessmentConfig(first_questions=30, more_questions=50, most_questions=130)
    found = find_edge(learner(lambda _: 0.75, 3, asked), LEVELS, config)
    assert all(level.asked <= 130 for level in found.levels)
    assert any(level.asked == 130 for level in found.levels)
    assert sum(asked) == sum(level.asked for level in found.levels)


def test_all_and_nothing() -> None:
    perfect = find_edge(lambda _, count: count, LEVELS, AssessmentConfig())
    hopeless = find_edge(lambda _, count: 0, LEVELS, AssessmentConfig())
    assert perfect.edge == LEVELS
    assert hopeless.edge == 0
    assert perfect.frontier() == hopeless.frontier() == ()
    assert sum(level.asked for level in perfect.levels) == 40 * LEVELS
    middle = find_edge(learner(logistic(5.5, 0.6), 1, []), LEVELS, AssessmentConfig())
    assert middle.frontier() == tuple(level.level for level in middle.levels if 0.2 <= level.fitted <= 0.8)
    assert middle.frontier()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5))
def test_isotonic_fit_is_the_likeliest_curve_that_does_not_rise(counts: list[tuple[int, int]]) -> None:
    right, asked = [k for k, _ in counts], [k + wrong + (k + wrong == 0) for k, wrong in counts]
    fitted = isotonic_decreasing(right, asked)
    assert all(a >= b for a, b in itertools.pairwise(fitted))

    def likelihood(curve: tuple[float, ...] | list[float]) -> float:
        total = 0.0
        for p, k, n in zip(curve, right, asked, strict=True):
            total += sum(count * math.log(max(q, 1e-12)) for count, q in ((k, p), (n - k, 1 - p)) if count)
        return total

    grid = [i / 12 for i in range(13)]
    best = max(likelihood(c) for c in itertools.product(grid, repeat=len(right)) if list(c) == sorted(c, reverse=True))
    assert likelihood(fitted) >= best - 1e-9


def test_a_pooled_accuracy_is_the_quotient_of_its_counts() -> None:
    """29 of 40 and 31 of 40 pool to 60 of 80, .75 exactly: a float below would say that the target is missed."""
    assert isotonic_decreasing([40, 29, 31, 7, 8, 0], [40, 40, 40, 30, 30, 10]) == [1.0, 0.75, 0.75, 0.25, 0.25, 0.0]
    counts = list(itertools.product(range(0, 8, 2), range(1, 8, 2), range(0, 8, 3)))
    for right in counts:  # pool adjacent violators in integers
        blocks: list[tuple[int, int]] = []
        for k in right:
            blocks.append((k, 1))
            while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] < blocks[-1][0] * blocks[-2][1]:
                (a, b), (c, d) = blocks[-2:]
                blocks[-2:] = [(a + c, b + d)]
        assert isotonic_decreasing(right, [7] * 3) == [k / (7 * n) for k, n in blocks for _ in range(n)]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one level"):
        find_edge(lambda _, count: count, 0, AssessmentConfig())
    with pytest.raises(ValueError, match="41 right answers to 40 questions"):
        find_edge(lambda _, count: count + 1, 3, AssessmentConfig())
