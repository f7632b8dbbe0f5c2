"""Confidence intervals: bootstrap over documents for rates, Wilson score interval for proportions."""

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

    Raises:
        ValueError: when there are no trials.
    """
    if trials <= 0:
        raise ValueError("a proportion needs at least one trial")
    p = successes / trials
    centre = (p + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
    half = Z95 * math.sqrt(p * (1 - p) / trials + Z95**2 / (4 * trials**2)) / (1 + Z95**2 / trials)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def percentile_interval(value: float, samples: Tensor, tail: float = 0.025) -> Estimate:
    """Return a value with the quantiles `tail` and 1 - `tail` of its resamples, (resamples,) float64 (Efron, 1979)."""
    low, high = torch.quantile(samples, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)
