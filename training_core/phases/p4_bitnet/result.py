"""What phase 4 measures beside the evaluation suite."""

from training_core.training.result import TrainingMetrics as TernaryResult

__all__ = ["TernaryResult"]
