"""Supervised training of an expert on worked completions: cross-entropy, minimised over the multipliers p of `nn.svf`.

    loss = mean over learned tokens of  -log P(token)  +  kl_weight * KL(P_reference || P)

P is the model with the expert, the reference the model without it. Only p is trained. P is the inference-time forward
pass (all supervision steps, with halting). Unlike pre-training, there is one loss on the final output.

**Differs from the paper** [1 of `nn.svf`], whose experts learn from reward (`p7_experts.reinforce`); there this loss
is an ablation and performs worse. Which is better here is measured.

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
    """Training of experts on worked completions and on reward, and of the LoRA baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    supervised_steps: int = Field(40, ge=1, description="Optimizer steps on worked completions")
    supervised_batch: int = Field(32, ge=1, description="Completions per step")
    supervised_lr: float = Field(0.2, gt=0, description="Peak learning rate of p on worked completions")
    supervised_kl_weight: float = Field(0.0, ge=0, description="Weight of the KL divergence from the base model")
    reward_steps: int = Field(20, ge=1, description="REINFORCE steps, each on fresh attempts")
    reward_batch: int = Field(32, ge=1, description="Questions per REINFORCE step")
    reward_attempts: int = Field(1, ge=1, description="Attempts at each question")
    reward_lr: float = Field(0.1, gt=0, description="Peak learning rate of p on rewarded attempts")
    reward_clip: float = Field(1e-3, gt=0, description="Maximum gradient norm; larger gradients are scaled down")
    reward_kl_weight: float = Field(0.1, ge=0, description="Weight of the KL divergence from the base model")
    reward_baseline: Baseline = Field(
        "none", description="Baseline of the advantage: none, or the other attempts at the same question (group)"
    )
    reward_max_tokens: int = Field(20, ge=1, description="Maximum tokens of an attempt")
    low_rank_lr: float = Field(0.03, gt=0, description="Peak learning rate of the LoRA baseline")
    checkpoint_interval_s: float = Field(20.0, ge=0, description="Seconds between resume points")
    seed: int = Field(1337, ge=0, description="Seed of batches and attempts")

    @model_validator(mode="after")
    def _check_baseline(self) -> Self:
        if self.reward_baseline == "group" and self.reward_attempts < 2:
            raise ValueError(
                f"reward_baseline 'group' needs several attempts at each question, but reward_attempts is "
                f"{self.reward_attempts}: raise it to 2, or set reward_baseline to 'none'"
            )
        return self


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained expert, its training curve, and `kl`: the mean KL(reference || expert) in nats per token, computed with
    the expert as stored."""

    expert: Expert
    training: TrainingResult
    kl: float

    def curve(self, name: str) -> dict[str, list[float]]:
        """Return a reported metric over the steps for an exhibit: "loss", or "reward" if there was one."""
        history = self.training.history
        return {"step": list(history["step"]), name: list(history[name])}


@dataclass(frozen=True, slots=True)
class Read:
    """Model outputs at the learned tokens of a batch: logits (N, vocab), log-probabilities (N,), row indices (N,).

    `all_BSV` holds the logits at all positions.
    """

    all_BSV: Tensor
    logits_NV: Tensor
    log_probs_N: Tensor
    row_N: Tensor

    def kl(self, reference: Cognate, rows: Rows) -> Tensor:
        """Return KL(reference || model) at each learned token in nats, (N,); the reference carries no gradient."""
        with torch.no_grad():
            reference_NV = reference(rows.inputs_BS).logits[rows.mask_BS].float()
        return per_position("forward_kl", self.logits_NV, reference_NV)


def read(model: Cognate, rows: Rows) -> Read:
    """Run the inference-time forward pass with gradients, and return its outputs at the learned tokens."""
    all_BSV = model(rows.inputs_BS).logits
    logits_NV = all_BSV[rows.mask_BS].float()
    log_probs_N = -F.cross_entropy(logits_NV, rows.targets_BS[rows.mask_BS], reduction="none")
    return Read(all_BSV, logits_NV, log_probs_N, rows.mask_BS.nonzero()[:, 0])


class CompletionObjective:
    """The loss on worked completions, for `training.loop.train`; a batch holds indices of examples (batch,).

    Raises:
        ValueError: when there are no examples.
    """

    def __init__(self, examples: Sequence[Example], reference: Cognate, kl_weight: float) -> None:
        if not examples:
            raise ValueError("there are no worked completions to learn from: give the expert a family with questions")
        self.examples, self.reference, self.kl_weight = tuple(examples), reference, kl_weight

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Compute the loss; there is no carry from one step to the next."""
        rows = moved(rows_of([self.examples[i] for i in batch.tolist()]), batch.device)
        outputs = read(cast(Cognate, model), rows)
        loss = -outputs.log_probs_N.mean()
        metrics = {"cross_entropy": loss.detach()}
        if self.kl_weight > 0:
            kl = outputs.kl(self.reference, rows).mean()
            loss = loss + self.kl_weight * kl
            metrics["kl"] = kl.detach()
        return StepResult(loss, outputs.all_BSV, None, metrics)


