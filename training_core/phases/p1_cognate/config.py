"""Configurations of phase 1."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.nn.cognate import ShapeConfig
from training_core.training.loop import TrainingConfig


class RecursionConfig(BaseModel):
    """How a specialist runs the trunk's weights: recursion, halting, and the speed of its memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cycles: int = Field(1, ge=1, description="T: recursion cycles in one supervision step")
    latent_steps: int = Field(0, ge=0, description="n: updates of z in a cycle")
    num_supervision: int = Field(1, ge=1, description="N_sup: supervision steps, each an optimizer step")
    halt_threshold: float = Field(1.0, gt=0, le=1, description="A token stops when q exceeds this; 1 never stops")
    memory_max_lr: float = Field(0.5, gt=0, le=1, description="Largest inner descent step over a chunk of equal tokens")


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
