"""Student's t distribution for integer degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""

from __future__ import annotations

import math


def cdf(t: float, degrees: int) -> float:
    """Return P(T <= t) = 1/2 + A(t)/2; A is a finite sum of powers of cos(theta), theta = arctan(t / sqrt(degrees))."""
    theta = math.atan(t / math.sqrt(degrees))
    term = math.cos(theta) if degrees % 2 else 1.0
    total = 0.0
    for k in range(2 if degrees % 2 else 1, degrees, 2):
        total += term
        term *= math.cos(theta) ** 2 * k / (k + 1)
    inside = 2 / math.pi * (theta + math.sin(theta) * total) if degrees % 2 else math.sin(theta) * total
    return 0.5 + inside / 2
