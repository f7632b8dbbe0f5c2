"""Supervised fine-tuning loss: completions of questions, rehearsal of corpus text, and memories of earlier levels.

    loss = mean over learned tokens of  -log p(token)                                   examples
         + text_weight   * mean over corpus tokens of -log p(token), or                 rehearsal
           text_weight   * mean over corpus tokens of KL(p_earlier || p)
         + memory_weight * mean over memory tokens of -log p(token)                     replay, or
           memory_weight * mean over memory tokens of KL(p_earlier || p)                dreams
         + 0.5 BCE of the halting head on each of them, which reaches nothing but that head

Tool output is conditioned on and masked from the loss. A memory with a teacher is a dream: its target is the earlier
model's full distribution (self-distillation, as in arXiv:2601.19897), not the one token that it sampled. The same holds
for text with a teacher: a few rows suffice to hold the model in place, where the gradient of the tokens themselves
would mostly be noise.

Logits are computed at learned positions only, because a prompt is about ten times as long as its answer.

Shape legend: B rows, S positions, N learned positions of all rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.distill.divergences import per_position
from training_core.nn.cognate import Carry, Cognate
from training_core.training.loop import Objective, StepResult
from training_core.training.objective import HALT_WEIGHT

TextBatches = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and a completion as token ids (no leading END_OF_TEXT), and a flag for each completion token: learned?

    Raises:
        ValueError: when no token is learned, or the number of flags does not match.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    learned: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.learned) != len(self.completion) or not any(self.learned):
            raise ValueError(
                f"an example needs a flag for each of its {len(self.completion)} completion tokens and one that is "
                f"learned, got {self.learned}"
            )


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of examples, right-padded with END_OF_TEXT: inputs and targets (B, S), `mask_BS` True where the target is
    learned."""

    inputs_BS: Tensor
    targets_BS: Tensor
    mask_BS: Tensor


@dataclass(frozen=True, slots=True)
class Memory:
    """Rehearsal data: every batch has exactly `tokens` learned tokens of `examples`. With a `teacher` it is a dream."""

    examples: Sequence[Example]
    tokens: int
    weight: float
    teacher: Cognate | None = None


def rows_of(examples: Sequence[Example]) -> Rows:
    """Return the rows of a batch: END_OF_TEXT, prompt and completion of every example."""
    length = max(len(e.prompt) + len(e.completion) for e in examples)
    tokens = torch.full((len(examples), length + 1), END_OF_TEXT_ID)
    mask_BS = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        start, end = len(example.prompt), len(example.prompt) + len(example.completion)
        tokens[row, 1 : end + 1] = torch.tensor([*example.prompt, *example.completion])
        mask_BS[row, start:end] = torch.tensor(example.learned)
    return Rows(tokens[:, :-1], tokens[:, 1:], mask_BS)


def draw_memories(memory: Memory, generator: torch.Generator) -> Rows:
    """Draw rows with exactly `memory.tokens` learned tokens: examples in random order, reshuffled when they run out,
    the last one truncated."""
    chosen: list[Example] = []
    left = memory.tokens
    while left > 0:
        for place in torch.randperm(len(memory.examples), generator=generator).tolist():
            chosen.append(memory.examples[place])
            left -= sum(chosen[-1].learned)
            if left <= 0:
                break
    rows = rows_of(chosen)
    if left < 0:
        learned = rows.mask_BS[-1].nonzero().flatten()
        rows.mask_BS[-1, learned[left:]] = False
    return rows


