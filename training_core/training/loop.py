"""The training loop shared by all phases, which supply a model, an objective and a source of batches."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from training_core.nn.cognate import Carry
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig
from training_core.optim.schedules import warmup_stable_decay
from training_core.reporting import Figure, Reporter
from training_core.store.bundle import canonical_json
from training_core.store.checkpoint import load_checkpoint, save_checkpoint
from training_core.training import distributed
from training_core.training.device import Precision, autocast, best_device

REPORT_EVERY = 10  # largest number of steps between reports; short runs report more often, about twenty times


class TrainingConfig(OptimizerConfig):
    """Length, batch, schedule and optimizer of a training run."""

    steps: int = Field(300, ge=1, description="Batches; each takes num_supervision optimizer steps")
    batch_size: int = Field(8, ge=1, description="Sequences in a batch")
    seq_len: int = Field(256, ge=2, description="Tokens in a training sequence")
    warmup_fraction: float = Field(0.05, ge=0, le=1, description="Share of the steps with learning-rate warm-up")
    decay_fraction: float = Field(0.5, ge=0, le=1, description="Share of the steps with learning-rate decay")
    precision: Precision = Field("auto", description="auto: bfloat16 autocast on GPUs that have it, else float32")
    checkpoint_interval_s: float = Field(20.0, ge=0, description="Seconds between resume points")
    seed: int = Field(1337, ge=0, description="Seed of initialisation and batches")


class TrainingDivergedError(ValueError):
    """Raised when the loss or a gradient stops being finite."""


@dataclass(slots=True)
class StepResult:
    """Result of an objective for one optimizer step: a scalar loss, the logits (..., vocab) it was computed from
    ((batch, seq, vocab) if all positions are in the loss), the carry into the next step, and scalars to report."""

    loss: Tensor
    logits: Tensor
    carry: Carry | None
    metrics: dict[str, Tensor]


class Objective(Protocol):
    """Loss of `model` on a batch of tokens (batch, seq + 1); `generator` is seeded for this batch."""

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Compute the loss."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Measurements of a training run: smoothed final loss in nats per token, optimizer steps, tokens, wall-clock
    seconds, and the `history` of every reported metric, with the steps under `step`."""

    final_loss: float
    optimizer_steps: int
    tokens: int
    seconds: float
    history: Mapping[str, Sequence[float]]

    def metrics(self) -> dict[str, float]:
        """Return the flat metrics for a bundle."""
        return {
            "train_loss": self.final_loss,
            "train_optimizer_steps": self.optimizer_steps,
            "train_tokens": self.tokens,
            "train_seconds": self.seconds,
        }


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one training step, which depends only on the seed and the step."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def train(
    model: nn.Module,
    objective: Objective,
    batches: Callable[[torch.Generator], Tensor],
    config: TrainingConfig,
    reporter: Reporter,
    *,
    checkpoint: Path | None = None,
    label: str = "training",
    optimizer_steps_per_batch: int = 1,
    identity: str = "",
    before_step: Callable[[int], None] | None = None,
    lr_factors: Mapping[str, float] | None = None,
    part: tuple[int, int] | None = None,
    rows_apart: bool = False,
) -> TrainingResult:
    """Train `model` in place, and return its measurements.

    `batches` draws a batch (batch, seq_len + 1) from a generator. With a folder `checkpoint`, the run writes a resume
    point every `checkpoint_interval_s` seconds and at its end, and resumes from one with the same configuration and
    `identity` (a digest of everything else that determines the result: data, parent). On a CPU a resumed run ends with
    bit-identical weights. `before_step(step)` may set state that depends on the step only. `lr_factors` are those of
    `MuGrokfast`. `part` places the run in a longer schedule: (steps before this run, steps in total). `rows_apart`
    declares that the loss is a mean over independent rows, so that several ranks (`training.distributed`) each take a
    share of every batch; otherwise every rank computes the whole batch.

    Raises:
        TrainingDivergedError: when the loss or the gradient norm stops being finite; nothing is saved then.
        ValueError: when the ranks do not see the same checkpoint, or a batch has fewer rows than there are ranks.
    """
    device = best_device()
    model.to(device).train()
    optimizer = MuGrokfast(model, config, lr_factors)
    before, whole = part or (0, config.steps)
    fingerprint = _fingerprint(model, config, [identity, lr_factors or {}, before, whole, optimizer_steps_per_batch])
    path = None if checkpoint is None else checkpoint / f"{label.replace(' ', '_')}.safetensors"
    distributed.wait_for_all()
    course = _restore(path, fingerprint, model, optimizer)
    distributed.require_same(course.step, f"{label}: the step to go on from", device)
    distributed.copy_from_first(model.state_dict().values())
    every = max(1, min(REPORT_EVERY, config.steps // 20))
    started = last_saved = time.monotonic()
    for step in range(course.step, config.steps):
        generator = step_generator(config.seed, before + step)
        batch = batches(generator).to(device)
        if before_step is not None:
            before_step(step)
        factor = _lr_factor(config, step, before, whole)
        learning = _Learning(model, objective, optimizer, config.precision, factor, rows_apart)
        loss, norm, metrics = learning.batch(batch, generator, optimizer_steps_per_batch)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"{label}: loss {loss} and gradient norm {norm} at step {step} of {config.steps}; lower muon_lr "
                f"(now {config.muon_lr:g}) and adamw_lr (now {config.adamw_lr:g}) or raise warmup_fraction"
            )
        reports = step % every == 0 or step + 1 == config.steps
        course.observe(step, loss, norm, metrics, keep=reports)
        reporter.progress(step + 1, config.steps, label)
        if reports:
            reporter.metrics(
                step, {f"{label}/{k}": v for k, v in course.latest.items()} | {f"{label}/lr_factor": factor}
            )
        now = time.monotonic()
        due = now - last_saved >= config.checkpoint_interval_s or step + 1 == config.steps
        if due and path is not None and distributed.is_first():
            course.seconds_before += now - started
            started = last_saved = now
            _save(path, fingerprint, model, optimizer, course)
    seconds = course.seconds_before + time.monotonic() - started
    reporter.figure(label, course.figure(label))
    model.eval()
    tokens = config.steps * config.batch_size * config.seq_len
    return TrainingResult(course.smoothed, config.steps * optimizer_steps_per_batch, tokens, seconds, course.history)


@dataclass(frozen=True, slots=True)
class _Learning:
    """One training step: all optimizer steps on one batch, by a single process or by several ranks."""

    model: nn.Module
    objective: Objective
    optimizer: MuGrokfast
    precision: Precision
    lr_factor: float
    rows_apart: bool

    def batch(self, batch: Tensor, generator: torch.Generator, steps: int) -> tuple[float, float, dict[str, float]]:
        """Take the optimizer steps; return the last loss, gradient norm and metrics over all rows."""
        own, share = (
            distributed.rows_of_this_rank(batch) if self.rows_apart else (batch, 1.0 / distributed.world_size())
        )
        carry: Carry | None = None
        for _ in range(steps):
            with autocast(own.device, self.precision):
                result = self.objective(self.model, own, carry, generator)
            result.loss.backward()  # type: ignore[no-untyped-call]
            distributed.sum_gradients(self.optimizer.parameters.values(), share)
            norm = self.optimizer.step(self.lr_factor)
            carry = result.carry
        scalars = {"": float(result.loss.detach()), **{k: float(v) for k, v in result.metrics.items()}}
        scalars = distributed.mean_scalars(scalars, share, own.device)
        return scalars.pop(""), norm, scalars


@dataclass(slots=True)
class _Course:
    """The part of a run's state that does not consist of tensors."""

    step: int
    smoothed: float
    seconds_before: float
    history: dict[str, list[float]]
    latest: dict[str, float]

    def observe(self, step: int, loss: float, norm: float, metrics: dict[str, float], *, keep: bool) -> None:
        self.step = step + 1
        self.smoothed = loss if step == 0 else 0.95 * self.smoothed + 0.05 * loss
        self.latest = {"loss": loss, "gradient_norm": norm, **metrics}
        if keep:
            for name, value in {"step": step, "smoothed": self.smoothed, **self.latest}.items():
                self.history.setdefault(name, []).append(value)

    def figure(self, label: str) -> Figure:
        series = {name: (self.history["step"], self.history[name]) for name in ("loss", "smoothed")}
        return Figure(f"Loss: {label}", "step", "nats per token", series)


def _lr_factor(config: TrainingConfig, step: int, before: int, whole: int) -> float:
    """The learning-rate factor: this run's own warm-up (its optimizer state is new), and the whole schedule's decay."""
    rising = warmup_stable_decay(step, config.steps, config.warmup_fraction, 0.0)
    return min(rising, warmup_stable_decay(before + step, whole, 0.0, config.decay_fraction))


def _fingerprint(model: nn.Module, config: TrainingConfig, identity: Sequence[object]) -> str:
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    hashed = config.model_dump(exclude={"checkpoint_interval_s"})
    return hashlib.sha256(canonical_json([shapes, hashed, identity])).hexdigest()


def _restore(path: Path | None, fingerprint: str, model: nn.Module, optimizer: MuGrokfast) -> _Course:
    checkpoint = None if path is None else load_checkpoint(path, fingerprint)
    if checkpoint is None:
        return _Course(0, 0.0, 0.0, {}, {})
    tensors, state = checkpoint
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    optimizer.load_state({k.removeprefix("optim."): v for k, v in tensors.items() if k.startswith("optim.")})
    course = dict(state)
    course.pop("fingerprint")
    return _Course(**course)


def _save(path: Path, fingerprint: str, model: nn.Module, optimizer: MuGrokfast, course: _Course) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"optim.{k}": v for k, v in optimizer.state().items()}
    state = {
        "fingerprint": fingerprint,
        "step": course.step,
        "smoothed": course.smoothed,
        "seconds_before": course.seconds_before,
        "history": course.history,
        "latest": course.latest,
    }
    save_checkpoint(path, tensors, state)
