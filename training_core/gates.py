"""Quality gates and claims as data: which measured number must lie on which side of which threshold.

A *gate* blocks what comes after it; a *claim* is reported (and stays red when it fails) but does not block.
The thresholds stand in the `gates.py` of each phase, under version control, not in any run's configuration.
Neither this module nor those load torch: the run coordinator reads them in the webserver and in the daemon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from training_core.evaluation.result import SuiteResult
from training_core.record import of
from training_core.tasks.result import SandboxResult

SUITE = of(SuiteResult)
ABOVE_ZERO = 1e-4  # for a lower bound: beyond chance
Threshold = float | Mapping[str, float]  # by profile, where the unit grows with the model


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition on one measured metric of one asset.

    `metric` is a key of the bundle's `metrics`; where the condition is about an interval, it names the
    interval's conservative end (for instance `retention_low`). `against` names what the metric compares with.
    `by_profile` are thresholds in units that grow with the model; where there are any, `threshold` is that of `at`.
    """

    asset: str
    name: str
    metric: str
    direction: Literal["at_least", "at_most"]
    threshold: float
    evidence: str
    against: str = ""
    blocking: bool = True
    by_profile: Mapping[str, float] | None = None

    def at(self, profile: str) -> Gate:
        """The gate with the threshold of `profile`.

        Raises:
            ValueError: when the threshold depends on the profile and has no value for this one.
        """
        if self.by_profile is None:
            return self
        if profile not in self.by_profile:
            raise ValueError(
                f"gate {self.asset}.{self.name} has no threshold for profile {profile!r}, only for "
                f"{', '.join(sorted(self.by_profile))}: add one where the gate is defined"
            )
        return replace(self, threshold=self.by_profile[profile])


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


def gate(
    asset: str,
    name: str,
    metric: float,
    *,
    at_least: Threshold | None = None,
    at_most: Threshold | None = None,
    evidence: str,
    against: str = "",
    blocking: bool = True,
) -> Gate:
    """A gate with one bound, `at_least` or `at_most`. `metric` is a field of a record (`training_core.record.of`).

    Raises:
        ValueError: when there is not exactly one.
    """
    threshold, direction = (at_least, "at_least") if at_most is None else (at_most, "at_most")
    if threshold is None or (at_least is not None and at_most is not None):
        raise ValueError(f"gate {asset}.{name} needs exactly one of at_least and at_most")
    by_profile = threshold if isinstance(threshold, Mapping) else None
    value = threshold if not isinstance(threshold, Mapping) else min(threshold.values())
    return Gate(asset, name, str(metric), direction, value, evidence, against, blocking, by_profile)  # type: ignore[arg-type]


def claim(
    asset: str,
    name: str,
    metric: float,
    *,
    at_least: Threshold | None = None,
    at_most: Threshold | None = None,
    evidence: str,
    against: str = "",
) -> Gate:
    """A gate that does not block."""
    return gate(
        asset, name, metric, at_least=at_least, at_most=at_most, evidence=evidence, against=against, blocking=False
    )


def validity(asset: str) -> tuple[Gate, ...]:
    """What every model must fulfil."""
    return (
        gate(asset, "finite", SUITE.non_finite_weights, at_most=0, evidence="Number of NaN or infinite weights"),
        gate(
            asset,
            "causal",
            SUITE.causality_violations,
            at_most=0,
            evidence="Logits before a changed token that changed in any bit",
        ),
    )


def keeps_text(asset: str, *, against: str) -> Gate:
    """At most 2 % more bits per byte than the parent."""
    return gate(
        asset,
        "keeps_text",
        SUITE.bits_per_byte_ratio_to_best_parent.high,
        at_most=1.02,
        evidence="Ratio of bits per byte on test documents, upper bound of the paired 95 % CI",
        against=against,
    )


def sandbox_holds(asset: str) -> Gate:
    """No abuse succeeded against the sandbox."""
    return gate(
        asset,
        "sandbox_holds",
        of(SandboxResult).sandbox_breaches,
        at_most=0,
        evidence="Attacks that succeeded against the sandbox used by the phase",
    )
