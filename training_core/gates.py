"""Quality gates and claims as data: a metric, a direction and a threshold.

A failed *gate* blocks downstream models; a failed *claim* is reported (and stays red) but does not block. Thresholds
are defined in the `gates.py` of each phase, under version control, and not in any run's configuration. Neither this
module nor those import torch, because the run coordinator loads them in the webserver and in the daemon.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from training_core.evaluation.result import SuiteResult
from training_core.record import each, of
from training_core.tasks.result import SandboxResult

SUITE = of(SuiteResult)
# Smallest effects of interest: a claim asks that the lower bound of a CI reaches them. Below, a difference may be real
# and is too small to matter to anybody who uses the model.
LEAST_ACCURACY = 0.01  # one more question of a hundred
LEAST_BITS = 0.01  # bits per token or byte
LEAST_EFFECT = 0.05  # a twentieth of a prompt's effect
LEAST_HYPERVOLUME = 0.01  # of the box of all objectives
Threshold = float | Mapping[str, float]  # a mapping gives one threshold per profile, for units that grow with the model


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition on one measured metric of one asset.

    `metric` is a key of the bundle's `metrics`; for an estimate with a CI, it is the conservative bound (for instance
    `retention_low`). With `{}` in `metric`, `name` and `evidence`, the gate stands for one gate for each part that was
    measured, for instance each source of text (`for_each_part`). `against` names the baseline of the metric.
    `by_profile` holds thresholds in units that grow with the model; if given, `at` sets `threshold` to that of a
    profile. `blocks` names the models that a failure blocks, of those made from the asset; empty: all of them.
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
    blocks: tuple[str, ...] = ()

    def at(self, profile: str) -> Gate:
        """Return the gate with the threshold of `profile`.

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
    """The result of a gate on measured metrics. `value` is None if the metric is missing, and then the gate fails."""

    gate: Gate
    value: float | None
    passed: bool

    def describe(self) -> str:
        """Return one line with the metric, its value, the direction and the threshold."""
        sign = ">=" if self.gate.direction == "at_least" else "<="
        value = "not measured" if self.value is None else f"{self.value:.6g}"
        state = "passed" if self.passed else "FAILED"
        return f"{self.gate.name} {state}: {self.gate.metric} = {value}, required {sign} {self.gate.threshold:g}"


def for_each_part(gates: Sequence[Gate], metrics: Mapping[str, float]) -> tuple[Gate, ...]:
    """Return the gates with each one whose metric has a `{}` replaced by one for each part in `metrics`.

    Such a gate stays as it is if no part was measured, and then it fails.
    """
    result: list[Gate] = []
    for gate in gates:
        before, braces, after = gate.metric.partition("{}")
        parts = []
        if braces:
            matches = (re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", key) for key in metrics)
            parts = sorted(match[1] for match in matches if match)
        result += [
            replace(
                gate, name=gate.name.format(part), metric=before + part + after, evidence=gate.evidence.format(part)
            )
            for part in parts
        ] or [gate]
    return tuple(result)


def judge(gate: Gate, metrics: Mapping[str, float]) -> Verdict:
    """Apply `gate` to measured `metrics`. A missing or non-finite metric always fails."""
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
    blocks: tuple[str, ...] = (),
) -> Gate:
    """Return a gate with one bound, `at_least` or `at_most`. `metric` is a field of a record (see `record.of`).

    A failure blocks everything that is made from the asset, or only the models named in `blocks`.

    Raises:
        ValueError: when not exactly one bound is given.
    """
    threshold, direction = (at_least, "at_least") if at_most is None else (at_most, "at_most")
    if threshold is None or (at_least is not None and at_most is not None):
        raise ValueError(f"gate {asset}.{name} needs exactly one of at_least and at_most")
    by_profile = threshold if isinstance(threshold, Mapping) else None
    value = threshold if not isinstance(threshold, Mapping) else min(threshold.values())
    return Gate(asset, name, str(metric), direction, value, evidence, against, blocking, by_profile, blocks)  # type: ignore[arg-type]


def claim(
    asset: str,
    name: str,
    metric: float,
    *,
    smallest: float | None = None,
    at_least: Threshold | None = None,
    at_most: Threshold | None = None,
    evidence: str,
    against: str = "",
) -> Gate:
    """Return a claim: a gate that does not block.

    `smallest` is the bound `at_least` of a difference: the smallest effect of interest, which the evidence names.
    """
    if smallest is not None:
        at_least, evidence = smallest, f"{evidence}; less than {smallest:g} is of no interest"
    return gate(
        asset, name, metric, at_least=at_least, at_most=at_most, evidence=evidence, against=against, blocking=False
    )


def validity(asset: str) -> tuple[Gate, ...]:
    """Return the gates that every model must pass: finite weights and causal logits."""
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


def learned(asset: str) -> Gate:
    """Return the gate that requires fewer bits per byte than counting n-grams needs, on the corpus as a whole."""
    return gate(
        asset,
        "learned",
        SUITE.margin_below_counting.low,
        at_least=0.0,
        evidence="Bits per byte below the 4-gram model on test documents, lower bound of the 95 % CI",
        against="a 4-gram model of all the training text",
    )


def learned_each_source(asset: str) -> Gate:
    """Return the claim that the model needs fewer bits per byte than the n-gram model on every source of text."""
    return claim(
        asset,
        "learned_on_{}",
        each(SUITE.margin_below_counting_on).low,
        smallest=LEAST_BITS,
        evidence="Bits per byte below the 4-gram model on test documents of {}, lower bound of the 95 % CI",
        against="a 4-gram model of all the training text",
    )


def keeps_text(asset: str, *, against: str) -> Gate:
    """Return the gate that allows at most 2 % more bits per byte than the parent."""
    return gate(
        asset,
        "keeps_text",
        SUITE.bits_per_byte_ratio_to_best_parent.high,
        at_most=1.02,
        evidence="Ratio of bits per byte on test documents, upper bound of the paired 95 % CI",
        against=against,
    )


def sandbox_holds(asset: str) -> Gate:
    """Return the gate that requires that no attack on the sandbox succeeded."""
    return gate(
        asset,
        "sandbox_holds",
        of(SandboxResult).sandbox_breaches,
        at_most=0,
        evidence="Attacks that succeeded against the sandbox used by the phase",
    )
