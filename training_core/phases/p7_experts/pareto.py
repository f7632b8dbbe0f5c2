"""Compositions that no other is better than in everything, how much of a box they cover, and the one that is used.

All objectives are minimised. a dominates b when a is nowhere above b and somewhere below it.

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
KEPT_GAIN = 0.9  # of the largest gain in accuracy, that the point in use has


@dataclass(frozen=True, slots=True)
class Box:
    """Lowest and highest value (M,) of every objective between which the hypervolume is counted.

    Raises:
        ValueError: when the highest of an objective does not exceed its lowest.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"a box needs low < high in every objective, got {self.low} and {self.high}: widen it")

    def unit(self, objectives_NM: Floats) -> Floats:
        """The objectives with the box as unit cube. What lies below its low end counts as on it."""
        low, high = np.array(self.low), np.array(self.high)
        scaled: Floats = np.clip((objectives_NM - low) / (high - low), 0.0, None)
        return scaled

    def document(self) -> dict[str, Any]:
        """As part of an exhibit."""
        return {"low": list(self.low), "high": list(self.high)}


def non_dominated(objectives_NM: Floats) -> list[int]:
    """The first front of [1], section III A, in the order given; of points that are equal in everything the first."""
    if not len(objectives_NM):
        return []
    above = objectives_NM[:, None] > objectives_NM[None, :]
    dominates = ~above.any(-1) & (objectives_NM[:, None] < objectives_NM[None, :]).any(-1)
    equal_before = np.triu((objectives_NM[:, None] == objectives_NM[None, :]).all(-1), 1)
    return [int(i) for i in np.flatnonzero(~(dominates | equal_before).any(0))]


def hypervolume(objectives_NM: Floats, box: Box) -> float:
    """Share of the box, in [0, 1], that the points dominate [2]. A point outside the box contributes nothing."""
    hv = _hv()
    return float(hv(ref_point=np.ones(len(box.low)))(box.unit(objectives_NM))) if len(objectives_NM) else 0.0


def knee(objectives_NM: Floats, allowed: Sequence[bool], reference: int) -> int:
    """The cheapest allowed point that keeps nine tenths of the largest gain.

    Gain is how far the first objective lies below that of the point `reference`, the largest that of any allowed point.
    What a point costs are its other objectives, each brought to [0, 1] over all points, added up; one that is the same
    everywhere counts for nothing. Of points that cost alike the one with the larger gain, of those the first. Beyond
    nine tenths of what there is to gain, more of it is bought dearly: where the curve bends.

    Raises:
        ValueError: when no point is allowed.
    """
    if not any(allowed):
        raise ValueError("no point is allowed to be the knee: give the unadapted model's as well")
    low, span = objectives_NM.min(0), np.ptp(objectives_NM, axis=0)
    unit_NM = (objectives_NM - low) / np.where(span > 0, span, 1.0)
    costs = unit_NM[:, 1:].sum(1)
    gains = objectives_NM[reference, 0] - objectives_NM[:, 0]
    there = np.flatnonzero(allowed)
    enough = [i for i in there if gains[i] >= KEPT_GAIN * gains[there].max()]
    return int(min(enough, key=lambda i: (float(costs[i]), -float(gains[i]), i)))


def _hv() -> Any:
    try:
        from pymoo.indicators.hv import HV  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("hypervolumes are computed by pymoo, which is not installed: " + PYMOO) from error
    return HV


PYMOO = "pip install 'pymoo>=0.6.1.6'"