def learn_supervised(
    svf: SVFModel,
    examples: Sequence[Example],
    config: ExpertLearningConfig,
    reporter: Reporter,
    *,
    checkpoint: Path | None = None,
    label: str = "expert supervised",
) -> Learned:
    """Train an expert on worked completions. A killed run resumes from `checkpoint`.

    Raises:
        ValueError: when there are no examples, or as `Expert.of`.
        TrainingDivergedError: as `train`.
    """
    svf.model.to(best_device())
    trained = svf.trainable()
    with svf.using(None) as reference:
        result = train(
            trained,
            CompletionObjective(examples, reference, config.supervised_kl_weight),
            DrawNumbers(len(examples), config.supervised_batch),
            training_config(config, config.supervised_steps, config.supervised_batch, config.supervised_lr, 1.0),
            reporter,
            checkpoint=checkpoint,
            label=label,
            identity=identity_of(svf, [str(examples), str(config.supervised_kl_weight)]),
        )
    expert = svf.expert_of(trained)
    return Learned(expert, result, divergence_of(svf, expert, examples))


@torch.no_grad()
def divergence_of(svf: SVFModel, expert: Expert, examples: Sequence[Example]) -> float:
    """Return the mean KL(reference || expert) over the learned tokens of examples, in nats per token."""
    total, tokens = 0.0, 0
    device = next(svf.model.parameters()).device
    for start in range(0, len(examples), ROWS_AT_ONCE):
        rows = moved(rows_of(examples[start : start + ROWS_AT_ONCE]), device)
        with svf.using(None) as reference:
            reference_NV = reference(rows.inputs_BS).logits[rows.mask_BS].double()
        with svf.using(expert.multipliers()) as model:
            logits_NV = model(rows.inputs_BS).logits[rows.mask_BS].double()
        total += float(per_position("forward_kl", logits_NV, reference_NV).sum())
        tokens += len(logits_NV)
    return total / tokens


def training_config(config: ExpertLearningConfig, steps: int, batch: int, lr: float, clip: float) -> TrainingConfig:
    """Return a training configuration in full precision, without weight decay and Grokfast; AdamW updates p, Muon the
    low-rank adapters."""
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
    """A sampler of `batch` indices out of 0 .. number - 1, without replacement, reshuffled when they run out."""

    number: int
    batch: int

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Draw indices (batch,)."""
        rounds = -(-self.batch // self.number)
        return torch.cat([torch.randperm(self.number, generator=generator) for _ in range(rounds)])[: self.batch]


def identity_of(svf: SVFModel, parts: Sequence[str]) -> str:
    """Return a digest of the model and of everything else that determines a training run."""
    hasher = hashlib.sha256(weights_digest(svf.model))
    # The SVF layers' weights are in no state dict.
    hasher.update(tensors_digest({name: layer.weight for name, layer in svf.layers.items()}))
    hasher.update(canonical_json(list(parts)))
    return hasher.hexdigest()


def moved(rows: Rows, device: torch.device) -> Rows:
    """Return the rows on a device."""
    return Rows(rows.inputs_BS.to(device), rows.targets_BS.to(device), rows.mask_BS.to(device))
