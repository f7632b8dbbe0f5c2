"""Result record of the evaluation suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.record import Estimate, Record, keyed, maybe

ANSWERED = "answered_"  # before a family's name: its score by generated answers
BASELINE = "baseline_"  # before a baseline's name in the scores of a family
ABOVE_BEST = "above_best_baseline"
GRAMMAR = "grammar_"  # before the name of a phenomenon of minimal pairs


@dataclass(frozen=True, slots=True)
class SuiteResult(Record):
    """Quality on test documents, validity, size and speed, and comparisons with each parent, paired by document."""

    bits_per_byte: Estimate
    next_token_accuracy: Estimate
    margin_below_counting: Estimate
    counting_bits_per_byte: float
    counting_accuracy: float
    params: float
    bytes_on_disk: float
    non_finite_weights: float
    causality_violations: float
    streaming_error: float
    latency_ms_per_token: float
    supervision_steps_per_token: float
    bits_per_byte_ratio_to_best_parent: Estimate = maybe()
    retention_to_best_parent: Estimate = maybe()
    next_token_accuracy_drop_to_best_parent: Estimate = maybe()
    bytes_ratio: float = maybe()
    bits_per_parameter: float = maybe()
    bits_per_byte_on: Mapping[str, Estimate] = keyed("bits_per_byte_on_{}")
    next_token_accuracy_on: Mapping[str, Estimate] = keyed("next_token_accuracy_on_{}")
    margin_below_counting_on: Mapping[str, Estimate] = keyed("margin_below_counting_on_{}")
    world_parsed: Estimate = maybe()
    world_consistent: Estimate = maybe()
    task_accuracy_low: Mapping[str, float] = keyed("task_{}_corrected_low")
    above_best_baseline: Mapping[str, Estimate] = keyed("{}_above_best_baseline")
    answered: Mapping[str, Estimate] = keyed("answered_{}")
    grammar: Mapping[str, Estimate] = keyed("grammar_{}")
    retention_to_merged_model: Estimate = maybe()
    retention_to_merged_model_on: Mapping[str, Estimate] = keyed("retention_to_merged_model_on_{}")
    retention_to_merged_model_in: Mapping[str, Estimate] = keyed("retention_to_merged_model_in_{}")
    bits_per_byte_ratio: Mapping[str, Estimate] = keyed("bits_per_byte_ratio_to_{}")
    retention: Mapping[str, Estimate] = keyed("retention_to_{}")
    next_token_accuracy_drop: Mapping[str, Estimate] = keyed("next_token_accuracy_drop_to_{}")
