"""Configuration of phase 4."""

from __future__ import annotations

from pydantic import Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.distill.distillation import DistillationConfig
from training_core.nn.ternary_cognate import TernarySettings
from training_core.training.loop import TrainingConfig


class TernaryConfig(Config):
    """Quantisation, training length and data of phase 4."""

    quantization: TernarySettings = Field(TernarySettings(), description="How weights and activations are quantised")
    hardening_fraction: float = Field(
        0.5, ge=0, le=1, description="Share of the steps over which weights go from full precision to ternary"
    )
    distillation: DistillationConfig = Field(
        DistillationConfig(), description="Learning from the parent's distribution"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Shares of the training rows")
