"""Configurations of phase 1."""

from __future__ import annotations

from pydantic import Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.nn.cognate import RecursionConfig, ShapeConfig
from training_core.training.loop import TrainingConfig


class TrunkConfig(Config):
    """The trunk: its shape, its training and its data mix."""

    shape: ShapeConfig = Field(ShapeConfig(), description="Shape of the model")
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Shares of the training rows")


class VariantConfig(Config):
    """A specialist: how it runs the trunk's weights, and a short training on a mix of its own."""

    recursion: RecursionConfig = Field(RecursionConfig(), description="How the trunk's weights are run")
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Shares of the training rows")
