"""Persistence of a prompt's effect over the turns of a conversation: given once at the start, compared with baked in.

Let h_t be the history (user lines and replies before turn t), x_t the user line of turn t, u the prompt, and y_t the
reply that the teacher samples after END u x_t. The same text is scored in four ways:

    fresh      END  h_t  u  x_t  y_t    teacher, with the prompt directly before the turn
    prompted   END  u  h_t  x_t  y_t    teacher, with the prompt at the start of the conversation
    bare       END     h_t  x_t  y_t    teacher
    baked      END     h_t  x_t  y_t    student

    presence(m, t) = 1 - KL(fresh || m) / KL(fresh || bare)    at turn t, over the tokens of y_t
    drift(m)       = presence(m, first turn) - presence(m, last turn)

At turn 1 `prompted` and `fresh` have the same input, so the presence of `prompted` is 1 up to rounding.

An unchanged model trivially has zero drift, so we also report `advantage` = presence(baked) - presence(prompted) at
the last turn.

**Does not cover**: a conversation that follows from what a drifting model says. User lines are fixed, and each reply is
one that the prompted model gives to its line alone; only the context before the turn varies.

Shape legend: C conversations, G measured turns, M reply tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.distill.divergences import per_position
from training_core.distill.prompt_baking import NO_EFFECT_NATS, ROWS_AT_ONCE
from training_core.distill.trajectories import (
    SamplingConfig,
    check_ids,
    check_length,
    check_prompt,
    sample_continuations,
)
from training_core.evaluation.intervals import percentile_interval, resample_weights
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.record import Estimate

REPLIES_PER_LINE = 4  # sampled replies per distinct line, which conversations use in rotation
Conversation = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Persistence:
    """Presence at each of `turns`, and its loss from the first to the last of them.

    `effect` is KL(fresh || bare) in nats per reply token. The slopes are least-squares fits, in presence per turn.
    `difference` is drift_prompted - drift_baked: positive if the baked prompt loses less. `advantage` is the presence
    of the baked prompt minus that of the prompted one at the last turn. CIs are 95 % bootstraps over conversations, in
    which all quantities are resampled together.
    """

    turns: tuple[int, ...]
    effect: tuple[float, ...]
    prompted: tuple[Estimate, ...]
    baked: tuple[Estimate, ...]
    drift_prompted: Estimate
    drift_baked: Estimate
    slope_prompted: Estimate
    slope_baked: Estimate
    difference: Estimate
    advantage: Estimate

    def metrics(self) -> dict[str, float]:
        """Return drift, slopes and presence at the last turn as the flat metrics of a bundle."""
        metrics = {"drift_turns": float(self.turns[-1])}
        for name in ("drift_prompted", "drift_baked", "slope_prompted", "slope_baked"):
            metrics |= getattr(self, name).metrics(name)
        metrics |= self.prompted[-1].metrics("presence_prompted") | self.baked[-1].metrics("presence_baked")
        return metrics | self.difference.metrics("drift_difference") | self.advantage.metrics("presence_advantage")


@torch.no_grad()
def measure_persistence(
    teacher: Cognate,
    student: Cognate,
    prompt_ids: Sequence[int],
    conversations: Sequence[Conversation],
    turns: Sequence[int],
    config: SamplingConfig,
    generator: torch.Generator,
) -> Persistence:
    """Measure the presence at `turns` (counted from 1) of the prompt in `teacher` and of its baked form in `student`.

    `conversations[c][t - 1]` holds the token ids of the user line of turn t, including the separator from the previous
    reply and the cue for the next one. Replies are sampled according to `config`, up to `max_tokens` tokens. An
    END_OF_TEXT that ends a reply counts in its divergence but is left out of the histories. `generator` must be on the
    CPU.

    Raises:
        ValueError: for fewer than two turns, or turns that do not increase from 1 on; for no conversations, or one with
            too few lines or an empty line; for ids outside the vocabulary; for a conversation that exceeds max_seq_len;
            for models with different vocabularies; and for a prompt without effect at one of the turns.
    """
    _check(teacher, student, prompt_ids, conversations, turns, config)
    teacher = inference_copy(teacher)
    student = inference_copy(student).to(next(teacher.parameters()).device)
    replies = _replies(teacher, prompt_ids, [c[: turns[-1]] for c in conversations], config, generator)
    talks = [_Talk.of(c, own, turns) for c, own in zip(conversations, replies, strict=True)]
    fresh = [[talk.fresh(g, prompt_ids) for talk in talks] for g in range(len(turns))]
    fresh_GC = [[answers[0] for answers in _answers(teacher, rows)] for rows in fresh]
    nats_GC = {}
    for name, model, prefix in (("prompted", teacher, prompt_ids), ("bare", teacher, ()), ("baked", student, ())):
        answers_CG = _answers(model, [talk.whole(prefix) for talk in talks])
        nats = [
            [
                float(per_position("forward_kl", answers_CG[c][g], answer_MV).sum())
                for c, answer_MV in enumerate(answers)
            ]
            for g, answers in enumerate(fresh_GC)
        ]
        nats_GC[name] = torch.tensor(nats, dtype=torch.float64)
    tokens_G = torch.tensor([sum(len(answer) for answer in answers) for answers in fresh_GC])
    return _summary(nats_GC, turns, tokens_G)


@dataclass(frozen=True, slots=True)
class _Row:
    """A model's input after END_OF_TEXT, and the places where it predicts replies: (first position, tokens) of each."""

    ids: list[int]
    places: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation as alternating lines and replies.

    `starts` are the offsets of the `parts`; `measured` holds, for each measured turn, the index of its line and the
    number of tokens predicted there.
    """

    parts: list[Sequence[int]]
    starts: list[int]
    measured: list[tuple[int, int]]

    @classmethod
    def of(cls, conversation: Conversation, replies: Sequence[Sequence[int]], turns: Sequence[int]) -> _Talk:
        parts: list[Sequence[int]] = []
        for line, reply in zip(conversation, replies, strict=False):
            parts += [line, reply[:-1] if reply[-1] == END_OF_TEXT_ID else reply]
        starts = list(accumulate((len(part) for part in parts), initial=0))
        return cls(parts, starts, [(t - 1, len(replies[t - 1])) for t in turns])

    def whole(self, prefix: Sequence[int]) -> _Row:
        """Return the whole conversation after `prefix`.

        A reply's first token is predicted at the token before it. In the model's input that is the reply's own offset,
        because END_OF_TEXT in front shifts everything by one.
        """
        places = [(len(prefix) + self.starts[2 * turn + 1], length) for turn, length in self.measured]
        return _Row([*prefix, *(i for part in self.parts for i in part)], places)

    def fresh(self, number: int, prompt_ids: Sequence[int]) -> _Row:
        """Return the conversation up to and including the reply of a measured turn, with the prompt before its line."""
        turn, length = self.measured[number]
        history = [i for part in self.parts[: 2 * turn] for i in part]
        ids = [*history, *prompt_ids, *self.parts[2 * turn], *self.parts[2 * turn + 1]]
        return _Row(ids, [(len(prompt_ids) + self.starts[2 * turn + 1], length)])


def _replies(
    teacher: Cognate,
    prompt_ids: Sequence[int],
    conversations: Sequence[Conversation],
    config: SamplingConfig,
    generator: torch.Generator,
) -> list[list[tuple[int, ...]]]:
    """Return the prompted teacher's reply to every line; each distinct line has a few sampled replies."""
    lines = list(dict.fromkeys(tuple(line) for conversation in conversations for line in conversation))
    asked = [line for line in lines for _ in range(REPLIES_PER_LINE)]
    drawn = sample_continuations(teacher, prompt_ids, asked, config, generator)
    place = {line: number * REPLIES_PER_LINE for number, line in enumerate(lines)}
    return [
        [
            drawn[place[tuple(line)] + (number + turn) % REPLIES_PER_LINE].continuation
            for turn, line in enumerate(conversation)
        ]
        for number, conversation in enumerate(conversations)
    ]


