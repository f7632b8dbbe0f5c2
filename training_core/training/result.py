"""Result record of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from training_core.record import Record


@dataclass(frozen=True, slots=True)
class TrainingMetrics(Record):
    """Smoothed final loss in nats per token, optimizer steps, tokens and wall-clock seconds."""

    train_loss: float
    train_optimizer_steps: float
    train_tokens: float
    train_seconds: float
