"""Configuration of phase 4: quantisation, distillation and training."""

from __future__ import annotations

from pydantic import Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.distill.distillation import DistillationConfig
from training_core.nn.ternary_cognate import TernarySettings
from training_core.training.loop import TrainingConfig


class TernaryConfig(Config):
    """Quantisation, hardening schedule, distillation, training and data mix of the ternary model."""

    quantization: TernarySettings = Field(TernarySettings(), description="Quantisation of weights and activations")
    hardening_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the training steps over which weights move gradually from full precision to ternary",
    )
    distillation: DistillationConfig = Field(
        DistillationConfig(), description="Distillation from the full-precision parent"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="Training steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Data mix: the share of training rows from each source")
