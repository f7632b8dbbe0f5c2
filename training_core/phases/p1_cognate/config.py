"""Configurations of phase 1: the trunk and its specialists."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.nn.cognate import RecursionConfig, ShapeConfig
from training_core.training.loop import TrainingConfig

ONE_HOP = MixConfig(text_share=0.0, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0, one_hop_share=1.0)


class FirstStageConfig(BaseModel):
    """Training on short questions before the text, with the optimizer and rates of the trunk's training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(0, ge=0, description="Batches of the first stage; 0: none")
    batch_size: int = Field(32, ge=1, description="Sequences in a batch")
    seq_len: int = Field(64, ge=2, description="Tokens in a training sequence")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="Share of the steps with learning-rate decay")
    mix: MixConfig = Field(ONE_HOP, description="Data mix: the share of training rows from each source")


class TrunkConfig(Config):
    """Shape, training and data mix of the trunk."""

    shape: ShapeConfig = Field(ShapeConfig(), description="Size and layout of the model")
    first: FirstStageConfig = Field(FirstStageConfig(), description="First stage: questions before text")
    training: TrainingConfig = Field(TrainingConfig(), description="Training steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Data mix: the share of training rows from each source")


class VariantConfig(Config):
    """Recursion settings under which a specialist runs the trunk's weights, and its short training on its own mix."""

    recursion: RecursionConfig = Field(
        RecursionConfig(), description="Recursion, memory and halting settings with which the specialist runs"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="Training steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Data mix: the share of training rows from each source")
