"""What phase 1 measures beside the evaluation suite."""

from training_core.training.result import TrainingMetrics as CognateResult

__all__ = ["CognateResult"]