@dataclass(slots=True)
class _Lesson:
    """Rows with their targets (tokens, or a teacher's logits at the mask) and the carry between supervision steps."""

    rows: Rows
    teacher_NV: Tensor | None = None
    carry: Carry | None = None

    def attend(self, model: Cognate) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run one supervision step; return logits at the mask (tokens, vocab), mean loss, halting loss and accuracy."""
        rows = self.rows
        h = model.encode(rows.inputs_BS)
        after = model.supervise(h, self.carry if self.carry is not None else model.start(h))
        y_ND, targets_N = after.y[rows.mask_BS], rows.targets_BS[rows.mask_BS]
        logits_NV = model.logits(y_ND).float()
        if self.teacher_NV is None:
            loss = F.cross_entropy(logits_NV, targets_N)
        else:
            loss = per_position("forward_kl", logits_NV, self.teacher_NV).mean()
        correct = (logits_NV.detach().argmax(-1) == targets_N).float()
        halting = F.binary_cross_entropy_with_logits(model.halt(y_ND).float(), correct)
        self.carry = Carry(after.y.detach(), after.z.detach())
        return logits_NV, loss, halting, correct.mean()


class LessonObjective:
    """The loss of one supervision step on examples and memories; a batch holds indices of examples (batch,).

    Every memory is padded as a batch of its own, so its examples had best be of similar length.

    Raises:
        ValueError: when there are no examples, or a memory is empty.
    """

    def __init__(self, examples: Sequence[Example], *memories: Memory) -> None:
        if not examples or not all(memory.examples for memory in memories):
            raise ValueError("there is nothing to learn from: attempt some questions first, with hints")
        self.examples, self.memories = examples, memories
        self._lessons: list[tuple[str, float, _Lesson]] = []

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Compute the loss; a carry of None marks the first supervision step of a batch."""
        cognate = cast(Cognate, model)
        if carry is None:
            self._lessons = self._prepare(batch, generator)
        total = torch.zeros((), device=batch.device)
        metrics: dict[str, Tensor] = {}
        logits, first = None, None
        for name, weight, lesson in self._lessons:
            logits_NV, loss, halting, accuracy = lesson.attend(cognate)
            total = total + weight * (loss + HALT_WEIGHT * halting)
            metrics |= {f"{name}_loss": loss.detach(), f"{name}_accuracy": accuracy}
            if logits is None:
                logits, first = logits_NV, lesson.carry
        assert logits is not None
        return StepResult(total, logits, first, metrics)

    @torch.no_grad()
    def _prepare(self, batch: Tensor, generator: torch.Generator) -> list[tuple[str, float, _Lesson]]:
        device = batch.device
        rows = rows_of([self.examples[i] for i in batch.tolist()])
        lessons = [("examples", 1.0, _Lesson(_moved(rows, device)))]
        for number, memory in enumerate(self.memories):
            lesson = _lesson(_moved(draw_memories(memory, generator), device), memory.teacher)
            lessons.append((f"memory_{number}" if number else "memory", memory.weight, lesson))
        return lessons


class BesideText:
    """Another objective plus `weight` times the rehearsal loss on corpus rows: cross-entropy of the next token or, with
    a `teacher`, the KL divergence from its distribution, whose gradient vanishes where the two models agree.

    `text_batches(generator)` returns rows (rows, tokens + 1); it is not called when the weight is 0.
    """

    def __init__(
        self, objective: Objective, text_batches: TextBatches, weight: float, teacher: Cognate | None = None
    ) -> None:
        self.objective, self.text_batches, self.weight, self.teacher = objective, text_batches, weight, teacher
        self._text: _Lesson | None = None

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Compute the loss; a carry of None marks the first supervision step of a batch."""
        result = self.objective(model, batch, carry, generator)
        if self.weight == 0:
            return result
        if carry is None or self._text is None:
            text = self.text_batches(generator).to(batch.device)
            everywhere = torch.ones_like(text[:, 1:], dtype=torch.bool)
            self._text = _lesson(Rows(text[:, :-1], text[:, 1:], everywhere), self.teacher)
        _, loss, halting, _ = self._text.attend(cast(Cognate, model))
        result.loss = result.loss + self.weight * (loss + HALT_WEIGHT * halting)
        result.metrics["text_loss"] = loss.detach()
        return result


@torch.no_grad()
def _lesson(rows: Rows, teacher: Cognate | None) -> _Lesson:
    if teacher is None:
        return _Lesson(rows)
    logits_BSV = teacher.to(rows.inputs_BS.device).eval()(rows.inputs_BS).logits
    return _Lesson(rows, logits_BSV[rows.mask_BS].float())


def _moved(rows: Rows, device: torch.device) -> Rows:
    return Rows(rows.inputs_BS.to(device), rows.targets_BS.to(device), rows.mask_BS.to(device))
