"""What phase 2 measures beside the evaluation suite."""

from __future__ import annotations

from dataclasses import dataclass

from training_core.record import Record


@dataclass(frozen=True, slots=True)
class MergeResult(Record):
    """The champion on the validation documents that it was selected by, and how long the search was."""

    validation_bits_per_byte: float
    validation_bits_per_byte_best_parent: float
    bits_per_byte_over_best_parent: float
    merge_evaluations: float
    merge_generations: float
