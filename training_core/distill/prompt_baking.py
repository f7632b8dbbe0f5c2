"""Prompt baking (arXiv:2409.13697, eqs. 2-5): a student without the prompt learns to imitate a teacher with it.

    theta_u = argmin_theta  E_{y ~ P_teacher(. | u, x)}  mean_t  D( P_teacher(. | u, x, y_<t), P_theta(. | x, y_<t) )
              + text_weight * E_{c ~ corpus}  mean_t  KL( P_teacher(. | c_<t) || P_theta(. | c_<t) )

where u is the prompt, x a prefix that both see (a history may precede both the prompt and the prefix), y a continuation
sampled from the prompted teacher, and D a divergence over the whole vocabulary. The mean runs over all continuation
tokens of a batch.

**Differs from the paper**: all weights of the student are trained unless `rank` selects low-rank adapters, so a copy of
the teacher must be kept; and the second term is added. It holds the student to the *unprompted* teacher on corpus text,
where the prompt is irrelevant. A next-token loss there would continue to train the student on the corpus, which would
confound the effect of baking; this term is zero for an unchanged student, and so is its gradient.

**Does not cover**: pursuit (a teacher that moves with the student) and partial baking (`p6_baking.half_baking`).

Shape legend: B rows, S positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training_core.distill.divergences import Divergence, divergence, per_position
from training_core.distill.lora import low_rank
from training_core.distill.trajectories import SamplingConfig, Trajectory, align, check_trajectories
from training_core.evaluation.intervals import difference_of_rates
from training_core.nn.cognate import Carry, Cognate, check_sequence
from training_core.record import Estimate
from training_core.reporting import Reporter
from training_core.store.bundle import canonical_json
from training_core.store.checkpoint import weights_digest
from training_core.training.loop import StepResult, TrainingConfig, step_generator, train
from training_core.training.objective import HALT_WEIGHT

TextBatches = Callable[[torch.Generator], Tensor]
ROWS_AT_ONCE = 16
NO_EFFECT_NATS = 1e-5
ADAPTER_SEED_STEP = -1  # adapters are initialised from this step of `step_generator`; training uses 0 and above


class BakingConfig(SamplingConfig, TrainingConfig):
    """Trajectories, divergence and training of one baking run. `batch_size` counts trajectories; `seq_len` is the
    length of the rows of text."""

    num_trajectories: int = Field(256, ge=1, description="Trajectories to sample from the prompted teacher")
    divergence: Divergence = Field("forward_kl", description="Divergence minimised on the continuations")
    beta: float = Field(0.5, ge=0, le=1, description="Teacher's weight in the Jensen-Shannon mixture")
    temperature: float = Field(1.0, gt=0, description="Temperature of both distributions in the divergence")
    rank: int = Field(0, ge=0, description="Rank of the LoRA adapters; 0 trains all weights")
    lora_alpha: float = Field(16.0, gt=0, description="Adapters are scaled by lora_alpha / rank")
    text_weight: float = Field(1.0, ge=0, description="Weight of the KL from the unprompted teacher on corpus text")


@dataclass(frozen=True, slots=True)
class BakingResult:
    """Measurements of a baking run: smoothed final loss (including the text and halting terms), optimizer steps,
    continuation tokens in the loss (repeats counted), trajectories, wall-clock seconds, and the `history` of every
    reported metric as in `TrainingResult`."""

    final_loss: float
    optimizer_steps: int
    continuation_tokens: int
    num_trajectories: int
    seconds: float
    history: Mapping[str, Sequence[float]]

    def metrics(self) -> dict[str, float]:
        """Return the flat metrics for a bundle."""
        return {
            "baking_loss": self.final_loss,
            "baking_optimizer_steps": self.optimizer_steps,
            "baking_continuation_tokens": self.continuation_tokens,
            "baking_trajectories": self.num_trajectories,
            "baking_seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class BakingMeasure:
    """Forward KL from the prompted teacher over given trajectories, in nats per continuation token.

    `kl_before` is the KL of the unprompted teacher, or of another starting model: the prompt's full effect, including
    the shift of all positions (persistent tokens have no rotary position, so attention to them depends on it).
    `kl_after` is the KL of the unprompted student: what is left to bake. `before_N`, `after_N` and `tokens_N` are
    float64 sums and counts per trajectory, for bootstrap intervals over trajectories.
    """

    before_N: Tensor
    after_N: Tensor
    tokens_N: Tensor

    @property
    def kl_before(self) -> float:
        """KL in nats per token between the prompted and the unprompted teacher."""
        return float(self.before_N.sum() / self.tokens_N.sum())

    @property
    def kl_after(self) -> float:
        """KL in nats per token between the prompted teacher and the student."""
        return float(self.after_N.sum() / self.tokens_N.sum())

    @property
    def strength(self) -> float:
        """1 - kl_after / kl_before: 1 for a fully baked prompt, 0 for no effect, negative if the student moved away.

        Raises:
            ValueError: when the prompt does not change the teacher, so there is nothing to bake.
        """
        self._check_effect()
        return 1 - self.kl_after / self.kl_before

    def strength_estimate(self) -> Estimate:
        """Return `strength` with a 95 % bootstrap over trajectories, resampling numerator and denominator together.

        Raises:
            ValueError: as `strength`.
        """
        self._check_effect()
        return difference_of_rates(self.before_N, self.after_N, self.before_N)

    def _check_effect(self) -> None:
        if self.kl_before < NO_EFFECT_NATS:
            raise ValueError(
                f"the prompt changes the teacher by {self.kl_before:.2g} nats per token, less than {NO_EFFECT_NATS:g}: "
                "a baking strength is undefined; choose a prompt that the teacher reacts to"
            )

    def metrics(self) -> dict[str, float]:
        """Return the flat metrics for a bundle. Raises as `strength` does."""
        return {
            "baking_kl_before": self.kl_before,
            "baking_kl_after": self.kl_after,
            "baking_strength": self.strength,
        }


def bake(
    teacher: Cognate,
    student: Cognate,
    prompt_ids: Sequence[int],
    trajectories: Sequence[Trajectory],
    text_batches: TextBatches | None,
    config: BakingConfig,
    reporter: Reporter,
    checkpoint: Path | None = None,
    label: str = "baking",
    stays_as: Cognate | None = None,
) -> BakingResult:
    """Train `student` in place on `trajectories` that `sample_continuations` drew from the prompted `teacher`.

    `student` may compute with quantised weights. With `rank` > 0 only adapters are trained and merged into its weights
    at the end; a failed run leaves the weights unchanged. `text_batches(generator)` returns corpus rows (rows, tokens +
    1), as `TrainingData.batch` does, on which the student is held to the unprompted model `stays_as` (None means the
    teacher); it is not called when `text_weight` is 0. A killed run resumes from `checkpoint` when called again with
    the same models and trajectories.

    Raises:
        ValueError: as `check_trajectories`; when teacher and student share a parameter or differ in vocabulary; when
            `text_weight` is positive and `text_batches` is None.
        TrainingDivergedError: as `train`.
    """
    _check_vocabularies(teacher, student)
    stays_as = teacher if stays_as is None else stays_as
    for model in (teacher, stays_as):
        _check_separate(model, student)
    for model in (teacher, student):
        check_trajectories(model, prompt_ids, trajectories)
    if config.text_weight > 0:
        if text_batches is None:
            raise ValueError(
                f"text_weight = {config.text_weight} needs text: pass text_batches, or set text_weight to 0 and "
                "accept that nothing protects what the model knew"
            )
        check_sequence(student.config, config.seq_len)

    def batches(generator: torch.Generator) -> Tensor:
        return torch.randint(len(trajectories), (config.batch_size,), generator=generator)

    identity = _identity((teacher, student, stays_as), prompt_ids, trajectories)
    with low_rank(student, config.rank, config.lora_alpha, step_generator(config.seed, ADAPTER_SEED_STEP)):
        result = train(
            student,
            BakingObjective(teacher, prompt_ids, trajectories, text_batches, config, stays_as),
            batches,
            config,
            reporter,
            checkpoint=checkpoint,
            label=label,
            optimizer_steps_per_batch=student.config.num_supervision,
            identity=identity,
        )
    lengths = torch.tensor([t.num_own for t in trajectories])
    tokens = sum(int(lengths[batches(step_generator(config.seed, step))].sum()) for step in range(config.steps))
    return BakingResult(
        result.final_loss, result.optimizer_steps, tokens, len(trajectories), result.seconds, result.history
    )


class PromptedTeacher:
    """The prompted teacher's next-token distributions over given trajectories, computed once and cached.

    The cache holds one row of logits (vocab,) for each continuation token that the teacher generated.

    Raises:
        ValueError: as `check_trajectories`.
    """

    @torch.no_grad()
    def __init__(self, teacher: Cognate, prompt_ids: Sequence[int], trajectories: Sequence[Trajectory]) -> None:
        check_trajectories(teacher, prompt_ids, trajectories)
        self.teacher, self.prompt_ids, self.trajectories = teacher.eval(), tuple(prompt_ids), tuple(trajectories)
        self.tokens_N = torch.tensor([t.num_own for t in trajectories], dtype=torch.float64)
        device = next(teacher.parameters()).device
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(trajectories), ROWS_AT_ONCE):
            rows = align(prompt_ids, trajectories[start : start + ROWS_AT_ONCE])
            tokens_BS, mask_BS = rows.student_BS.to(device), rows.mask_BS.to(device)
            prompted_BSV = teacher(rows.teacher_BT.to(device)).logits[:, len(prompt_ids) :]
            self._rows.append((tokens_BS, mask_BS, prompted_BSV[mask_BS]))

    @torch.no_grad()
    def nats(self, model: Cognate) -> Tensor:
        """Return KL(prompted teacher || unprompted `model`), summed over each trajectory's own tokens: (N,) float64.

        Raises:
            ValueError: when teacher and model differ in vocabulary, or a trajectory does not fit the model.
        """
        _check_vocabularies(self.teacher, model)
        check_trajectories(model, self.prompt_ids, self.trajectories)
        model.eval()
        sums: list[Tensor] = []
        for tokens_BS, mask_BS, prompted_MV in self._rows:
            scores_MV = model.to(tokens_BS.device)(tokens_BS).logits[mask_BS]
            kl_M = per_position("forward_kl", scores_MV.double(), prompted_MV.double())
            sums.append(
                torch.zeros(mask_BS.shape, dtype=torch.float64, device=kl_M.device).masked_scatter(mask_BS, kl_M).sum(1)
            )
        return torch.cat(sums).cpu()


def measure_baking(
    teacher: Cognate,
    student: Cognate,
    prompt_ids: Sequence[int],
    trajectories: Sequence[Trajectory],
    start: Cognate | None = None,
) -> BakingMeasure:
    """Measure the KL between the unprompted `student` and the prompted `teacher` on the teacher's (held-out)
    trajectories.

    Strength is relative to the unprompted model `start`, by default the teacher itself.

    Raises:
        ValueError: as `check_trajectories`, and when the models differ in vocabulary.
    """
    prompted = PromptedTeacher(teacher, prompt_ids, trajectories)
    before_N = prompted.nats(teacher if start is None else start)
    return BakingMeasure(before_N, prompted.nats(student), prompted.tokens_N)


@dataclass(slots=True)
class _Lesson:
    """Rows without the prompt for the student, and the teacher's logits at the same positions."""

    tokens_BS: Tensor
    targets_BS: Tensor
    mask_BS: Tensor
    teacher_BSV: Tensor
    carry: Carry | None = None

    def attend(self, student: Cognate) -> tuple[Tensor, Tensor, Tensor]:
        """Run one supervision step; return the student's logits, and the loss and accuracy of halting at the mask."""
        h = student.encode(self.tokens_BS)
        after = student.supervise(h, self.carry if self.carry is not None else student.start(h))
        logits_BSV = student.logits(after.y)
        correct = (logits_BSV.detach().argmax(-1) == self.targets_BS)[self.mask_BS].float()
        halting = F.binary_cross_entropy_with_logits(student.halt(after.y)[self.mask_BS].float(), correct)
        self.carry = Carry(after.y.detach(), after.z.detach())
        return logits_BSV, halting, correct.mean()


