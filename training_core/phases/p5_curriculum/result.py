"""The metrics that phase 5 reports besides those of the evaluation suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.record import Estimate, Record, keyed, maybe
from training_core.tasks.result import LevelsResult


@dataclass(frozen=True, slots=True)
class PractisedResult(Record):
    """Results of practice and consolidation: levels on test questions, forgetting on validation questions."""

    levels: LevelsResult
    assessed_edge: float
    handed_on: float
    dreams_over_none: Estimate
    dreams_over_replay: Estimate
    rehearsed_tokens: float
    practice_attempts: float
    practice_right_alone: float
    practice_right_completions: float
    practice_tool_calls: float
    practice_retired: float
    practice_train_seconds: float
    forgetting_by_arm: Mapping[str, Estimate] = keyed("forgetting_{}")
    next_level_gain_by_arm: Mapping[str, Estimate] = keyed("next_level_gain_{}")


@dataclass(frozen=True, slots=True)
class PreferenceResult(Record):
    """Preference accuracy on test scenario pairs, over all rules and for each rule."""

    preference_base: Estimate
    preference_prompted: Estimate
    preference_baked: Estimate
    preference_gain: Estimate
    base_by_rule: Mapping[str, Estimate] = keyed("preference_base_{}")
    prompted_by_rule: Mapping[str, Estimate] = keyed("preference_prompted_{}")
    baked_by_rule: Mapping[str, Estimate] = keyed("preference_baked_{}")
    gain_by_rule: Mapping[str, Estimate] = keyed("preference_gain_{}")


@dataclass(frozen=True, slots=True)
class CouncilResult(Record):
    """The council compared with self-consistency and the greedy answer, on the same test questions."""

    council_accuracy: float
    self_consistency_accuracy: float
    single_accuracy: float
    council_gain_over_self_consistency: Estimate
    council_gain_over_single: Estimate
    self_consistency_votes: float
    council_agreement: float = maybe()


@dataclass(frozen=True, slots=True)
class LoopResult(Record):
    """The OODA loop compared with direct answering, which spends at least as many tokens."""

    ooda_accuracy: float
    ooda_direct_accuracy: float
    ooda_gain_over_direct: Estimate
    ooda_tokens: float
    direct_tokens: float
    actions: Mapping[str, float] = keyed("ooda_{}_actions")


@dataclass(frozen=True, slots=True)
class TemperatureResult(Record):
    """The self-model's prediction of the sampling temperature, over ten bins."""

    temperature_accuracy: Estimate
    temperature_best_possible: Estimate
    temperature_shuffled: Estimate
    temperature_chance: float
    temperature_over_chance_low: float
    temperature_within_one: float


@dataclass(frozen=True, slots=True)
class CharacterResult(Record):
    """Metrics of rules, decisions and self-model; those of baking exist only if the baked model is stored."""

    levels: LevelsResult
    level_accuracy_drop_high: float
    handed_on: float
    text_ratio_of_rules: float
    foreseen_drop_of_rules: float
    num_levels_in_reach: float
    preferences: PreferenceResult
    council: CouncilResult
    loop: LoopResult
    temperature: TemperatureResult
    flipped_codes: float = maybe()
    kl_before: Mapping[str, float] = keyed("baking_kl_before_{}")
    kl_after: Mapping[str, float] = keyed("baking_kl_after_{}")
    strength: Mapping[str, float] = keyed("baking_strength_{}")
