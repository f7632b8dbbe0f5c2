"""The metrics that phase 7 reports besides those of the evaluation suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.evaluation.result import SuiteResult
from training_core.record import Estimate, Record, keyed


@dataclass(frozen=True, slots=True)
class AnswersResult(Record):
    """All ways of answering test questions: macro-averaged accuracy, latency, and bits per byte on text."""

    routed_over_single: Estimate
    single_over_none: Estimate
    experts_over_low_rank: Estimate
    worst_family_drop_low: float
    latency_over_one_pass: float
    first_pass_over_one_pass: float
    second_pass_over_one_pass: float
    routed_bits_per_byte_ratio: Estimate
    text_bits_per_byte_before: float
    text_bits_per_byte_routed: float
    accuracy: Mapping[str, Estimate] = keyed("accuracy_{}")
    over_none: Mapping[str, Estimate] = keyed("{}_over_none")
    family_drop: Mapping[str, Estimate] = keyed("family_{}_drop")
    router_accuracy: Mapping[str, Estimate] = keyed("router_{}_accuracy")
    router_entropy_bits: Mapping[str, float] = keyed("router_{}_entropy_bits")


@dataclass(frozen=True, slots=True)
class SearchMetrics(Record):
    """Results of the search over compositions, on validation data."""

    hypervolume_over_random: float
    hypervolume_over_random_low: float
    search_hypervolume_gain: float
    search_hypervolume_gain_lowest: float
    search_evaluations: float
    search_measured: float
    search_front: float
    hypervolume: Mapping[str, float] = keyed("search_{}_hypervolume")
    knee: Mapping[str, float] = keyed("search_knee_{}")


@dataclass(frozen=True, slots=True)
class ExpertResult(Record):
    """The number and size of experts, their individual gains on validation questions, and their joint results."""

    num_experts: float
    experts_wanted: float
    expert_number_stability: float
    expert_parameters: float
    expert_bytes: float
    router_bytes: float
    experts_by_reward: float
    experts_in_use: float
    handed_on: float
    answers: AnswersResult
    search: SearchMetrics
    gain_by_expert: Mapping[str, Estimate] = keyed("expert_{}_gain")


@dataclass(frozen=True, slots=True)
class ExpertSuiteResult(Record):
    """The evaluation suite on the model without experts, and the reproduction error of the stored experts."""

    expert_reproduction_error: float
    suite: SuiteResult
