"""Plateau detection in a series of measured scores, by a regression of the last scores that accounts for their errors.

A plateau is declared when two conditions hold at once:

1. The slope over the last `window` scores is below `threshold`. With weights w_i = 1 / se_i^2, iterations x_i and
   weighted means x, y (weighted least squares):

       slope   = sum w_i (x_i - x)(y_i - y) / sum w_i (x_i - x)^2                                 (1)
       s_known = (sum w_i (x_i - x)^2)^(-1/2)                                                     (2)
       chi2    = sum w_i (y_i - y - slope (x_i - x))^2 / (n - 2)                                  (3)
       half    = s_known max(z, t_(n-2) chi2^(1/2))                                               (4)

   and slope + half < threshold. The first term of (4) is the CI if the scores' own errors are the only noise; the
   second relies on the scatter about the line alone. The wider of the two covers the slope in both cases, also where
   training is noisier than the measurement.
2. `patience` iterations have passed since the last significant new best: a score that is above the previous such best
   by more than z standard errors of their difference.

Condition 1 detects a rise that is too slow to show in single steps; condition 2 detects a jump after a flat stretch.

**Operating range.** The slope over n scores of standard error se, one per iteration, is known to
half = z se (12 / (n (n^2 - 1)))^(1/2). A flat series can be distinguished from a rise of `threshold` when
2 half <= threshold: with at least 5 scores at threshold = 2 se, 7 at se, 11 at se / 2, 18 at se / 4 (`scores_needed`).
With `adaptive`, the window grows from `window` up to `max_window` until this holds. In this range, a series that rises
by `threshold` or more is called a plateau at none of 24 iterations in 95 % of cases, and a flat one always, within 1.5
windows. The series is tested after every iteration, so a single test needs a confidence above 95 %; hence the default
of `confidence`. If max_window cannot resolve the threshold, a plateau is called rarely or never, and `why` says so: the
caller needs its own limit on iterations. Scores without errors (`standard_error` 0) are judged by their scatter alone;
then only a rise of 1.5 times the threshold is safe from being called a plateau.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LEAST_WEIGHED = 0.1  # floor on squared errors, as a share of their mean: bounds the weight of a single score


@dataclass(frozen=True, slots=True)
class Score:
    """A measured score, higher is better, and its standard error.

    The error should only include what varies between scores. Scores on the same questions share the sampling error of
    the questions: pass the standard error of the paired difference divided by sqrt(2), or the plain one, which is
    conservative.

    Raises:
        ValueError: when the value is not finite, or the error not finite and at least 0.
    """

    value: float
    standard_error: float

    def __post_init__(self) -> None:
        """Check that value and error are finite and the error is not negative."""
        if not math.isfinite(self.value):
            raise ValueError(f"a score must be finite, got {self.value}: an iteration without a score has failed")
        if not (math.isfinite(self.standard_error) and self.standard_error >= 0):
            raise ValueError(f"a standard error must be finite and at least 0, got {self.standard_error}")


class PlateauConfig(BaseModel):
    """The rule by which a series counts as a plateau."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(5, ge=3, description="Scores in the regression; fewer are never a plateau")
    threshold: float = Field(0.01, gt=0, description="Rise of the score per iteration below which it is flat")
    patience: int = Field(3, ge=1, description="Iterations without a significant new best before a plateau")
    adaptive: bool = Field(True, description="Grow the window until the slope's CI can resolve the threshold")
    max_window: int = Field(16, ge=3, description="Maximum number of scores in the regression")
    confidence: float = Field(0.99, gt=0.5, lt=1, description="Confidence level of each test (slope, new best)")

    @model_validator(mode="after")
    def _window_can_grow(self) -> Self:
        if self.adaptive and self.max_window < self.window:
            raise ValueError(f"max_window {self.max_window} is below window {self.window}: raise it or lower window")
        return self


