"""The Pareto front of compositions, its hypervolume, and the knee, which is the point that is used.

All objectives are minimised. a dominates b if it is at most b in every objective and below b in at least one.

References
    [1] Deb, Pratap, Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002).
    [2] Zitzler and Thiele, "Multiobjective optimization using evolutionary algorithms" (1998): the hypervolume.

Shape legend: N points, M objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
KEPT_GAIN = 0.9  # share of the largest accuracy gain that the knee must have


@dataclass(frozen=True, slots=True)
class Box:
    """The box in which hypervolume is measured: the lowest and the highest value (M,) of every objective.

    Raises:
        ValueError: when the highest value of an objective does not exceed the lowest.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"a box needs low < high in every objective, got {self.low} and {self.high}: widen it")

    def unit(self, objectives_NM: Floats) -> Floats:
        """Scale the objectives so that the box becomes the unit cube; values below its low end are clipped to it."""
        low, high = np.array(self.low), np.array(self.high)
        scaled: Floats = np.clip((objectives_NM - low) / (high - low), 0.0, None)
        return scaled

    def document(self) -> dict[str, Any]:
        """Return the box as JSON."""
        return {"low": list(self.low), "high": list(self.high)}


def non_dominated(objectives_NM: Floats) -> list[int]:
    """Return the indices of the non-dominated points (first front of [1], section III A), without duplicates."""
    if not len(objectives_NM):
        return []
    above = objectives_NM[:, None] > objectives_NM[None, :]
    dominates = ~above.any(-1) & (objectives_NM[:, None] < objectives_NM[None, :]).any(-1)
    equal_before = np.triu((objectives_NM[:, None] == objectives_NM[None, :]).all(-1), 1)
    return [int(i) for i in np.flatnonzero(~(dominates | equal_before).any(0))]


def hypervolume(objectives_NM: Floats, box: Box) -> float:
    """Return the share of the box, in [0, 1], that the points dominate [2]. Points outside it contribute nothing."""
    hv = _hv()
    return float(hv(ref_point=np.ones(len(box.low)))(box.unit(objectives_NM))) if len(objectives_NM) else 0.0


def knee(objectives_NM: Floats, allowed: Sequence[bool], reference: int) -> int:
    """Return the index of the cheapest allowed point that has at least nine tenths of the largest gain.

    The gain of a point is the decrease of its first objective from that of the point `reference`; the largest is taken
    over allowed points. Its cost is the sum of its other objectives, each scaled to [0, 1] over all points (constant
    ones count as 0). Ties in cost go to the larger gain, then to the first point. Beyond nine tenths, further gains are
    expensive: this is where the curve bends.

    Raises:
        ValueError: when no point is allowed.
    """
    if not any(allowed):
        raise ValueError("no point is allowed to be the knee: give the unadapted model's as well")
    low, span = objectives_NM.min(0), np.ptp(objectives_NM, axis=0)
    unit_NM = (objectives_NM - low) / np.where(span > 0, span, 1.0)
    costs = unit_NM[:, 1:].sum(1)
    gains = objectives_NM[reference, 0] - objectives_NM[:, 0]
    candidates = np.flatnonzero(allowed)
    enough = [i for i in candidates if gains[i] >= KEPT_GAIN * gains[candidates].max()]
    return int(min(enough, key=lambda i: (float(costs[i]), -float(gains[i]), i)))


def _hv() -> Any:
    try:
        from pymoo.indicators.hv import HV  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("hypervolumes are computed by pymoo, which is not installed: " + PYMOO) from error
    return HV


PYMOO = "pip install 'pymoo>=0.6.1.6'"
