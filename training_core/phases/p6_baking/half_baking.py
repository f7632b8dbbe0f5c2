"""Half-baking: a prompt baked in to a measured strength (arXiv:2409.13697, section 3.2), once or repeatedly.

    strength of m     s(m) = 1 - KL(T || m) / KL(T || m_0)      T the teacher with the prompt; m_0, m without
    half-baking       find a with s(m_a) = target,              latents (1 - a) m_0 + a m_1,  m_1 the full bake
    repeated N times  1 - (1 - s)^N                             if every step removes the share s of what remains

**Differs from the paper**, which scales an adapter or stops early and names the result by the scale. A scale is not a
strength: where the divergence is quadratic, a = 1/2 gives s = 3/4. Here a is found by bisection such that the
*function* has the requested strength.

Ternary codes flip one at a time, so s(m_a) is a step function and need not be monotone. The bisection keeps a bracket
of measured strengths around the target and therefore cannot lose it, but a single step may be larger than the
tolerance.

Shape legend: N trajectories.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from training_core.distill.prompt_baking import (
    BakingMeasure,
    PromptedTeacher,
    measure_baking,
)
from training_core.distill.trajectories import Trajectory
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.record import Estimate

ScheduleKind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True)
class HalfBaking:
    """A model of a requested strength.

    `scale` is its a; `strength` was measured on the given trajectories, and `interval` adds a 95 % CI by bootstrap over
    them. `evaluations` lists every (scale, strength) tried, in order. `reached` says whether the strength is within the
    tolerance; if not, `reason` says why (it is empty otherwise).
    """

    model: Cognate
    scale: float
    strength: float
    interval: Estimate
    evaluations: tuple[tuple[float, float], ...]
    reached: bool
    reason: str


def half_bake(
    teacher: Cognate,
    before: Cognate,
    after: Cognate,
    prompt_ids: Sequence[int],
    trajectories: Sequence[Trajectory],
    target: float = 0.5,
    tolerance: float = 0.02,
    max_evaluations: int = 12,
) -> HalfBaking:
    """Return the model between `before` and its full bake `after` whose strength is `target` +- `tolerance`.

    Strength is relative to `before` and measured on `trajectories` of the prompted `teacher`, which should differ from
    those that `after` was trained on. All three models may have latent ternary weights; the result has them if `before`
    has. If the full bake is weaker than the target, it is returned unchanged with `reached` False; if `max_evaluations`
    do not suffice, so is the model with the nearest strength.

    Raises:
        ValueError: for a target or a tolerance outside (0, 1), fewer than one evaluation, models of different shapes,
            as `check_trajectories`, and when `before` already behaves like the prompted teacher.
    """
    if not (0 < target <= 1 and 0 < tolerance < 1 and max_evaluations >= 1):
        raise ValueError(
            f"target = {target} and tolerance = {tolerance} must lie in (0, 1] and (0, 1), and max_evaluations = "
            f"{max_evaluations} be at least 1; half a prompt is 0.5 +- 0.02"
        )
    search = _Search(teacher, before, after, prompt_ids, trajectories)
    full = search.strength(1.0)
    if full < target - tolerance:
        reason = (
            f"the full baking has strength {full:.3f}, below the target {target:.3f} - {tolerance:.3f}: bake longer or "
            "at higher learning rates, or ask for less"
        )
        return search.result(1.0, False, reason)
    low, high, best = 0.0, 1.0, 1.0
    while abs(search.tried[best] - target) > tolerance and len(search.tried) < max_evaluations:
        middle = (low + high) / 2
        strength = search.strength(middle)
        low, high = (middle, high) if strength < target else (low, middle)
        best = min(search.tried, key=lambda scale: abs(search.tried[scale] - target))
    if abs(search.tried[best] - target) <= tolerance:
        return search.result(best, True, "")
    reason = (
        f"after {len(search.tried)} evaluations the nearest strength is {search.tried[best]:.3f}, not {target:.3f} +- "
        f"{tolerance:.3f}: allow more evaluations, or a wider tolerance where ternary codes flip in jumps"
    )
    return search.result(best, False, reason)


class _Search:
    """The strengths measured so far at scales between two models."""

    def __init__(
        self,
        teacher: Cognate,
        before: Cognate,
        after: Cognate,
        prompt_ids: Sequence[int],
        trajectories: Sequence[Trajectory],
    ) -> None:
        self.before, self.after = before, after
        self.prompted = PromptedTeacher(teacher, prompt_ids, trajectories)
        self.before_N = self.prompted.nats(inference_copy(before))
        self.after_N: dict[float, Tensor] = {}
        self.tried: dict[float, float] = {}

    def strength(self, scale: float) -> float:
        self.after_N[scale] = self.prompted.nats(inference_copy(between(self.before, self.after, scale)))
        self.tried[scale] = self._measure(scale).strength
        return self.tried[scale]

    def result(self, scale: float, reached: bool, reason: str) -> HalfBaking:
        return HalfBaking(
            between(self.before, self.after, scale),
            scale,
            self.tried[scale],
            self._measure(scale).strength_estimate(),
            tuple(self.tried.items()),
            reached,
            reason,
        )

    def _measure(self, scale: float) -> BakingMeasure:
        return BakingMeasure(self.before_N, self.after_N[scale], self.prompted.tokens_N)


def between(before: Cognate, after: Cognate, scale: float) -> Cognate:
    """Return a new model with weights (latents) (1 - scale) before + scale after; 0 and 1 are exact bit for bit.

    Raises:
        ValueError: when the models' weights differ in names or shapes.
    """
    ends = before.state_dict(), after.state_dict()
    if {n: t.shape for n, t in ends[0].items()} != {n: t.shape for n, t in ends[1].items()}:
        raise ValueError(
            "the models differ in the names or shapes of their weights, so that there is nothing between them: pass a "
            "model and a baking of its copy, both with latent weights or both without"
        )
    model = copy.deepcopy(before)
    model.load_state_dict(
        {name: tensor.lerp(ends[1][name].to(tensor.device), scale) for name, tensor in ends[0].items()}
    )
    return model.eval()


def strength_schedule(kind: ScheduleKind, first: float, last: float, iterations: int) -> tuple[float, ...]:
    """Return the target strength of each of `iterations` half-bakings, from `first` to `last`.

    constant: `first` throughout. linear: equal differences. cosine: first + (last - first) (1 - cos(pi t)) / 2 with t
    from 0 to 1, flat at both ends. A single iteration gets `first`.

    Raises:
        ValueError: for strengths outside (0, 1], fewer than one iteration or an unknown kind.
    """
    if not (0 < first <= 1 and 0 < last <= 1 and iterations >= 1):
        raise ValueError(
            f"strengths must lie in (0, 1] and iterations be at least 1, got {first}, {last} and {iterations}: 0.5 is "
            "half a prompt, 1 a whole one"
        )
    places = [index / (iterations - 1) if iterations > 1 else 0.0 for index in range(iterations)]
    if kind == "constant":
        return (first,) * iterations
    if kind == "linear":
        return tuple(first + (last - first) * t for t in places)
    if kind == "cosine":
        return tuple(first + (last - first) * (1 - math.cos(math.pi * t)) / 2 for t in places)
    raise ValueError(f"unknown schedule {kind!r}: choose constant, linear or cosine")


@dataclass(frozen=True, slots=True)
class StackRow:
    """One half-baking of a stack.

    `expected` is the cumulative strength 1 - prod (1 - s_i), `measured` the one on held-out trajectories. `reason` says
    why this step missed its own target, and is empty if it did not.
    """

    expected: float
    measured: Estimate
    reason: str


@dataclass(frozen=True, slots=True)
class Stacking:
    """Successive half-bakings towards the same prompted teacher."""

    rows: tuple[StackRow, ...]

    def follows(self, tolerance: float) -> bool:
        """Return whether every cumulative strength is within `tolerance` of the expected one."""
        return all(abs(row.measured.value - row.expected) <= tolerance for row in self.rows)

    def reason(self, tolerance: float) -> str:
        """Describe the first deviation from 1 - (1 - s)^N and its cause; empty if there is none."""
        for number, row in enumerate(self.rows, 1):
            if abs(row.measured.value - row.expected) > tolerance:
                why = next((r.reason for r in self.rows[:number] if r.reason), "")
                held = f"[{row.measured.low:.3f}, {row.measured.high:.3f}]"
                return (
                    f"after {number} half-bakings the strength is {row.measured.value:.3f} {held} where 1 - (1 - s)^N "
                    f"expects {row.expected:.3f}: "
                    + (
                        why
                        or "every step has its strength on the calibrating trajectories and another one on the "
                        "held-out ones: more trajectories of both narrow that"
                    )
                )
        return ""


def measure_stacking(
    teacher: Cognate,
    start: Cognate,
    prompt_ids: Sequence[int],
    held_out: Sequence[Trajectory],
    halves: Sequence[HalfBaking],
    targets: Sequence[float],
) -> Stacking:
    """Measure the strength on `held_out` after each of `halves`, a chain of half-bakings that begins with `start`.

    `targets` are their individual target strengths.

    Raises:
        ValueError: as `measure_baking`, and for different numbers of halves and targets.
    """
    rows, left = [], 1.0
    before = inference_copy(start)
    for half, target in zip(halves, targets, strict=True):
        left *= 1 - target
        measure = measure_baking(teacher, inference_copy(half.model), prompt_ids, held_out, before)
        rows.append(StackRow(1 - left, measure.strength_estimate(), half.reason))
    return Stacking(tuple(rows))
