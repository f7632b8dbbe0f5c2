"""The metrics that phase 6 reports besides those of the evaluation suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.record import Estimate, Record, keyed, maybe

LEAST_STRENGTH = 0.25  # of a retained prompt, at the lower bound of the interval


@dataclass(frozen=True, slots=True)
class RepairsResult(Record):
    """Resolve rates on test micro-repositories."""

    repairs_chance: float
    repairs_base: Estimate
    repairs_prompted: Estimate
    repairs_baked: Estimate
    repairs_prompted_over_baked: Estimate
    repairs_gain: Estimate
    repairs_tool_calls: float


@dataclass(frozen=True, slots=True)
class DriftResult(Record):
    """Persistence of a persona over the turns of a conversation, prompted and baked."""

    drift_turns: float
    drift_prompted: Estimate
    drift_baked: Estimate
    drift_difference: Estimate
    slope_prompted: Estimate
    slope_baked: Estimate
    presence_prompted: Estimate
    presence_baked: Estimate
    presence_advantage: Estimate


@dataclass(frozen=True, slots=True)
class PersonaResult(Record):
    """Answers and style of the model with the persona's prompt and with the persona baked in."""

    answers_prompted: Estimate
    answers_baked: Estimate
    answers_prompted_over_baked: Estimate
    style_distance_prompted: Estimate
    style_distance_chance: float
    drift: DriftResult
    style_direction: Estimate = maybe()


@dataclass(frozen=True, slots=True)
class BakedResult(Record):
    """Results of the cycles: the strength of each kept prompt, repairs, persona and task families."""

    iterations: float
    iterations_kept: float
    switches: float
    handed_on: float
    prompts_kept: float
    weakest_effect: float
    weakest_effect_low: float
    faint_prompts: float
    repairs: RepairsResult
    expected_accuracy_before: Estimate
    expected_accuracy: Estimate
    worst_family_drop_high: float
    weakest_effect_high: float = maybe()
    prompted_over_baked_high: float = maybe()
    stacking_follows: float = maybe()
    persona: PersonaResult = maybe()
    family_drop: Mapping[str, Estimate] = keyed("family_{}_drop")
    effect: Mapping[str, Estimate] = keyed("effect_{}")
    kl_before: Mapping[str, float] = keyed("kl_before_{}")
    kl_after: Mapping[str, float] = keyed("kl_after_{}")
    stacked_expected: Mapping[str, float] = keyed("stacked_{}_expected")
    stacked: Mapping[str, Estimate] = keyed("stacked_{}")
