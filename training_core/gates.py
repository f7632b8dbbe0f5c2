"""Quality gates and claims as data: which measured number must lie on which side of which threshold.

A *gate* blocks what comes after it; a *claim* is reported (and stays red when it fails) but does not block.
The thresholds themselves stand in `forge_assets.gate_table`, under version control, not in any run's configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition on one measured metric of one asset.

    `metric` is a key of the bundle's `metrics`; where the condition is about an interval, it names the
    interval's conservative end (for instance `retention_low`). `against` names what the metric compares with.
    """

    asset: str
    name: str
    metric: str
    direction: Literal["at_least", "at_most"]
    threshold: float
    evidence: str
    against: str = ""
    blocking: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate applied to a measurement. `value` is None when the metric was not measured: then it fails."""

    gate: Gate
    value: float | None
    passed: bool

    def describe(self) -> str:
        """One line that states metric, value, direction and threshold."""
        sign = ">=" if self.gate.direction == "at_least" else "<="
        value = "not measured" if self.value is None else f"{self.value:.6g}"
        state = "passed" if self.passed else "FAILED"
        return f"{self.gate.name} {state}: {self.gate.metric} = {value}, required {sign} {self.gate.threshold:g}"


def judge(gate: Gate, metrics: Mapping[str, float]) -> Verdict:
    """Apply `gate` to measured `metrics`. A missing or non-finite metric fails: absence is never a pass."""
    value = metrics.get(gate.metric)
    if value is None or not math.isfinite(value):
        return Verdict(gate, None if value is None else value, passed=False)
    ok = value >= gate.threshold if gate.direction == "at_least" else value <= gate.threshold
    return Verdict(gate, value, passed=ok)
