"""How well a prompt's effect lasts over the turns of a conversation: shown once at the beginning, against baked in.

With the histories h_t (user lines and replies before turn t), x_t the line of turn t, u the prompt and y_t the reply
that the teacher samples behind END u x_t, the same text is read in four ways:

    fresh      END  h_t  u  x_t  y_t    teacher, the prompt straight in front of the turn
    prompted   END  u  h_t  x_t  y_t    teacher, the prompt where a conversation has it
    bare       END     h_t  x_t  y_t    teacher
    baked      END     h_t  x_t  y_t    student

    presence(m, t) = 1 - KL(fresh || m) / KL(fresh || bare)    at turn t, over the tokens of y_t
    drift(m)       = presence(m, first turn) - presence(m, last turn)

At turn 1 `prompted` reads what `fresh` reads, and its presence is 1 but for rounding.

A model that never changed drifts by nothing, because it has nothing to lose. `advantage`, the presence of the baked
prompt less that of the shown one at the last turn, is what such a model cannot have.

**Does not cover**: a conversation that follows from what a drifting model says. User lines are fixed, and every reply
is one that the prompted model gives to its line alone: only what stands in front of the turn varies.

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

REPLIES_PER_LINE = 4  # different replies to the same line; conversations take them in turn
Conversation = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Persistence:
    """Presence at each of `turns`, and how much of it is lost between the first and the last of them.

    `effect` is KL(fresh || bare) in nats per reply token, what there is to lose. The slopes are those of least squares,
    in presence per turn. `difference` is drift_prompted - drift_baked: above 0 where the baked prompt loses less.
    `advantage` is how much more of the baked prompt is present at the last turn than of the shown one. Intervals are
    95 % bootstraps over conversations, all resampled together.
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
        """As flat metrics of a bundle."""
        found = {"drift_turns": float(self.turns[-1])}
        for name in ("drift_prompted", "drift_baked", "slope_prompted", "slope_baked"):
            found |= getattr(self, name).metrics(name)
        found |= self.prompted[-1].metrics("presence_prompted") | self.baked[-1].metrics("presence_baked")
        return found | self.difference.metrics("drift_difference") | self.advantage.metrics("presence_advantage")


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
    """Measure presence at `turns`, counted from 1, of the prompt in `teacher` and of its baking in `student`.

    `conversations[c][t - 1]` holds the token ids of the user line of turn t, with whatever separates it from the reply
    before and announces the reply behind. Replies are drawn as `config` says, at most `max_tokens` tokens; an
    END_OF_TEXT that ends one counts in its divergence and is left out of the histories. `generator` must be on the CPU.

    Raises:
        ValueError: for fewer than two turns or turns that do not rise from 1 on; no conversation, one with too few
            lines or an empty line; ids outside the vocabulary; a conversation that does not fit into max_seq_len;
            models of unlike vocabularies; a prompt without effect at one of the turns.
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
    """What a model reads behind END_OF_TEXT, and where it predicts replies: (first position, tokens) of each."""

    ids: list[int]
    places: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation's parts in order, line and reply and line and so on, where each begins, and of each measured turn
    its index among the lines and the number of tokens predicted there."""

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
        """All of it behind `prefix`. The token before a reply, at which its first token is predicted, stands at the
        reply's start: END_OF_TEXT in front makes up for the one."""
        places = [(len(prefix) + self.starts[2 * turn + 1], length) for turn, length in self.measured]
        return _Row([*prefix, *(i for part in self.parts for i in part)], places)

    def fresh(self, number: int, prompt_ids: Sequence[int]) -> _Row:
        """Up to and with the reply of a measured turn, the prompt in front of that turn's line."""
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
    """The prompted teacher's reply to every line, drawn a few times for each different line."""
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
    """Of each row and place the logits (M, V), float64."""
    device, found = next(model.parameters()).device, []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        tokens_CS = torch.full((len(part), 1 + max(len(row.ids) for row in part)), END_OF_TEXT_ID)
        for index, row in enumerate(part):
            tokens_CS[index, 1 : len(row.ids) + 1] = torch.tensor(row.ids)
        logits_CSV = model(tokens_CS.to(device)).logits.cpu()
        found += [
            [logits_CSV[index, first : first + count].double() for first, count in row.places]
            for index, row in enumerate(part)
        ]
    return found


def _summary(nats_GC: dict[str, Tensor], turns: Sequence[int], tokens_G: Tensor) -> Persistence:
    effect = nats_GC["bare"].sum(1) / tokens_G
    for turn, nats in zip(turns, effect.tolist(), strict=True):
        if nats < NO_EFFECT_NATS:
            raise ValueError(
                f"at turn {turn} the prompt changes the teacher by {nats:.2g} nats per token, less than "
                f"{NO_EFFECT_NATS:g}: its presence is undefined; choose a prompt that the teacher reacts to"
            )
    count = nats_GC["bare"].shape[1]
    weights = torch.cat([torch.ones(1, count, dtype=torch.float64), resample_weights(count)])  # all of them, resamples
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
    """The first value, with the interval of those behind it."""
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