class BakingObjective:
    """The loss of one supervision step, for `training.loop.train`; a batch holds indices of trajectories (batch,).

    The teacher runs once per batch, without gradients, however many supervision steps follow. The halting head
    continues to learn whether the current argmax is right, at the same positions; as in `next_token_objective`, its
    gradient does not reach the rest of the model.
    """

    def __init__(
        self,
        teacher: Cognate,
        prompt_ids: Sequence[int],
        trajectories: Sequence[Trajectory],
        text_batches: TextBatches | None,
        config: BakingConfig,
        stays_as: Cognate | None = None,
    ) -> None:
        self.stays_as = teacher if stays_as is None else stays_as
        self.teacher, self.prompt_ids, self.trajectories = teacher, tuple(prompt_ids), tuple(trajectories)
        self.text_batches = text_batches if config.text_weight > 0 else None
        self.config = config
        self._lessons: list[_Lesson] = []

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Compute the loss; a carry of None marks the first supervision step of a batch."""
        config = self.config
        if carry is None:
            self._lessons = self._prepare(batch, generator)
        student = cast(Cognate, model)
        baked = self._lessons[0]
        logits, halting, accuracy = baked.attend(student)
        left = divergence(
            config.divergence,
            logits,
            baked.teacher_BSV,
            baked.mask_BS,
            beta=config.beta,
            temperature=config.temperature,
        )
        loss = left + HALT_WEIGHT * halting
        metrics = {config.divergence: left.detach(), "accuracy": accuracy, "halt_loss": halting.detach()}
        for text in self._lessons[1:]:
            text_logits, text_halting, _ = text.attend(student)
            drift = divergence("forward_kl", text_logits, text.teacher_BSV, text.mask_BS)
            loss = loss + config.text_weight * (drift + HALT_WEIGHT * text_halting)
            metrics["text_kl"] = drift.detach()
        return StepResult(loss, logits, baked.carry, metrics)

    @torch.no_grad()
    def _prepare(self, batch: Tensor, generator: torch.Generator) -> list[_Lesson]:
        device = batch.device
        teacher = self.teacher.to(device).eval()
        rows = align(self.prompt_ids, [self.trajectories[i] for i in batch.tolist()])
        prompted_BSV = teacher(rows.teacher_BT.to(device)).logits[:, len(self.prompt_ids) :]
        lessons = [
            _Lesson(rows.student_BS.to(device), rows.targets_BS.to(device), rows.mask_BS.to(device), prompted_BSV)
        ]
        if self.text_batches is not None:
            text = self.text_batches(generator).to(device)
            inputs, targets = text[:, :-1], text[:, 1:]
            mask = torch.ones_like(inputs, dtype=torch.bool)
            stays_as = self.stays_as.to(device).eval()
            lessons.append(_Lesson(inputs, targets, mask, stays_as(inputs).logits))
        return lessons


def _check_vocabularies(teacher: Cognate, student: Cognate) -> None:
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"the teacher has {teacher.config.vocab_size} tokens and the student {student.config.vocab_size}: they "
            "must share a tokenizer"
        )


def _check_separate(teacher: Cognate, student: Cognate) -> None:
    owned = {p.data_ptr() for p in teacher.parameters()}
    shared = [name for name, p in student.named_parameters() if p.data_ptr() in owned]
    if shared:
        raise ValueError(
            f"teacher and student share {len(shared)} parameters ({shared[0]} ...), so that the teacher would move "
            "with the student: pass a copy as the student"
        )


def _identity(models: Sequence[Cognate], prompt_ids: Sequence[int], trajectories: Sequence[Trajectory]) -> str:
    """Digest of everything except the configuration that determines the result."""
    parts = [[list(p) for p in (t.history, t.prefix, t.continuation, t.own)] for t in trajectories]
    hasher = hashlib.sha256(canonical_json([list(prompt_ids), parts]))
    for model in models:
        hasher.update(canonical_json(model.config.model_dump()))
        hasher.update(weights_digest(model))
    return hasher.hexdigest()
