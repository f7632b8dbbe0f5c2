"""The metrics that phase 8 reports besides those of the evaluation suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.record import Estimate, Record, keyed
from training_core.training.result import TrainingMetrics


@dataclass(frozen=True, slots=True)
class EqualBytesResult(Record):
    """The n-gram model packed into the file's bytes, and how far the file is better on the same test documents."""

    packed_ngram_bytes: float
    packed_ngrams: float
    packed_ngram_bits_per_ngram: float
    packed_ngram_bits_per_byte: float
    packed_ngram_accuracy: float
    margin_below_packed_ngram: Estimate
    accuracy_over_packed_ngram: Estimate
    packed_ngram_bits_per_byte_on: Mapping[str, float] = keyed("packed_ngram_bits_per_byte_on_{}")
    packed_ngram_accuracy_on: Mapping[str, float] = keyed("packed_ngram_accuracy_on_{}")
    margin_below_packed_ngram_on: Mapping[str, Estimate] = keyed("margin_below_packed_ngram_on_{}")
    accuracy_over_packed_ngram_on: Mapping[str, Estimate] = keyed("accuracy_over_packed_ngram_on_{}")


@dataclass(frozen=True, slots=True)
class CompressedResult(Record):
    """Training of the student, the gain from the experts that the file carries, and the control of equal bytes."""

    training: TrainingMetrics
    equal_bytes: EqualBytesResult
    file_experts: float
    file_experts_taught: float
    file_expert_parameters: float
    file_expert_bytes: float
    file_experts_gain: Estimate
    file_accuracy_routed: float
