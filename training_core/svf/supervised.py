"""How an expert learns from worked completions: the cross-entropy of their tokens, by the p of `experts.singular`.

    loss = mean over learned tokens of  -log P(token)  +  kl_weight * KL(P_reference || P)

P is the model with the expert, the reference the one without. Only p trains. P is the whole forward pass that is used
and measured, every supervision step and halting as they are: not step by step with a loss for each, as the phases
train that make the model.

**Differs from the paper** [1 of `experts.singular`], whose experts learn from reward (`experts.reinforce`); this
loss is an ablation there and comes out worse. Which is better here is measured.

Shape legend: B rows, S positions, V vocabulary, N learned tokens of all rows, R singular values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from training_core.distill.divergences import per_position
from training_core.nn.cognate import Carry, Cognate
from training_core.nn.svf import Expert, SVFModel
from training_core.reporting import Reporter
from training_core.store.bundle import canonical_json
from training_core.store.checkpoint import tensors_digest, weights_digest
from training_core.tasks.questions.sft_objective import Example, Rows, rows_of
from training_core.training.device import best_device
from training_core.training.loop import StepResult, TrainingConfig, TrainingResult, train

ROWS_AT_ONCE = 64
Baseline = Literal["none", "group"]


class ExpertLearningConfig(BaseModel):
    """How experts learn: from worked completions, from reward, and the low-rank adapters beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    supervised_steps: int = Field(40, ge=1, description="Steps on worked completions")
    supervised_batch: int = Field(32, ge=1, description="Completions in each of them")
    supervised_lr: float = Field(0.2, gt=0, description="Peak learning rate of p on worked completions")
    supervised_kl_weight: float = Field(0.0, ge=0, description="Weight of staying as the model without the expert")
    reward_steps: int = Field(20, ge=1, description="Steps on rewarded attempts, each with new ones")
    reward_batch: int = Field(32, ge=1, description="Questions in each of them")
    reward_attempts: int = Field(1, ge=1, description="Attempts at each of these questions")
    reward_lr: float = Field(0.1, gt=0, description="Peak learning rate of p on rewarded attempts")
    reward_clip: float = Field(1e-3, gt=0, description="Gradient norm above which gradients are scaled down to it")
    reward_kl_weight: float = Field(0.1, ge=0, description="Weight of staying as the model without the expert")
    reward_baseline: Baseline = Field(
        "none", description="What a reward is compared with: nothing, or the other attempts at the same question"
    )
    reward_max_tokens: int = Field(20, ge=1, description="Most tokens of an attempt")
    low_rank_lr: float = Field(0.03, gt=0, description="Peak learning rate of the low-rank adapters")
    checkpoint_interval_s: float = Field(20.0, ge=0, description="Seconds between resume points")
    seed: int = Field(1337, ge=0, description="Seed of batches and attempts")

    @model_validator(mode="after")
    def _check_baseline(self) -> Self:
        if self.reward_baseline == "group" and self.reward_attempts < 2:
            raise ValueError(
                f"reward_baseline 'group' compares attempts at one question, and reward_attempts is "
                f"{self.reward_attempts}: raise it to 2, or set reward_baseline to 'none'"
            )
        return self


@dataclass(frozen=True, slots=True)
class Learned:
    """An expert, the course of its training, and how far it leads from the model without it: the mean of
    KL(reference || expert) in nats per token, of the expert as it is stored."""

    expert: Expert
    training: TrainingResult
    kl: float

    def curve(self, name: str) -> dict[str, list[float]]:
        """A reported metric over the steps, as part of an exhibit: "loss", or "reward" where there was one."""
        history = self.training.history
        return {"step": list(history["step"]), name: list(history[name])}


@dataclass(frozen=True, slots=True)
class Read:
    """What a model makes of the learned tokens of rows: their logits (N, vocab), log-probabilities (N,), and rows (N,).

    `all_BSV` are the logits everywhere.
    """

    all_BSV: Tensor
    logits_NV: Tensor
    log_probs_N: Tensor
    row_N: Tensor

    def kl(self, reference: Cognate, rows: Rows) -> Tensor:
        """KL(reference || model) at each learned token, in nats, (N,); the reference has no graph."""
        with torch.no_grad():
            reference_NV = reference(rows.inputs_BS).logits[rows.mask_BS].float()
        return per_position("forward_kl", self.logits_NV, reference_NV)


def read(model: Cognate, rows: Rows) -> Read:
    """One forward pass, with a graph, of the function that is used for inference."""
    all_BSV = model(rows.inputs_BS).logits
    logits_NV = all_BSV[rows.mask_BS].float()
    log_probs_N = -F.cross_entropy(logits_NV, rows.targets_BS[rows.mask_BS], reduction="none")
    return Read(all_BSV, logits_NV, log_probs_N, rows.mask_BS.nonzero()[:, 0])


