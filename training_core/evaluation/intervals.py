"""Confidence intervals: bootstrap over documents for rates, score intervals for proportions and paired differences.

A bootstrap of equal values has no width: 24 wrong answers of 24 would give 0.00 (0.00 to 0.00). Score intervals keep
theirs, so whatever is a share of right answers has one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training_core.record import Estimate

RESAMPLES = 1000
Z95 = 1.959963984540054


def resample_weights(num_documents: int, seed: int = 0) -> Tensor:
    """Return the multiplicity of each document in each bootstrap sample, (RESAMPLES, documents) float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, num_documents, (RESAMPLES, num_documents), generator=generator)
    weights = torch.zeros(RESAMPLES, num_documents, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def rate(numerator: Tensor, denominator: Tensor) -> Estimate:
    """Return sum(numerator) / sum(denominator) over documents, with a percentile bootstrap (Efron, 1979)."""
    weights = resample_weights(numerator.shape[0])
    samples = (weights @ numerator.double()) / (weights @ denominator.double())
    return percentile_interval(float(numerator.double().sum() / denominator.double().sum()), samples)


def difference_of_rates(numerator: Tensor, other: Tensor, denominator: Tensor) -> Estimate:
    """Return (sum(numerator) - sum(other)) / sum(denominator) with a paired bootstrap over documents."""
    return rate(numerator.double() - other.double(), denominator)


def wilson(successes: float, trials: float) -> Estimate:
    """Return a proportion with its Wilson score interval at 95 % (Wilson, 1927).

    A trial may succeed in part (a tie, a probability of being right): an outcome in 0 .. 1 has at most the variance of
    one that is 0 or 1, so the interval is conservative then.

    Raises:
        ValueError: when there are no trials, or not 0 <= successes <= trials.
    """
    if trials <= 0:
        raise ValueError("a proportion needs at least one trial")
    if not 0 <= successes <= trials * (1 + 1e-12):
        raise ValueError(f"successes must lie in [0, {trials}], the number of trials, got {successes}")
    p = min(1.0, successes / trials)
    centre = (p + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
    half = Z95 * math.sqrt(p * (1 - p) / trials + Z95**2 / (4 * trials**2)) / (1 + Z95**2 / trials)
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def proportion(successes: Tensor, trials: Tensor) -> Estimate:
    """Return sum(successes) / sum(trials) over clusters of trials (documents, templates), with a bootstrap over them.

    Where all clusters have the same share, Wilson's interval replaces it, with a cluster as one trial.
    """
    estimate = rate(successes, trials)
    shares = successes.double() / trials.double()
    if float(shares.max() - shares.min()) > 0:
        return estimate
    return wilson(float(shares.sum()), len(shares))


def difference_of_proportions(own: Tensor, other: Tensor, trials: Tensor) -> Estimate:
    """Return (sum(own) - sum(other)) / sum(trials) over clusters of trials, with a paired bootstrap over them.

    Where the two differ by the same share in all clusters, `paired_difference` of the shares replaces it.
    """
    estimate = difference_of_rates(own, other, trials)
    shares, others = own.double() / trials.double(), other.double() / trials.double()
    if float((shares - others).max() - (shares - others).min()) > 0:
        return estimate
    return paired_difference(shares, others)


def weighted_proportion(outcomes: Tensor, weights: Tensor) -> Estimate:
    """Return the weighted mean of outcomes in 0 .. 1 with Wilson's interval at Kish's effective number of trials.

    n_eff = (sum w)^2 / sum w^2 (Kish, 1965, "Survey sampling", section 8.2); equal weights give all trials.
    """
    value, effective = _weighted(outcomes, weights)
    return wilson(value * effective, effective)


def paired_difference(own: Tensor, other: Tensor, weights: Tensor | None = None) -> Estimate:
    """Return the difference of two proportions on the same items, with Tango's score interval at 95 %.

    own, other: outcomes of each item in 0 .. 1. weights: of the items, equal by default; n is Kish's effective number.
    For b items that only the first solves and c that only the other does, the interval holds all D with |Z(D)| <= 1.96,

        Z(D) = (b - c - n D) / sqrt(n (2 q + D (1 - D)))                                  # eq. 24

    where q is the likeliest share of c under D: the larger root of 2n q^2 + A q - c D (1 - D) = 0 with
    A = -b - c + (2n - b + c) D (Tango, 1998, Statistics in Medicine 17:891). Without a pair that differs it is
    +-1.96^2 / (n + 1.96^2).

    **Differs from the paper**: outcomes between 0 and 1 add their positive differences to b and their negative ones to
    c. As d^2 <= |d|, the interval is conservative then.

    Raises:
        ValueError: for no items, or outcomes outside 0 .. 1.
    """
    if not len(own) or len(own) != len(other):
        raise ValueError(f"outcomes are compared item by item, got {len(own)} and {len(other)}: measure both on all")
    for outcomes in (own, other):
        if not 0 <= float(outcomes.min()) <= float(outcomes.max()) <= 1:
            raise ValueError(f"outcomes must lie in [0, 1], got {float(outcomes.min())} .. {float(outcomes.max())}")
    difference = own.double() - other.double()
    given = torch.ones_like(difference) if weights is None else weights
    better, n = _weighted(difference.clamp_min(0), given)
    worse, _ = _weighted((-difference).clamp_min(0), given)
    value = better - worse
    return Estimate(
        value,
        -_furthest(worse * n, better * n, n, -value),
        _furthest(better * n, worse * n, n, value),
    )


def _weighted(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """The weighted mean of values, and Kish's effective number of them."""
    w = weights.double()
    return float((values.double() * w).sum() / w.sum()), float(w.sum() ** 2 / (w**2).sum())


def _furthest(b: float, c: float, n: float, value: float) -> float:
    """The largest D whose Z is not below -1.96, by bisection between the difference itself and 1."""
    low, high = value, 1.0
    for _ in range(60):
        d = (low + high) / 2
        a = -b - c + (2 * n - b + c) * d
        q = (math.sqrt(max(0.0, a * a + 8 * n * c * d * (1 - d))) - a) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * q + d * (1 - d))))
        low, high = (d, high) if n * d - (b - c) <= Z95 * spread else (low, d)
    return low


def percentile_interval(value: float, samples: Tensor, tail: float = 0.025) -> Estimate:
    """Return a value with the quantiles `tail` and 1 - `tail` of its resamples, (resamples,) float64 (Efron, 1979)."""
    low, high = torch.quantile(samples, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)
