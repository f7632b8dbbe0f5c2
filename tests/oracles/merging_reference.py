"""Naive float64 merges of one-dimensional numpy arrays, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def slerp(a: Array, b: Array, t: float) -> Array:
    """Return the slerp of Shoemake (1985), with the angle taken between the normalised vectors."""
    theta = math.acos(np.dot(a / np.linalg.norm(a), b / np.linalg.norm(b)))
    result: Array = (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)
    return result


def ties(base: Array, models: Sequence[Array], weights: Sequence[float], density: float, scale: float) -> Array:
    """Return the merge of TIES-Merging, arXiv:2306.01708, algorithm 1, entry by entry; magnitudes must not tie."""
    size = base.size
    trimmed = []
    for model in models:
        tau = model - base
        top = sorted(range(size), key=lambda i: -abs(tau[i]))[: max(1, math.floor(density * size))]
        trimmed.append([tau[i] if i in top else 0.0 for i in range(size)])
    merged = np.zeros(size)
    for i in range(size):
        gamma = math.copysign(1.0, sum(w * t[i] for w, t in zip(weights, trimmed, strict=True)))
        agreeing = [(w, t[i]) for w, t in zip(weights, trimmed, strict=True) if t[i] * gamma > 0]
        if agreeing:
            merged[i] = sum(w * x for w, x in agreeing) / sum(w for w, _ in agreeing)
    return base + scale * merged


def dare_linear(
    base: Array, models: Sequence[Array], weights: Sequence[float], kept: Sequence[Array], drop_rate: float
) -> Array:
    """Return the weighted mean of DARE's models, arXiv:2311.03099, eq. 3-5, for given Bernoulli masks `kept`."""
    sparse = [m * (model - base) / (1 - drop_rate) for m, model in zip(kept, models, strict=True)]
    return base + sum(w * tau for w, tau in zip(weights, sparse, strict=True)) / sum(weights)


def dare_ties(
    base: Array, models: Sequence[Array], weights: Sequence[float], kept: Sequence[Array], drop_rate: float
) -> Array:
    """Return DARE's sparse task vectors merged by TIES without trimming."""
    sparse = [base + m * (model - base) / (1 - drop_rate) for m, model in zip(kept, models, strict=True)]
    return ties(base, sparse, weights, density=1.0, scale=1.0)
