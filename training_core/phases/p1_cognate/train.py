"""Training of the trunk from scratch, and of the three specialists that branch from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from training_core.data.batches import MixConfig, TrainingData
from training_core.data.tokenizer import load_tokenizer
from training_core.nn.cognate import Cognate, CognateConfig, check_sequence
from training_core.phases.p1_cognate.config import TrunkConfig, VariantConfig
from training_core.reporting import Reporter
from training_core.training.loop import TrainingConfig, TrainingResult, train
from training_core.training.objective import next_token_objective

Variant = Literal["reasoning", "memory", "speed"]


def train_trunk(
    config: TrunkConfig, data: TrainingData, reporter: Reporter, checkpoint: Path | None = None
) -> tuple[Cognate, TrainingResult]:
    """Train a Cognate model from random weights, which are drawn from the configured seed.

    With a first stage it learns short questions before the text: a curriculum (Bengio et al., 2009). The optimizer
    begins anew with the text; the result counts both.

    Raises:
        ValueError: when `seq_len` exceeds `max_seq_len`, a training split is shorter than a sequence, or the task bank
            lacks what the first stage asks for.
    """
    vocab_size = load_tokenizer(data.tokenizer_json).get_vocab_size()
    shape = CognateConfig(vocab_size=vocab_size, **config.shape.model_dump())
    torch.manual_seed(config.training.seed)
    model = Cognate(shape)
    if not config.first.steps:
        return model, _train(model, config.training, config.mix, data, reporter, checkpoint, "trunk")
    if missing := [name for name, share in config.first.mix.shares().items() if share and name not in data.streams]:
        raise ValueError(
            f"the task bank has no {missing[0]} tasks for the first stage: set first.steps to 0, or make the bank with "
            "world_train_per_family above 0"
        )
    schedule = config.first.model_dump(exclude={"mix"})
    shorter = config.training.model_copy(update=schedule)
    first = _train(model, shorter, config.first.mix, data, reporter, checkpoint, "first stage")
    result = _train(model, config.training, config.mix, data, reporter, checkpoint, "trunk")
    return model, replace(
        result,
        optimizer_steps=first.optimizer_steps + result.optimizer_steps,
        tokens=first.tokens + result.tokens,
        seconds=first.seconds + result.seconds,
    )


def specialise(
    trunk: Cognate,
    variant: Variant,
    config: VariantConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> tuple[Cognate, TrainingResult]:
    """Branch a specialist from the trunk and train it on its own data mix.

    It starts from the trunk's weights, but runs them with its own recursion, memory and halting settings.
    """
    model = Cognate(trunk.config.model_copy(update=config.recursion.model_dump()))
    model.load_state_dict(trunk.state_dict())
    return model, _train(model, config.training, config.mix, data, reporter, checkpoint, variant)


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