class CompletionObjective:
    """The loss on worked completions, for `training.loop.train`; a batch is example numbers (batch,).

    Raises:
        ValueError: when there are no examples.
    """

    def __init__(self, examples: Sequence[Example], reference: Cognate, kl_weight: float) -> None:
        if not examples:
            raise ValueError("there are no worked completions to learn from: give an expert a family with questions")
        self.examples, self.reference, self.kl_weight = tuple(examples), reference, kl_weight

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Compute the loss; there is no carry from one step to the next."""
        rows = moved(rows_of([self.examples[i] for i in batch.tolist()]), batch.device)
        found = read(cast(Cognate, model), rows)
        loss = -found.log_probs_N.mean()
        metrics = {"cross_entropy": loss.detach()}
        if self.kl_weight > 0:
            kl = found.kl(self.reference, rows).mean()
            loss = loss + self.kl_weight * kl
            metrics["kl"] = kl.detach()
        return StepResult(loss, found.all_BSV, None, metrics)


def learn_supervised(
    scalable: SVFModel,
    examples: Sequence[Example],
    config: ExpertLearningConfig,
    reporter: Reporter,
    *,
    checkpoint: Path | None = None,
    label: str = "expert supervised",
) -> Learned:
    """An expert for worked completions. A run that was killed goes on from `checkpoint`.

    Raises:
        ValueError: when there are no examples, or as `Expert.of`.
        TrainingDivergedError: as `train`.
    """
    scalable.model.to(best_device())
    trained = scalable.trainable()
    with scalable.using(None) as reference:
        result = train(
            trained,
            CompletionObjective(examples, reference, config.supervised_kl_weight),
            DrawNumbers(len(examples), config.supervised_batch),
            training_config(config, config.supervised_steps, config.supervised_batch, config.supervised_lr, 1.0),
            reporter,
            checkpoint=checkpoint,
            label=label,
            identity=identity_of(scalable, [str(examples), str(config.supervised_kl_weight)]),
        )
    expert = scalable.expert_of(trained)
    return Learned(expert, result, divergence_of(scalable, expert, examples))


@torch.no_grad()
def divergence_of(scalable: SVFModel, expert: Expert, examples: Sequence[Example]) -> float:
    """Mean of KL(reference || expert) over the learned tokens of examples, in nats per token."""
    total, tokens = 0.0, 0
    device = next(scalable.model.parameters()).device
    for start in range(0, len(examples), ROWS_AT_ONCE):
        rows = moved(rows_of(examples[start : start + ROWS_AT_ONCE]), device)
        with scalable.using(None) as reference:
            reference_NV = reference(rows.inputs_BS).logits[rows.mask_BS].double()
        with scalable.using(expert.multipliers()) as model:
            logits_NV = model(rows.inputs_BS).logits[rows.mask_BS].double()
        total += float(per_position("forward_kl", logits_NV, reference_NV).sum())
        tokens += len(logits_NV)
    return total / tokens


def training_config(config: ExpertLearningConfig, steps: int, batch: int, lr: float, clip: float) -> TrainingConfig:
    """Full precision, without decay and without the filter of slow gradients; AdamW moves p, Muon low-rank adapters."""
    return TrainingConfig(
        steps=steps,
        batch_size=batch,
        muon_lr=lr,
        adamw_lr=lr,
        clip_norm=clip,
        grokfast_lambda=0.0,
        precision="float32",
        checkpoint_interval_s=config.checkpoint_interval_s,
        seed=config.seed,
    )


@dataclass(frozen=True, slots=True)
class DrawNumbers:
    """`batch` of the numbers 0 .. number - 1, in random order and from the beginning again where they run out."""

    number: int
    batch: int

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Numbers (batch,)."""
        rounds = -(-self.batch // self.number)
        return torch.cat([torch.randperm(self.number, generator=generator) for _ in range(rounds)])[: self.batch]


def identity_of(scalable: SVFModel, parts: Sequence[str]) -> str:
    """A digest of the model and of what else determines a training."""
    hasher = hashlib.sha256(weights_digest(scalable.model))
    hasher.update(tensors_digest({name: layer.weight for name, layer in scalable.layers.items()}))  # in no state dict
    hasher.update(canonical_json(list(parts)))
    return hasher.hexdigest()


def moved(rows: Rows, device: torch.device) -> Rows:
    """The same rows on a device."""
    return Rows(rows.inputs_BS.to(device), rows.targets_BS.to(device), rows.mask_BS.to(device))
