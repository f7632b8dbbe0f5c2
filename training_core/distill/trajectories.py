"""Trajectories sampled from a prompted model, and their alignment into rows for teacher and student.

    teacher reads   END_OF_TEXT  history  prompt  prefix  continuation
    student reads   END_OF_TEXT  history          prefix  continuation

The history is usually empty; a non-empty one bakes a prompt that takes effect in the middle of a conversation. After
the prompt, student position j and teacher position j + P hold the same token (P tokens of prompt), and both predict the
next token. The student's last position before the prefix corresponds to the last token of the prompt. Nothing before it
enters the loss, so `teacher_logits[:, P:]` is aligned.

A continuation may contain tokens that the teacher did not generate, such as a tool's reply. Both models read them; they
are masked from the loss.

Shape legend: B trajectories, S student positions, T teacher positions (S + P), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.text.sampling import Interject, continue_rows


class SamplingConfig(BaseModel):
    """Sampling of the teacher's continuations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(48, ge=1, description="Maximum tokens of a continuation, END_OF_TEXT included")
    sampling_temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy decoding")
    top_p: float = Field(1.0, gt=0, le=1, description="Probability mass of the nucleus that tokens are sampled from")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Token ids of the prefix that both models are given (may be empty) and of the prompted teacher's continuation.

    `history` precedes the teacher's prompt and the student's prefix. `own` says for each continuation token whether the
    teacher generated it or it was inserted; empty if the teacher generated all of them.
    """

    prefix: tuple[int, ...]
    continuation: tuple[int, ...]
    own: tuple[bool, ...] = ()
    history: tuple[int, ...] = ()

    @property
    def num_given(self) -> int:
        """Number of tokens before the continuation, excluding END_OF_TEXT and the prompt."""
        return len(self.history) + len(self.prefix)

    @property
    def num_own(self) -> int:
        """Number of continuation tokens that the teacher generated."""
        return sum(self.own) if self.own else len(self.continuation)


@dataclass(frozen=True, slots=True)
class AlignedRows:
    """Trajectories as right-padded input rows.

    `student_BS` and `teacher_BT` are token ids, `targets_BS` is the token that each student position predicts, and
    `mask_BS` is True where the teacher generated that token. T = S + prompt length.
    """

    student_BS: Tensor
    teacher_BT: Tensor
    targets_BS: Tensor
    mask_BS: Tensor


def sample_continuations(
    model: Cognate,
    prompt_ids: Sequence[int],
    prefixes: Sequence[Sequence[int]],
    config: SamplingConfig,
    generator: torch.Generator,
    interject: Interject | None = None,
    histories: Sequence[Sequence[int]] | None = None,
) -> list[Trajectory]:
    """Sample a continuation of END_OF_TEXT + history + prompt + prefix for each prefix, in the order given.

    There is one history per prefix, or `histories` is None and nothing precedes the prompts.

    A continuation ends with END_OF_TEXT, which is part of it, or after `max_tokens`. `interject` may insert tokens (see
    `sampling.continue_rows`), which count towards `max_tokens`. `generator` must be on the CPU.

    Raises:
        ValueError: for an empty prompt, no prefixes, another number of histories, ids outside the vocabulary, or a sum
            of lengths above max_seq_len.
    """
    check_prompt(model, prompt_ids)
    if not prefixes:
        raise ValueError("there are no prefixes to continue: give at least one (it may be empty)")
    before = [()] * len(prefixes) if histories is None else histories
    if len(before) != len(prefixes):
        raise ValueError(f"there are {len(before)} histories for {len(prefixes)} prefixes: give one for each, or none")
    for history, prefix in zip(before, prefixes, strict=True):
        check_length(model, len(prompt_ids), len(history) + len(prefix), config.max_tokens)
        check_ids(model, prefix, "a prefix")
        check_ids(model, history, "a history")
    drawn = continue_rows(
        model,
        [(*history, *prompt_ids, *prefix) for history, prefix in zip(before, prefixes, strict=True)],
        config.max_tokens,
        generator,
        temperature=config.sampling_temperature,
        top_p=config.top_p,
        interject=interject,
    )
    return [
        Trajectory(tuple(prefix), row.ids, () if all(row.own) else row.own, tuple(history))
        for history, prefix, row in zip(before, prefixes, drawn, strict=True)
    ]


def align(prompt_ids: Sequence[int], trajectories: Sequence[Trajectory]) -> AlignedRows:
    """Align `trajectories` into rows for the prompted teacher and the unprompted student.

    The last token of a continuation is only a target. Rows are right-padded with END_OF_TEXT, which a causal model
    cannot see from any position in the loss.
    """
    length = max(t.num_given + len(t.continuation) for t in trajectories)
    tokens = torch.full((len(trajectories), length + 1), END_OF_TEXT_ID)
    mask_BS = torch.zeros(len(trajectories), length, dtype=torch.bool)
    prompt, prompted = torch.tensor(list(prompt_ids), dtype=torch.int64), []
    for row, t in enumerate(trajectories):
        end, start = t.num_given + len(t.continuation), 1 + len(t.history)
        tokens[row, 1 : end + 1] = torch.tensor([*t.history, *t.prefix, *t.continuation])
        mask_BS[row, t.num_given : end] = torch.tensor(t.own) if t.own else True
        prompted.append(torch.cat([tokens[row, :start], prompt, tokens[row, start:-1]]))
    student_BS, teacher_BT = tokens[:, :-1], torch.stack(prompted)
    return AlignedRows(student_BS, teacher_BT, tokens[:, 1:], mask_BS)


def check_trajectories(model: Cognate, prompt_ids: Sequence[int], trajectories: Sequence[Trajectory]) -> None:
    """Check that trajectories are valid training data for the model.

    Raises:
        ValueError: for an empty prompt or set, a continuation that is empty, without a token of the teacher's, or with
            an `own` of another length, ids outside the vocabulary, or a sum of lengths above max_seq_len.
    """
    check_prompt(model, prompt_ids)
    if not trajectories:
        raise ValueError("there are no trajectories: sample some with sample_continuations")
    for number, t in enumerate(trajectories):
        if not t.continuation:
            raise ValueError(f"the continuation of trajectory {number} is empty: leave it out, it teaches nothing")
        if t.own and len(t.own) != len(t.continuation):
            raise ValueError(
                f"trajectory {number} says of {len(t.own)} tokens who wrote them, its continuation has "
                f"{len(t.continuation)}: give `own` one entry per token, or none if the teacher generated all of them"
            )
        if not t.num_own:
            raise ValueError(f"the teacher wrote no token of trajectory {number}: leave it out, it teaches nothing")
        check_length(model, len(prompt_ids), t.num_given, len(t.continuation))
        check_ids(model, [*t.history, *t.prefix, *t.continuation], f"trajectory {number}")


def check_prompt(model: Cognate, prompt_ids: Sequence[int]) -> None:
    """Check that a prompt is not empty and within the model's vocabulary.

    Raises:
        ValueError: when either fails.
    """
    if not prompt_ids:
        raise ValueError("the prompt is empty, so that there is nothing to bake: give at least one token of prompt")
    check_ids(model, prompt_ids, "the prompt")


def check_length(model: Cognate, prompt: int, prefix: int, continuation: int) -> None:
    """Check that a row fits the model's context.

    END_OF_TEXT is prepended and the last token is only a target, so a row has prompt + prefix + continuation input
    positions.

    Raises:
        ValueError: when these numbers of tokens sum to more than max_seq_len.
    """
    total = prompt + prefix + continuation
    if total > model.config.max_seq_len:
        raise ValueError(
            f"{prompt} tokens of prompt + {prefix} of prefix + {continuation} of continuation = {total} exceed "
            f"max_seq_len = {model.config.max_seq_len}: shorten the prompt or the prefix, or lower max_tokens"
        )


def check_ids(model: Cognate, ids: Sequence[int], what: str) -> None:
    """Check that token ids are within the model's vocabulary; `what` names their holder in the error.

    Raises:
        ValueError: for an id outside the vocabulary.
    """
    outside = [i for i in ids if not 0 <= i < model.config.vocab_size]
    if outside:
        raise ValueError(
            f"{what} holds the token id {outside[0]}, outside 0 .. {model.config.vocab_size - 1}: encode it with this "
            "model's tokenizer"
        )
