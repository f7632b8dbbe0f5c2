"""The metrics that phase 1 reports besides those of the evaluation suite."""

from training_core.training.result import TrainingMetrics as CognateResult

__all__ = ["CognateResult"]
