"""Adaptive assessment: accuracy by level with intervals, and the edge, the hardest level that a model still masters.

A level is mastered when its accuracy is at least `target`. Accuracy is assumed not to rise with difficulty, so all
levels are fitted jointly by isotonic regression (pool adjacent violators; Barlow et al., 1972). Questions are spent
where the decision is still open: on the two levels next to the edge, until their intervals exclude the target or the
limit of questions is reached.

Shape legend: L levels, from the easiest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from training_core.evaluation.intervals import wilson
from training_core.record import Estimate

Ask = Callable[[int, int], int]  # (level, count) -> number of right answers to `count` fresh questions


class AssessmentConfig(BaseModel):
    """Question budget of an assessment, and the accuracy that counts as mastery."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: float = Field(0.75, gt=0, lt=1, description="Accuracy at which a level is mastered")
    first_questions: int = Field(40, ge=1, description="Questions asked at every level")
    more_questions: int = Field(40, ge=1, description="Questions added at a time where the edge is undecided")
    most_questions: int = Field(400, ge=1, description="Maximum number of questions at one level")


@dataclass(frozen=True, slots=True)
class LevelAccuracy:
    """Counts for one level, its own Wilson interval, and its value in the isotonic fit over all levels."""

    level: int
    asked: int
    right: int
    interval: Estimate
    fitted: float


@dataclass(frozen=True, slots=True)
class Assessment:
    """All levels, and the `edge`: the hardest level whose fitted accuracy reaches the target, 0 when none does."""

    levels: tuple[LevelAccuracy, ...]
    edge: int

    def frontier(self, low: float = 0.2, high: float = 0.8) -> tuple[int, ...]:
        """Return the levels whose fitted accuracy lies in [low, high]: neither mastered nor out of reach."""
        return tuple(level.level for level in self.levels if low <= level.fitted <= high)


def find_edge(ask: Ask, num_levels: int, config: AssessmentConfig) -> Assessment:
    """Ask questions until the edge is decided or the budget is spent, and return the assessment.

    Raises:
        ValueError: when there are no levels, or `ask` reports more right answers than questions.
    """
    if num_levels < 1:
        raise ValueError("an assessment needs at least one level")
    asked, right = [0] * num_levels, [0] * num_levels

    def put(level: int, count: int) -> None:
        correct = ask(level, count)
        if not 0 <= correct <= count:
            raise ValueError(f"level {level}: {correct} right answers to {count} questions is not a count")
        asked[level - 1] += count
        right[level - 1] += correct

    for level in range(1, num_levels + 1):
        put(level, min(config.first_questions, config.most_questions))
    while open_levels := _undecided(asked, right, config):
        for level in open_levels:
            put(level, min(config.more_questions, config.most_questions - asked[level - 1]))
    fitted = isotonic_decreasing(right, asked)
    levels = tuple(
        LevelAccuracy(level, n, k, wilson(k, n), p)
        for level, n, k, p in zip(range(1, num_levels + 1), asked, right, fitted, strict=True)
    )
    return Assessment(levels, _edge(fitted, config.target))


def isotonic_decreasing(right: Sequence[int], asked: Sequence[int]) -> list[float]:
    """Return the maximum-likelihood accuracies that do not rise with the level (pool adjacent violators, weighted by
    the number of questions)."""
    from scipy.optimize import isotonic_regression  # phase 1 reaches this module and runs without scipy

    accuracies = [k / n for k, n in zip(right, asked, strict=True)]
    blocks = isotonic_regression(accuracies, weights=asked, increasing=False).blocks.tolist()
    # Recomputed from the integer counts: 60 of 80 is exactly .75, and a level exactly at the target is mastered.
    return [
        sum(right[first:end]) / sum(asked[first:end])
        for first, end in itertools.pairwise(blocks)
        for _ in range(first, end)
    ]


def _edge(fitted: Sequence[float], target: float) -> int:
    return max((level for level, p in enumerate(fitted, 1) if p >= target), default=0)


def _undecided(asked: Sequence[int], right: Sequence[int], config: AssessmentConfig) -> list[int]:
    """The levels next to the edge whose interval still contains the target and whose budget is not spent."""
    edge = _edge(isotonic_decreasing(right, asked), config.target)
    neighbours = [level for level in (edge, edge + 1) if 1 <= level <= len(asked)]
    result = []
    for level in neighbours:
        interval = wilson(right[level - 1], asked[level - 1])
        if interval.low <= config.target <= interval.high and asked[level - 1] < config.most_questions:
            result.append(level)
    return result
