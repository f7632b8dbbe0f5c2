"""Phase 4: quantisation-aware training of ternary weights, and the packed file that decodes to exactly these
weights."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from training_core.data.batches import MixConfig, TrainingData
from training_core.distill.distillation import distil
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import hardness, set_hardness
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.reporting import Reporter
from training_core.training.loop import TrainingConfig, TrainingResult, train
from training_core.training.objective import next_token_objective


class TernaryConfig(TernarySettings, TrainingConfig, MixConfig):
    """Quantisation, training length and data of phase 4."""

    hardening_fraction: float = Field(
        0.5, ge=0, le=1, description="Share of the steps over which weights go from full precision to ternary"
    )
    distillation_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of the full-precision parent's distribution"
    )
    temperature: float = Field(1.0, gt=0, description="Distillation temperature")


def train_ternary(
    parent: Cognate,
    config: TernaryConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> tuple[Cognate, TrainingResult]:
    """Train `parent`'s weights as latents of a ternary model; the parent itself is the distillation teacher."""
    model = Cognate(parent.config)
    model.load_state_dict(parent.state_dict())
    make_ternary(model, settings_of(config))

    def batches(generator: torch.Generator) -> Tensor:
        return data.batch(config, config.batch_size, config.seq_len + 1, generator)

    result = train(
        model,
        distil(next_token_objective, parent, config.distillation_weight, config.temperature),
        batches,
        config,
        reporter,
        checkpoint=checkpoint,
        label="ternary",
        optimizer_steps_per_batch=parent.config.num_supervision,
        identity=f"{config.shares()}/{settings_of(config)}/{config.hardening_fraction}",
        before_step=lambda step: set_hardness(model, hardness(step, config.steps, config.hardening_fraction)),
    )
    set_hardness(model, 1.0)
    return model, result


def settings_of(config: TernaryConfig) -> TernarySettings:
    """The quantisation part of the phase's configuration."""
    return TernarySettings.model_validate({f: getattr(config, f) for f in TernarySettings.model_fields})
