"""Configurations of phase 1: the trunk and its specialists."""

from __future__ import annotations

from pydantic import Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.nn.cognate import RecursionConfig, ShapeConfig
from training_core.training.loop import TrainingConfig


class TrunkConfig(Config):
    """Shape, training and data mix of the trunk."""

    shape: ShapeConfig = Field(ShapeConfig(), description="Size and layout of the model")
    training: TrainingConfig = Field(TrainingConfig(), description="Training steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Data mix: the share of training rows from each source")


class VariantConfig(Config):
    """Recursion settings under which a specialist runs the trunk's weights, and its short training on its own mix."""

    recursion: RecursionConfig = Field(
        RecursionConfig(), description="Recursion, memory and halting settings with which the specialist runs"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="Training steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Data mix: the share of training rows from each source")
