"""Trajectories sampled from a prompted model, and the rows in which teacher and student read them.

    teacher reads   END_OF_TEXT  history  prompt  prefix  continuation
    student reads   END_OF_TEXT  history          prefix  continuation

The history is most often empty; with one, a prompt is baked that counts in the middle of a conversation. Behind the
prompt, student position j and teacher position j + P hold the same token (P tokens of prompt), and both predict the
token behind it. The student's last position in front of the prefix corresponds to the last token of the prompt. Nothing
in front of that is learned from: `teacher_logits[:, P:]` is aligned.

A continuation may hold tokens that the teacher did not write, such as a tool's reply. Both models read them; nothing is
learned from them.

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
    """How continuations are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int = Field(48, ge=1, description="Most tokens of a continuation, its end-of-text included")
    sampling_temperature: float = Field(1.0, ge=0, description="Temperature of sampling; 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus from which tokens are drawn")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Token ids of what both models are given (`prefix`, may be empty) and of what the prompted teacher then wrote.

    `history` stands in front of the teacher's prompt and of the student's prefix.
    `own` says of each token of the continuation whether the teacher wrote it, or something else put it in; empty where
    the teacher wrote all of them.
    """

    prefix: tuple[int, ...]
    continuation: tuple[int, ...]
    own: tuple[bool, ...] = ()
    history: tuple[int, ...] = ()

    @property
    def num_given(self) -> int:
        """Tokens in front of the continuation, END_OF_TEXT and the prompt aside."""
        return len(self.history) + len(self.prefix)

    @property
    def num_own(self) -> int:
        """Tokens of the continuation that the teacher wrote."""
        return sum(self.own) if self.own else len(self.continuation)


@dataclass(frozen=True, slots=True)
class AlignedRows:
    """Trajectories as input rows, padded on the right.

    `student_BS` and `teacher_BT` are token ids, `targets_BS` the token that each student position predicts, `mask_BS`
    True where that token belongs to a continuation and was written by the teacher. T = S + prompt length.
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
    """Continue END_OF_TEXT + history + prompt + prefix from `model`, one trajectory a prefix, in the order given.

    `histories` are as many as prefixes, or None where there is nothing in front of the prompt.

    A continuation ends with END_OF_TEXT, which belongs to it, or after `max_tokens`. `interject` may put tokens in, as
    `sampling.continue_rows` says; they count. `generator` must be on the CPU.

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
    """The rows of `trajectories` for the prompted teacher and the unprompted student.

    The last token of a continuation is only a target. Padding is END_OF_TEXT on the right, where causal models do not
    see it from any position that counts.
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
    """Refuse trajectories from which nothing, or nothing right, can be learned.

    Raises:
        ValueError: for an empty prompt or set, an empty continuation, one in which the teacher wrote nothing or whose
            `own` has another length, ids outside the vocabulary, or a sum of lengths above max_seq_len.
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
                f"{len(t.continuation)}: give `own` one entry a token, or none where the teacher wrote all"
            )
        if not t.num_own:
            raise ValueError(f"the teacher wrote no token of trajectory {number}: leave it out, it teaches nothing")
        check_length(model, len(prompt_ids), t.num_given, len(t.continuation))
        check_ids(model, [*t.history, *t.prefix, *t.continuation], f"trajectory {number}")


def check_prompt(model: Cognate, prompt_ids: Sequence[int]) -> None:
    """Refuse a prompt that is empty or not of the model's vocabulary.

    Raises:
        ValueError: for either.
    """
    if not prompt_ids:
        raise ValueError("the prompt is empty, so that there is nothing to bake: give at least one token of prompt")
    check_ids(model, prompt_ids, "the prompt")


def check_length(model: Cognate, prompt: int, prefix: int, continuation: int) -> None:
    """Refuse rows longer than the model is made for.

    END_OF_TEXT stands in front and the last token is only a target, so that a row has prompt + prefix + continuation
    input positions.

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
    """Refuse token ids that are not of the model's vocabulary; `what` names their holder.

    Raises:
        ValueError: for any.
    """
    outside = [i for i in ids if not 0 <= i < model.config.vocab_size]
    if outside:
        raise ValueError(
            f"{what} holds the token id {outside[0]}, outside 0 .. {model.config.vocab_size - 1}: encode it with this "
            "model's tokenizer"
        )
