"""The metrics that phase 4 reports besides those of the evaluation suite."""

from training_core.training.result import TrainingMetrics as TernaryResult

__all__ = ["TernaryResult"]
