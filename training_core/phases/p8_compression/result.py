"""The metrics that phase 8 reports besides those of the evaluation suite."""

from __future__ import annotations

from dataclasses import dataclass

from training_core.record import Estimate, Record
from training_core.training.result import TrainingMetrics


@dataclass(frozen=True, slots=True)
class CompressedResult(Record):
    """Training of the student, and the gain from the experts that the file carries."""

    training: TrainingMetrics
    file_experts: float
    file_experts_taught: float
    file_expert_parameters: float
    file_expert_bytes: float
    file_experts_gain: Estimate
    file_accuracy_routed: float