def _answers(model: Cognate, rows: Sequence[_Row]) -> list[list[Tensor]]:
    """Return the logits (M, V) in float64 for each row and each place in it."""
    device, answers = next(model.parameters()).device, []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        tokens_CS = torch.full((len(part), 1 + max(len(row.ids) for row in part)), END_OF_TEXT_ID)
        for index, row in enumerate(part):
            tokens_CS[index, 1 : len(row.ids) + 1] = torch.tensor(row.ids)
        logits_CSV = model(tokens_CS.to(device)).logits.cpu()
        answers += [
            [logits_CSV[index, first : first + count].double() for first, count in row.places]
            for index, row in enumerate(part)
        ]
    return answers


def _summary(nats_GC: dict[str, Tensor], turns: Sequence[int], tokens_G: Tensor) -> Persistence:
    effect = nats_GC["bare"].sum(1) / tokens_G
    for turn, nats in zip(turns, effect.tolist(), strict=True):
        if nats < NO_EFFECT_NATS:
            raise ValueError(
                f"at turn {turn} the prompt changes the teacher by {nats:.2g} nats per token, less than "
                f"{NO_EFFECT_NATS:g}: its presence is undefined; choose a prompt that the teacher reacts to"
            )
    count = nats_GC["bare"].shape[1]
    weights = torch.cat(
        [torch.ones(1, count, dtype=torch.float64), resample_weights(count)]
    )  # row 0: the original sample, then resamples
    left = weights @ nats_GC["bare"].T
    presence = {name: 1 - (weights @ nats_GC[name].T) / left for name in ("prompted", "baked")}
    drift = {name: values[:, 0] - values[:, -1] for name, values in presence.items()}
    centred = torch.tensor(turns, dtype=torch.float64) - sum(turns) / len(turns)
    slope = {name: values @ centred / centred.square().sum() for name, values in presence.items()}
    return Persistence(
        tuple(turns),
        tuple(effect.tolist()),
        tuple(_estimate(column) for column in presence["prompted"].unbind(1)),
        tuple(_estimate(column) for column in presence["baked"].unbind(1)),
        _estimate(drift["prompted"]),
        _estimate(drift["baked"]),
        _estimate(slope["prompted"]),
        _estimate(slope["baked"]),
        _estimate(drift["prompted"] - drift["baked"]),
        _estimate(presence["baked"][:, -1] - presence["prompted"][:, -1]),
    )


