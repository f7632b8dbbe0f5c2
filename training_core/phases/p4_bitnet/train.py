"""Quantisation-aware training of ternary weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training_core.data.batches import TrainingData
from training_core.distill.distillation import distil
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import hardness, set_hardness
from training_core.nn.ternary_cognate import make_ternary
from training_core.phases.p4_bitnet.config import TernaryConfig
from training_core.reporting import Reporter
from training_core.training.loop import TrainingResult, train
from training_core.training.objective import next_token_objective


def train_ternary(
    parent: Cognate,
    config: TernaryConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> tuple[Cognate, TrainingResult]:
    """Train a ternary model whose latents start at `parent`'s weights; the parent is also the distillation teacher."""
    model = Cognate(parent.config)
    model.load_state_dict(parent.state_dict())
    make_ternary(model, config.quantization)

    def batches(generator: torch.Generator) -> Tensor:
        return data.batch(config.mix, config.training.batch_size, config.training.seq_len + 1, generator)

    result = train(
        model,
        distil(next_token_objective, parent, config.distillation.weight, config.distillation.temperature),
        batches,
        config.training,
        reporter,
        checkpoint=checkpoint,
        label="ternary",
        optimizer_steps_per_batch=parent.config.num_supervision,
        identity=f"{config.mix.shares()}/{config.quantization}/{config.hardening_fraction}",
        before_step=lambda step: set_hardness(model, hardness(step, config.training.steps, config.hardening_fraction)),
    )
    set_hardness(model, 1.0)  # fully ternary, also where hardening had not finished
    return model, result
