"""The slope, its interval and the verdict: against numpy and scipy, by hand, and on thousands of synthetic curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import optimize, stats

from tests.oracles import student_t
from training_core.phases.p6_baking.plateau import (
    PlateauConfig,
    Score,
    above,
    fit,
    judge,
    scatter,
    scores_needed,
    since_new_best,
    student_quantile,
)

THRESHOLD = 0.01
ITERATIONS = 24
SEEDS = 200
CONFIG = PlateauConfig(threshold=THRESHOLD)
T = np.arange(float(ITERATIONS))
RATIOS = (0.25, 0.5, 1.0, 2.0)  # standard error of a score over the threshold: the operating range
MOST_WRONG = 0.05
# Of 200 seeds with a true rate of at most 5 %, at most 20 are wrong in all but 1 of 500 test runs; seeds are fixed.
RISING = {
    "line at the threshold": THRESHOLD * T,
    "line at twice the threshold": 2 * THRESHOLD * T,
    "steep, then at the threshold": np.where(T < 8, 4 * THRESHOLD * T, 24 * THRESHOLD + THRESHOLD * T),
    "saturating, still rising": 0.8 * (1 - np.exp(-T / 18)),  # .0124 an iteration at the end
}


def scores(values: Sequence[float], error: float = 0.0) -> list[Score]:
    return [Score(float(value), error) for value in values]


def noisy(curve: np.ndarray, error: float, seed: int) -> list[Score]:
    return scores(curve + error * np.random.default_rng(seed).normal(size=len(curve)), error)


def first_plateau(series: Sequence[Score], config: PlateauConfig = CONFIG) -> int | None:
    """How many scores had been seen when a plateau was first called."""
    return next((n for n in range(1, len(series) + 1) if judge(series[:n], config).plateau), None)


# --- the regression


@pytest.mark.parametrize("seed", range(5))
def test_slope_and_known_error_are_those_of_a_weighted_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, errors = np.cumsum(rng.integers(1, 4, size=9)), rng.uniform(0.5, 1.2, size=9)
    y = 0.02 * x + rng.normal(size=9) * errors
    (slope, _), covariance = optimize.curve_fit(lambda x, b, a: a + b * x, x, y, sigma=errors, absolute_sigma=True)
    residuals = y - np.polyval(np.polyfit(x, y, 1, w=1 / errors), x)
    chi2 = float(np.sum((residuals / errors) ** 2)) / 7
    line = fit([Score(float(a), float(b)) for a, b in zip(y, errors, strict=True)], x.tolist(), 0.95)
    assert line.slope == pytest.approx(slope, abs=1e-7)  # curve_fit iterates to about 1e-8
    widest = max(stats.norm.ppf(0.975), stats.t.ppf(0.975, 7) * math.sqrt(chi2))
    assert line.half == pytest.approx(math.sqrt(covariance[0, 0]) * widest, rel=1e-6)


def test_without_errors_it_is_the_textbook_regression() -> None:
    y = [0.1, 0.4, 0.35, 0.8, 0.7, 1.1]
    known = stats.linregress(range(6), y)
    line = fit(scores(y), range(6), 0.95)
    assert line.slope == pytest.approx(known.slope, rel=1e-12)
    assert line.half == pytest.approx(stats.t.ppf(0.975, 4) * known.stderr, rel=1e-9)


def test_by_hand() -> None:
    """1, 3, 2, 4 at 0 to 3: slope 4/5; residuals -.3, .9, -.9, .3, so chi2 = 1.8 / 2 / se^2; sum of squares of x 5."""
    line = fit(scores([1, 3, 2, 4], 2.0), range(4), 0.95)
    assert line.slope == pytest.approx(0.8, abs=1e-12)
    assert line.half == pytest.approx(2.0 / math.sqrt(5) * 4.302653 * math.sqrt(0.9 / 4), rel=1e-6)  # t(2) wins: 2.04
    larger = fit(scores([1, 3, 2, 4], 3.0), range(4), 0.95)
    assert larger.half == pytest.approx(3.0 / math.sqrt(5) * 1.959964, rel=1e-6)  # the known errors win


def test_a_score_with_error_zero_among_others_does_not_rule_the_fit() -> None:
    """A share of 0 of 64 has an estimated error of 0. It weighs as if its squared error were a tenth of the mean."""
    values, errors = [0.0, 0.1, 0.1, 0.2], [0.0, 0.1, 0.1, 0.1]
    floor = math.sqrt(0.1 * 0.03 / 4)
    line = fit([Score(*pair) for pair in zip(values, errors, strict=True)], range(4), 0.95)
    known = np.polyfit(range(4), values, 1, w=[1 / floor, 10, 10, 10])
    assert line.slope == pytest.approx(known[0], rel=1e-9)


def test_student_inverts_the_finite_sums_and_is_that_of_scipy() -> None:
    for degrees in (1, 2, 3, 4, 5, 8, 13, 40):
        for p in (0.5, 0.6, 0.9, 0.975, 0.995, 0.9995):
            assert student_t.cdf(student_quantile(p, degrees), degrees) == pytest.approx(p, abs=1e-12)
            assert student_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-9, abs=1e-12)
        for t in (-3.0, -0.5, 0.0, 1.0, 12.7):
            assert student_t.cdf(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-12)
    for wrong in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="degree of freedom"):
            student_quantile(*wrong)


@pytest.mark.parametrize(("told", "true"), [(1.0, 1.0), (0.0, 1.0), (0.3, 1.0)])
def test_the_interval_covers_the_slope(told: float, true: float) -> None:
    """Whether the errors are told rightly, not at all or far too small: at least 95 % less 3 standard deviations."""
    rng, covered, draws = np.random.default_rng(7), 0, 1500
    for _ in range(draws):
        line = fit(scores(0.3 * np.arange(6) + true * rng.normal(size=6), told), range(6), 0.95)
        covered += abs(line.slope - 0.3) <= line.half
    assert covered / draws >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


# --- new bests


def test_since_new_best_counts_from_the_last_significant_one() -> None:
    """z = 1.96 and equal errors of 1: a new best is 2.77 above the last."""
    x = range(6)
    assert since_new_best(scores([0, 2.7, 2.7, 2.7, 2.7, 2.7], 1.0), x, 0.95) == 5
    assert since_new_best(scores([0, 2.8, 2.7, 5.5, 2.7, 2.7], 1.0), x, 0.95) == 4
    assert since_new_best(scores([0, 2.8, 2.7, 5.6, 2.7, 2.7], 1.0), x, 0.95) == 2
    assert since_new_best(scores([0, 1, 2, 3, 4, 5], 1.0), x, 0.95) == 2, "a slow rise is a new best at 3"
    assert since_new_best(scores([0, 1, 2, 3, 4, 5], 1.0), x, 0.95, least=2.0) == 5, "6 at least is needed then"
    assert since_new_best(scores([0, 9], 1.0), [0, 4], 0.95) == 0
    assert since_new_best(scores([9, 0], 1.0), [0, 4], 0.95) == 4


def test_scatter_is_of_single_scores_whatever_their_trend_and_one_step() -> None:
    """Steps 1, 3, 1, 9: median 2, deviations 1, 1, 1, 7: 1 / .6745 / sqrt(2)."""
    assert scatter(scores([0, 1, 4, 5, 14])) == pytest.approx(1 / stats.norm.ppf(0.75) / math.sqrt(2), rel=1e-9)
    assert scatter(scores(0.3 * np.arange(9))) == pytest.approx(0.0, abs=1e-12)
    assert scatter(scores([0, 1])) == 0.0
    noise = np.random.default_rng(0).normal(size=4001)
    assert scatter(scores(noise + 0.5 * np.arange(4001))) == pytest.approx(1.0, abs=0.05)


def test_above_needs_both_errors() -> None:
    assert above(Score(5.0, 1.0), Score(0.0, 2.0), 0.95)  # 1.96 sqrt(5) = 4.38
    assert not above(Score(4.3, 1.0), Score(0.0, 2.0), 0.95)
    assert not above(Score(0.0, 0.0), Score(0.0, 0.0), 0.95)


# --- the verdict


def test_fewer_scores_than_the_window_are_no_plateau() -> None:
    for n in range(1, CONFIG.window):
        verdict = judge(scores([0.5] * n, 0.0001), CONFIG)
        assert not verdict.plateau
        assert verdict.slope is verdict.slope_low is verdict.slope_high is None
        assert verdict.why == f"{n} of the 5 scores it takes"
        assert verdict.since_best == n - 1
    assert judge(scores([0.5] * 5, 0.0001), CONFIG).plateau


def test_both_conditions_are_needed() -> None:
    flat = judge(scores([0.1, 0.1, 0.5, 0.5, 0.5], 0.002), PlateauConfig(window=3, patience=4, threshold=0.01))
    assert not flat.plateau
    assert flat.since_best == 2
    assert flat.slope == pytest.approx(0.0, abs=1e-12)
    assert flat.why.endswith("below 0.01, but only 2 iterations since a significant new best, of 4")
    slow = judge(scores(0.011 * np.arange(8), 0.004), PlateauConfig(patience=1, threshold=0.01))
    assert not slow.plateau
    assert slow.slope_high is not None
    assert slow.slope_high > 0.011
    assert slow.since_best >= 1, "no single step is significant, the slope is"


def test_patience_is_the_number_of_iterations_after_the_best() -> None:
    config = PlateauConfig(window=3, patience=3, threshold=0.01)
    series = scores([0.1, 0.5, 0.5, 0.5, 0.5], 0.002)
    assert [judge(series[:n], config).plateau for n in (4, 5)] == [False, True]


def test_without_errors_a_record_within_the_scatter_is_no_new_best() -> None:
    assert judge(scores([0.5, 0.512, 0.49, 0.505, 0.5125]), CONFIG).since_best == 4
    assert judge(scores([0.5, 0.512, 0.49, 0.505, 0.6]), CONFIG).since_best == 0


def test_a_falling_series_is_a_plateau() -> None:
    verdict = judge(scores([0.9, 0.8, 0.7, 0.6, 0.5], 0.001), CONFIG)
    assert verdict.plateau
    assert verdict.slope == pytest.approx(-0.1, abs=1e-12)


def test_the_window_grows_only_as_far_as_needed_and_allowed() -> None:
    used = {ratio: judge(scores([0.5] * 24, ratio * THRESHOLD), CONFIG).used for ratio in (0.25, 0.5, 1.0, 2.0, 4.0)}
    assert used == {0.25: 5, 0.5: 5, 1.0: 7, 2.0: 11, 4.0: 16}
    assert [scores_needed(ratio * THRESHOLD, CONFIG) for ratio in (0.5, 1.0, 2.0, 4.0)] == [5, 7, 11, 18]
    assert judge(scores([0.5] * 24, 0.02), CONFIG.model_copy(update={"adaptive": False})).used == 5
    far = judge(scores([0.5] * 24, 0.2), CONFIG)
    assert not far.plateau
    assert "too uncertain to tell a plateau from a rise of 0.01" in far.why


def test_iterations_without_a_score_count_in_the_slope() -> None:
    """A rise of .03 in five scores over 12 iterations is .0025 an iteration, not .0075."""
    series = scores([0.5, 0.5075, 0.515, 0.5225, 0.53], 0.0001)
    assert not judge(series, PlateauConfig(threshold=0.005, patience=1)).plateau
    verdict = judge(series, PlateauConfig(threshold=0.005, patience=1), at=[0, 3, 6, 9, 12])
    assert verdict.slope == pytest.approx(0.0025, abs=1e-9)
    assert not verdict.plateau, "the last is a significant best"
    assert verdict.since_best == 0


@pytest.mark.parametrize("at", [[0, 1], [0, 1, 1], [2, 1, 3]])
def test_iterations_must_rise(at: list[int]) -> None:
    with pytest.raises(ValueError, match="must rise and name the iteration of each of 3 scores"):
        judge(scores([1, 2, 3]), CONFIG, at)


def test_what_is_no_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="begin with the baseline"):
        judge([], CONFIG)
    for value, error in ((math.nan, 0.1), (math.inf, 0.1), (0.5, -0.1), (0.5, math.nan), (0.5, math.inf)):
        with pytest.raises(ValueError, match="must be finite"):
            Score(value, error)
    for wrong in (
        {"window": 2},
        {"threshold": 0.0},
        {"patience": 0},
        {"confidence": 0.5},
        {"window": 9, "max_window": 8},
    ):
        with pytest.raises(ValidationError):
            PlateauConfig(**wrong)
    assert PlateauConfig(window=9, max_window=8, adaptive=False).window == 9


# --- the promise, within the operating range


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", RISING)
def test_what_rises_is_never_called_a_plateau_before_the_end_in_95_percent_of_seeds(name: str, ratio: float) -> None:
    wrong = sum(first_plateau(noisy(RISING[name], ratio * THRESHOLD, seed)) is not None for seed in range(SEEDS))
    assert wrong / SEEDS <= MOST_WRONG


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_flat_start_is_called_within_a_window_and_a_half(ratio: float) -> None:
    most = math.ceil(1.5 * max(CONFIG.window, scores_needed(ratio * THRESHOLD, CONFIG)))
    called = [first_plateau(noisy(np.full(ITERATIONS, 0.4), ratio * THRESHOLD, seed)) for seed in range(SEEDS)]
    assert all(n is not None and CONFIG.window <= n <= most for n in called)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_plateau_after_a_rise_is_called_within_two_windows_and_not_before(ratio: float) -> None:
    rise, length = 8, max(CONFIG.window, scores_needed(ratio * THRESHOLD, CONFIG))
    curve = np.minimum(np.arange(rise + 2.0 * length + 3), rise) * 4 * THRESHOLD
    called = [first_plateau(noisy(curve, ratio * THRESHOLD, seed)) for seed in range(SEEDS)]
    assert all(n is not None for n in called)
    assert sum(n <= rise for n in called if n is not None) <= MOST_WRONG * SEEDS
    assert max(n for n in called if n is not None) <= rise + 2 * length + 3


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.slow
def test_a_step_after_a_flat_part_resets(ratio: float) -> None:
    """A flat part that was called a plateau, then a step of 12 errors: no plateau while it is new, then one again."""
    error = ratio * THRESHOLD
    length = max(CONFIG.window, scores_needed(error, CONFIG))
    flat = math.ceil(1.5 * length)
    curve = np.concatenate([np.full(flat, 0.4), np.full(2 * length + 3, 0.4 + 12 * error)])
    for seed in range(SEEDS):
        series = noisy(curve, error, seed)
        assert any(judge(series[:n], CONFIG).plateau for n in range(1, flat + 1))
        after = [judge(series[:n], CONFIG).plateau for n in range(flat + 1, len(series) + 1)]
        assert not any(after[: CONFIG.patience])
        assert any(after[CONFIG.patience :])


@pytest.mark.slow
def test_scores_without_errors_are_judged_by_their_scatter() -> None:
    """Their own errors unknown: a rise of 1.5 times the threshold is safe, and a flat series is called."""
    for ratio in (0.5, 1.0, 2.0):
        called = 0
        for seed in range(SEEDS):
            noise = ratio * THRESHOLD * np.random.default_rng(seed).normal(size=ITERATIONS)
            called += first_plateau(scores(1.5 * THRESHOLD * T + noise)) is not None
            assert first_plateau(scores(0.4 + noise)) is not None
        assert called / SEEDS <= MOST_WRONG


@pytest.mark.slow
def test_noise_alone_ends_no_series_that_is_too_noisy_to_tell() -> None:
    """Beyond the range (error 6 times the threshold, 16 scores at most) nothing is called on 40 scores that rise."""
    wrong = sum(
        first_plateau(noisy(THRESHOLD * np.arange(40.0), 6 * THRESHOLD, seed)) is not None for seed in range(SEEDS)
    )
    assert wrong / SEEDS <= 2 * MOST_WRONG
