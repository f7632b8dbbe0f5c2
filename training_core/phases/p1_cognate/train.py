"""The trunk, trained from scratch, and the factory that makes the three specialists from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.batches import MixConfig, TrainingData
from training_core.nn.cognate import SHAPE_FIELDS, VARIANT_FIELDS, Cognate, CognateConfig, ShapeConfig, check_sequence
from training_core.reporting import Reporter
from training_core.training.loop import TrainingConfig, TrainingResult, train
from training_core.training.objective import next_token_objective

Variant = Literal["reasoning", "memory", "speed"]


class TrunkConfig(ShapeConfig, TrainingConfig, MixConfig):
    """Everything about the trunk: its shape, its training and its data mix."""


class VariantConfig(TrainingConfig, MixConfig):
    """How a specialist differs from the trunk: data mix, recursion, memory and halting, and a short training."""

    cycles: int = Field(1, ge=1, description="T: recursion cycles in one supervision step")
    latent_steps: int = Field(0, ge=0, description="n: updates of z in a cycle")
    num_supervision: int = Field(1, ge=1, description="N_sup: supervision steps, each an optimizer step")
    halt_threshold: float = Field(1.0, gt=0, le=1, description="A token stops when q exceeds this; 1 never stops")
    memory_max_lr: float = Field(0.5, gt=0, le=1, description="Largest inner descent step over a chunk of equal tokens")


def train_trunk(
    config: TrunkConfig, data: TrainingData, reporter: Reporter, checkpoint: Path | None = None
) -> tuple[Cognate, TrainingResult]:
    """Train a Cognate model from random weights.

    Raises:
        ValueError: when the sequence is longer than `max_seq_len`, or a training split is shorter than a sequence.
    """
    vocab_size = Tokenizer.from_str(data.tokenizer_json).get_vocab_size()
    shape = CognateConfig(vocab_size=vocab_size, **{f: getattr(config, f) for f in SHAPE_FIELDS})
    torch.manual_seed(config.seed)
    model = Cognate(shape)
    return model, _train(model, config, config, data, reporter, checkpoint, "trunk")


def specialise(
    trunk: Cognate,
    variant: Variant,
    config: VariantConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> tuple[Cognate, TrainingResult]:
    """Branch a specialist from the trunk: the same weights under another recursion, memory and halting, trained on
    another mix."""
    changed = {field: getattr(config, field) for field in VARIANT_FIELDS}
    model = Cognate(trunk.config.model_copy(update=changed))
    model.load_state_dict(trunk.state_dict())
    return model, _train(model, config, config, data, reporter, checkpoint, variant)


def _train(
    model: Cognate,
    config: TrainingConfig,
    mix: MixConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None,
    label: str,
) -> TrainingResult:
    check_sequence(model.config, config.seq_len)

    def batches(generator: torch.Generator) -> Tensor:
        return data.batch(mix, config.batch_size, config.seq_len + 1, generator)

    return train(
        model,
        next_token_objective,
        batches,
        config,
        reporter,
        checkpoint=checkpoint,
        label=label,
        optimizer_steps_per_batch=model.config.num_supervision,
        identity=f"{label}/{mix.shares()}",
        rows_apart=True,
    )