def _estimate(values: Tensor) -> Estimate:
    """Return the first value as the estimate, with a CI from the rest, which are bootstrap values."""
    return percentile_interval(float(values[0]), values[1:])


def _check(
    teacher: Cognate,
    student: Cognate,
    prompt_ids: Sequence[int],
    conversations: Sequence[Conversation],
    turns: Sequence[int],
    config: SamplingConfig,
) -> None:
    if len(turns) < 2 or turns[0] < 1 or any(b <= a for a, b in pairwise(turns)):
        raise ValueError(f"turns must be at least two, rising, from 1 on, got {list(turns)}: for instance 1, 10, 30")
    if not conversations:
        raise ValueError("there are no conversations: give at least one, and some ten for an interval")
    check_prompt(teacher, prompt_ids)
    for number, conversation in enumerate(conversations):
        lines = conversation[: turns[-1]]
        if len(lines) < turns[-1] or not all(lines):
            raise ValueError(
                f"conversation {number} must have a line that is not empty for each of {turns[-1]} turns, it has "
                f"{len(lines)} lines: repeat lines, or measure fewer turns"
            )
        for model in (teacher, student):
            before = sum(map(len, lines)) + (turns[-1] - 1) * config.max_tokens
            check_length(model, len(prompt_ids), before, config.max_tokens)
            for line in lines:
                check_ids(model, line, f"conversation {number}")
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"the teacher has {teacher.config.vocab_size} tokens and the student {student.config.vocab_size}: they "
            "must share a tokenizer"
        )
