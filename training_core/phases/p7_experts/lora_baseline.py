"""The LoRA baseline: low-rank adapters with the same number of bytes as an expert.

    W' = W + B A,      A (rank, in) and B (out, rank), one byte per entry and one float16 spread for each of the two

Training uses the same completions, steps and batches as `learn_supervised`. Per matrix, an expert takes r + 2 bytes and
an adapter of rank 1 takes in + out + 4: about 3.5 times as many for d_ff = 2.5 d_model, so only some of the matrices
get an adapter.

**Differs from** the LoRA that baking uses (`distill.lora`): the sum is not ternarised again. Like an expert, the
adapter is stored beside the ternary weights and not merged into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training_core.distill.lora import LowRank, low_rank
from training_core.nn.cognate import Cognate
from training_core.nn.int8 import decode_rows, encode_rows
from training_core.nn.svf import ScaledLinear, SVFModel
from training_core.reporting import Reporter
from training_core.svf.supervised import (
    CompletionObjective,
    DrawNumbers,
    ExpertLearningConfig,
    identity_of,
    training_config,
)
from training_core.tasks.questions.sft_objective import Example
from training_core.training.device import best_device
from training_core.training.loop import TrainingResult, step_generator, train

SPREAD_BYTES = 2
RANK = 1
FIRST = (
    "down",
    "gate",
    "up",
)  # order in which matrices get adapters if the bytes do not suffice for all; the best of five orders tried
ADAPTER_SEED_STEP = -1  # step of `step_generator` for initialising adapters; training uses 0 and above


@dataclass(frozen=True, slots=True)
class LowRankRival:
    """A model with adapters merged into some of its matrices, their names, and the size of the adapters in bytes."""

    model: Cognate
    layers: tuple[str, ...]
    num_bytes: int
    training: TrainingResult


def adapter_bytes(weight_OI: Tensor, rank: int = RANK) -> int:
    """Return the size in bytes of an adapter of a weight (out, in)."""
    return rank * sum(weight_OI.shape) + 2 * SPREAD_BYTES


def affordable(layers: Mapping[str, ScaledLinear], num_bytes: int) -> list[str]:
    """Return the matrices whose adapters fit into `num_bytes` together, ordered by `FIRST` and from the last block.

    Raises:
        ValueError: when not even one adapter fits.
    """
    chosen: list[str] = []
    left = num_bytes
    for name in sorted(reversed(list(layers)), key=lambda name: FIRST.index(name.rpartition(".")[2])):
        if (takes := adapter_bytes(layers[name].weight)) <= left:
            chosen.append(name)
            left -= takes
    if not chosen:
        raise ValueError(
            f"an adapter of rank 1 needs {min(adapter_bytes(layer.weight) for layer in layers.values())} bytes and "
            f"there are {num_bytes}: compare with the bytes of a whole expert"
        )
    return chosen


def learn_low_rank(
    svf: SVFModel,
    examples: Sequence[Example],
    num_bytes: int,
    config: ExpertLearningConfig,
    reporter: Reporter,
    *,
    checkpoint: Path | None = None,
    label: str = "low rank",
) -> LowRankRival:
    """Train adapters of at most `num_bytes` bytes on worked completions; an interrupted run resumes from `checkpoint`.

    Raises:
        ValueError: when there are no examples, or no adapter fits.
        TrainingDivergedError: as `train`.
    """
    svf.model.to(best_device())
    chosen = affordable(svf.layers, num_bytes)
    trained = svf.plain()
    layers = {name: trained.get_submodule(name) for name in chosen}
    generator = step_generator(config.seed, ADAPTER_SEED_STEP)
    with (
        svf.using(None) as reference,
        low_rank(trained, RANK, float(RANK), generator, layers) as adapters,
    ):
        result = train(
            trained,
            CompletionObjective(examples, reference, config.supervised_kl_weight),
            DrawNumbers(len(examples), config.supervised_batch),
            training_config(config, config.supervised_steps, config.supervised_batch, config.low_rank_lr, 1.0),
            reporter,
            checkpoint=checkpoint,
            label=label,
            identity=identity_of(svf, [str(examples), str(config.supervised_kl_weight), *chosen]),
        )
        takes = sum(store_in_bytes_(adapter) for adapter in adapters)
    return LowRankRival(trained, tuple(chosen), takes, result)


@torch.no_grad()
def store_in_bytes_(adapter: LowRank) -> int:
    """Round A and B in place to int8 codes with a float16 spread; return the number of bytes."""
    takes = 0
    for parameter in (adapter.A, adapter.B):
        codes, spread = encode_rows(parameter.flatten())  # the whole matrix is one row
        parameter.copy_(decode_rows(codes, spread).view_as(parameter))
        takes += codes.numel() + spread.element_size()
    return takes
