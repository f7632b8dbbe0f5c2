"""Tango's score statistic for a difference of paired proportions (1998), straight from its definition.

The restricted likelihood is maximised numerically, not by the paper's closed form.
"""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar


def score(b: float, c: float, n: float, difference: float) -> float:
    """(b - c - n D) / sqrt(n (p12 + p21 - D^2)) at the likeliest p21 under p12 - p21 = D."""

    def loss(p21: float) -> float:
        p12, rest = p21 + difference, 1 - 2 * p21 - difference
        terms = ((b, p12), (c, p21), (n - b - c, rest))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count > 0)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    p21 = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x)
    for edge in bounds:
        p21 = edge if loss(edge) <= loss(p21) else p21
    variance = n * (2 * p21 + difference - difference**2)
    return (b - c - n * difference) / math.sqrt(variance)
