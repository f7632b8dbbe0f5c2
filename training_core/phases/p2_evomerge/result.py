"""The metrics that phase 2 reports besides those of the evaluation suite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.record import Estimate, Record, keyed


@dataclass(frozen=True, slots=True)
class MergeResult(Record):
    """Bits per byte of the champion on the validation documents used for selection, the length of the search, and how
    far each specialist is ahead in what it is named for (`specialties.leads`)."""

    validation_bits_per_byte: float
    validation_bits_per_byte_best_parent: float
    bits_per_byte_over_best_parent: float
    merge_evaluations: float
    merge_generations: float
    speed_latency_ratio: float
    lead: Mapping[str, Estimate] = keyed("{}_lead")