@dataclass(frozen=True, slots=True)
class PlateauVerdict:
    """Whether a series has reached a plateau, and the evidence.

    `slope`, per iteration, and the bounds of its CI are None with fewer than `window` scores. `used` is the number of
    scores in the regression, `since_best` the number of iterations since the last significant new best.
    """

    plateau: bool
    slope: float | None
    slope_low: float | None
    slope_high: float | None
    since_best: int
    used: int
    why: str


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted slope, and the half width of its CI."""

    slope: float
    half: float


def judge(scores: Sequence[Score], config: PlateauConfig, at: Sequence[int] | None = None) -> PlateauVerdict:
    """Return the verdict on `scores`, oldest first.

    at: the iteration of each score, increasing; consecutive if not given. Omit iterations that produced no new model,
    because a repeated score would count as two independent measurements.

    Raises:
        ValueError: when there is no score, or `at` does not rise or has another length.
    """
    x = list(range(len(scores))) if at is None else list(at)
    if not scores:
        raise ValueError("a plateau needs a score: begin with the baseline's")
    if len(x) != len(scores) or any(a >= b for a, b in itertools.pairwise(x)):
        raise ValueError(f"`at` must rise and name the iteration of each of {len(scores)} scores, got {x}")
    if len(scores) < config.window:
        since = since_new_best(scores, x, config.confidence)
        return PlateauVerdict(
            False, None, None, None, since, 0, f"{len(scores)} of the {config.window} scores it takes"
        )
    used = config.window
    line = fit(scores[-used:], x[-used:], config.confidence)
    longest = min(len(scores), config.max_window) if config.adaptive else used
    while used < longest and 2 * line.half > config.threshold:
        used += 1
        line = fit(scores[-used:], x[-used:], config.confidence)
    has_errors = any(score.standard_error > 0 for score in scores)
    since = since_new_best(scores, x, config.confidence, 0.0 if has_errors else scatter(scores[-used:]))
    flat, waited = line.slope + line.half < config.threshold, since >= config.patience
    return PlateauVerdict(
        flat and waited,
        line.slope,
        line.slope - line.half,
        line.slope + line.half,
        since,
        used,
        _why(line, since, used, config),
    )


def fit(scores: Sequence[Score], x: Sequence[int], confidence: float) -> Line:
    """Fit the slope by eqs. (1) to (4). If no score has an error, weights are equal and only the scatter counts.

    If only some errors are 0 (as for a proportion of 0 of 64), they are raised to `LEAST_WEIGHED` of the mean squared
    error.
    """
    n = len(scores)
    squared = [score.standard_error**2 for score in scores]
    mean_squared = math.fsum(squared) / n
    w = [1 / max(s, LEAST_WEIGHED * mean_squared) for s in squared] if mean_squared > 0 else [1.0] * n
    total = math.fsum(w)
    x_mean = math.fsum(wi * xi for wi, xi in zip(w, x, strict=True)) / total
    y_mean = math.fsum(wi * score.value for wi, score in zip(w, scores, strict=True)) / total
    spread = math.fsum(wi * (xi - x_mean) ** 2 for wi, xi in zip(w, x, strict=True))
    slope = math.fsum(wi * (xi - x_mean) * s.value for wi, xi, s in zip(w, x, scores, strict=True)) / spread  # (1)
    residuals = [s.value - y_mean - slope * (xi - x_mean) for xi, s in zip(x, scores, strict=True)]
    chi2 = math.fsum(wi * r**2 for wi, r in zip(w, residuals, strict=True)) / (n - 2)  # (3)
    by_scatter = student_quantile(0.5 + confidence / 2, n - 2) * math.sqrt(chi2)
    by_errors = _z(confidence) if mean_squared > 0 else 0.0
    return Line(slope, max(by_errors, by_scatter) / math.sqrt(spread))  # (2), (4)


def scatter(scores: Sequence[Score]) -> float:
    """Return the standard deviation of single scores, from the median absolute deviation of successive differences.

    It is robust to a steady rise and to a single step. It is 0 for two scores.
    """
    steps = [b.value - a.value for a, b in itertools.pairwise(scores)]
    middle = median(steps)
    return median(abs(step - middle) for step in steps) / NormalDist().inv_cdf(0.75) / math.sqrt(2)


def since_new_best(scores: Sequence[Score], x: Sequence[int], confidence: float, least: float = 0.0) -> int:
    """Return the number of iterations from the last significant new best to the last score.

    `least` is a lower bound on the standard error of each score.
    """
    best = 0
    for i in range(1, len(scores)):
        if above(scores[i], scores[best], confidence, least):
            best = i
    return x[-1] - x[best]


def above(score: Score, other: Score, confidence: float, least: float = 0.0) -> bool:
    """Return whether `score` exceeds `other` by over z standard errors of the difference, each error >= `least`."""
    errors = (max(score.standard_error, least), max(other.standard_error, least))
    return score.value - other.value > _z(confidence) * math.hypot(*errors)


def scores_needed(standard_error: float, config: PlateauConfig) -> int:
    """Return how many scores of this error distinguish a flat series from `threshold` (2 half <= threshold)."""
    n = 3
    while 2 * _z(config.confidence) * standard_error * math.sqrt(12 / (n * (n**2 - 1))) > config.threshold:
        n += 1
    return n


@functools.cache
def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t at or above its median.

    Raises:
        ValueError: when the probability is not in [.5, 1) or there are no degrees of freedom.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"need .5 <= probability < 1 and a degree of freedom, got {probability} and {degrees}")
    from scipy.special import stdtrit  # as scipy.stats.t.ppf does, without the second to import scipy.stats

    return float(stdtrit(degrees, probability))


@functools.cache
def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _why(line: Line, since: int, used: int, config: PlateauConfig) -> str:
    high = line.slope + line.half
    rise = f"{line.slope:+.4f} an iteration ({line.slope - line.half:+.4f} to {high:+.4f}, {used} scores)"
    best = f"{since} iterations since a significant new best"
    if high >= config.threshold:
        if line.half >= config.threshold:
            return f"{rise}: too uncertain to tell a plateau from a rise of {config.threshold:g}"
        return f"{rise}: may still rise by {config.threshold:g}"
    if since < config.patience:
        return f"{rise}: below {config.threshold:g}, but only {best}, of {config.patience}"
    return f"{rise}: below {config.threshold:g}, and {best}"
