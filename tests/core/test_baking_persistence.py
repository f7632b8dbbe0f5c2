"""Persistence: a table whose prompt fades out of a window, a naive loop row by row, conversations that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.core.test_baking import PROMPT, ids, make_model
from tests.core.test_baking_divergences import naive_divergence
from tests.oracles.prompted_bigram import PROMPT_TOKEN, PromptedBigram, baked_table, closed_kl
from training_core.distill.trajectories import SamplingConfig, sample_continuations
from training_core.evaluation.intervals import resample_weights
from training_core.nn.cognate import Cognate
from training_core.phases.p6_baking.persistence import REPLIES_PER_LINE, Persistence, measure_persistence

BIAS = [PROMPT_TOKEN]
CONFIG = SamplingConfig(max_tokens=3)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def bigram(window: int = 64, bias_scale: float = 2.0) -> Cognate:
    return cast(Cognate, PromptedBigram(bias_scale, window))


def with_table(scale: float, window: int = 64) -> Cognate:
    found = bigram(window)
    found.embedding.weight.data = baked_table(cast(PromptedBigram, found), scale)
    return found


def lines(conversation: int, turns: int) -> list[list[int]]:
    """Lines of unlike lengths, some of them the same in several conversations."""
    return [[1 + (conversation + turn + i) % 9 for i in range(1 + (conversation * turn) % 3)] for turn in range(turns)]


CONVERSATIONS = [lines(number, 6) for number in range(5)]


def test_a_prompt_that_leaves_the_window_is_gone_and_a_baked_one_stays() -> None:
    """The window of 6 tokens holds the prompt, a line and its reply, but no second turn: presence 1, then 0."""
    model = bigram(window=6)
    found = measure_persistence(model, with_table(1.0, 6), BIAS, CONVERSATIONS, (1, 3, 4, 6), CONFIG, seeded())
    assert [e.value for e in found.prompted] == pytest.approx([1, 0, 0, 0], abs=1e-9)
    assert [e.value for e in found.baked] == pytest.approx([1, 1, 1, 1], abs=1e-9)
    for name, value in (("drift_prompted", 1), ("drift_baked", 0), ("difference", 1), ("advantage", 1)):
        estimate = getattr(found, name)
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value, value, value), abs=1e-9)
    # turns 1, 3, 4, 6 lie at -2.5, -0.5, 0.5, 2.5 about their mean: slope = -2.5 / 13
    assert found.slope_prompted.value == pytest.approx(-2.5 / 13, abs=1e-9)
    assert found.slope_baked.value == pytest.approx(0.0, abs=1e-9)
    assert found.turns == (1, 3, 4, 6)


def test_presence_of_a_half_baked_table_is_the_closed_form() -> None:
    """One line, one context: presence is 1 - KL(1 || a) / KL(1 || 0) of that row, whatever the turn."""
    model = bigram()
    oracle, same = cast(PromptedBigram, model), [[[3]] * 4] * 6
    config = SamplingConfig(max_tokens=1)
    found = measure_persistence(model, with_table(0.3), BIAS, same, (1, 2, 4), config, seeded())
    expected = 1 - closed_kl(oracle, 3, 0.3) / closed_kl(oracle, 3, 0.0)
    assert [e.value for e in found.baked] == pytest.approx([expected] * 3, abs=1e-9)
    assert found.effect == pytest.approx([closed_kl(oracle, 3, 0.0)] * 3, abs=1e-9)
    assert [e.value for e in found.prompted] == pytest.approx([1, 1, 1], abs=1e-9)  # the window holds everything


def test_an_unchanged_model_neither_has_the_prompt_nor_loses_it() -> None:
    model = make_model()
    conversations = [[ids(2, 10 * c + t) for t in range(4)] for c in range(3)]
    found = measure_persistence(model, copy.deepcopy(model), PROMPT, conversations, (1, 2, 4), CONFIG, seeded())
    assert [e.value for e in found.baked] == [0, 0, 0]
    assert (found.drift_baked.value, found.slope_baked.value) == (0, 0)
    assert found.prompted[0].value == pytest.approx(1, abs=1e-6)
    assert found.prompted[-1].value < 0.9
    assert found.difference.value == pytest.approx(found.drift_prompted.value)
    assert found.advantage.value == -found.prompted[-1].value


# -- against a naive loop --------------------------------------------------------------------------------------------


def talk(teacher: Cognate, conversations: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
    """The replies: drawn for each different line in the order they come, and taken in turn."""
    different: list[list[int]] = []
    for conversation in conversations:
        different += [list(line) for line in conversation if list(line) not in different]
    asked = [line for line in different for _ in range(REPLIES_PER_LINE)]
    drawn = [list(t.continuation) for t in sample_continuations(teacher, PROMPT, asked, CONFIG, seeded())]
    found = []
    for c, conversation in enumerate(conversations):
        places = [different.index(list(line)) * REPLIES_PER_LINE for line in conversation]
        found.append([drawn[place + (c + t) % REPLIES_PER_LINE] for t, place in enumerate(places)])
    return found


def scores_at(model: Cognate, given: list[int], reply: list[int]) -> list[Tensor]:
    """Logits in front of every token of the reply, the row alone and without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([[0, *given, *reply[:-1]]])).logits[0].double()
    return list(logits[-len(reply) :])


def naive_nats(
    teacher: Cognate, student: Cognate, conversations: Sequence[Sequence[Sequence[int]]], turns: Sequence[int]
) -> tuple[dict[str, Tensor], list[list[list[int]]]]:
    replies = talk(teacher, conversations)
    nats = {
        name: torch.zeros(len(turns), len(conversations), dtype=torch.float64) for name in ("prompted", "bare", "baked")
    }
    for c, conversation in enumerate(conversations):
        history: list[int] = []
        for turn, line in enumerate(conversation, 1):
            reply = replies[c][turn - 1]
            if turn in turns:
                fresh = scores_at(teacher, [*history, *PROMPT, *line], reply)
                for name, model, given in (
                    ("prompted", teacher, [*PROMPT, *history, *line]),
                    ("bare", teacher, [*history, *line]),
                    ("baked", student, [*history, *line]),
                ):
                    nats[name][turns.index(turn), c] = sum(
                        naive_divergence("forward_kl", s, f, 0)
                        for s, f in zip(scores_at(model, given, reply), fresh, strict=True)
                    )
            history += [*line, *(token for token in reply if token != 0)]
    return nats, replies


def test_everything_equals_a_naive_loop() -> None:
    """A model that recurses and halts and likes to end its replies; every number and every interval."""
    teacher, student = (
        make_model(seed, num_supervision=2, latent_steps=1, halt_threshold=0.5).double() for seed in (0, 1)
    )
    with torch.no_grad():
        teacher.embedding.weight[0] *= 6  # makes end-of-text likely
    # fourteen different lines
    conversations = [[ids(1 + (c + t) % 2, (3 * c + t) % 7) for t in range(3)] for c in range(17)]
    turns = (1, 2, 3)
    nats, replies = naive_nats(teacher, student, conversations, turns)
    spoken = [reply for conversation in replies for reply in conversation]
    assert any(reply[-1] == 0 for reply in spoken)
    assert any(reply == [0] for reply in spoken) or any(len(reply) == 2 for reply in spoken)
    found = measure_persistence(teacher, student, PROMPT, conversations, turns, CONFIG, seeded())
    tokens = [sum(len(conversation[t - 1]) for conversation in replies) for t in turns]
    for g in range(3):
        assert found.effect[g] == pytest.approx(float(nats["bare"][g].sum()) / tokens[g], rel=1e-6)

    lists = {name: values.tolist() for name, values in nats.items()}

    def statistics(weight: list[float]) -> dict[str, float]:
        def total(name: str, g: int) -> float:
            return sum(w * value for w, value in zip(weight, lists[name][g], strict=True))

        p, b = ([1 - total(name, g) / total("bare", g) for g in range(3)] for name in ("prompted", "baked"))

        def slope(values: list[float]) -> float:
            mean = sum(turns) / 3
            return sum((t - mean) * v for t, v in zip(turns, values, strict=True)) / sum((t - mean) ** 2 for t in turns)

        return {
            "prompted": p[1], "baked": b[1], "drift_prompted": p[0] - p[2], "drift_baked": b[0] - b[2],
            "slope_prompted": slope(p), "slope_baked": slope(b), "difference": p[0] - p[2] - (b[0] - b[2]),
            "advantage": b[2] - p[2],
        }  # fmt: skip

    whole = statistics([1.0] * 17)
    resampled = [statistics(weight) for weight in resample_weights(17).tolist()]
    for name, value in whole.items():
        estimate = getattr(found, name)[1] if name in ("prompted", "baked") else getattr(found, name)
        ends = torch.tensor([r[name] for r in resampled], dtype=torch.float64).quantile(
            torch.tensor([0.025, 0.975], dtype=torch.float64)
        )
        assert estimate.value == pytest.approx(value, rel=1e-5, abs=1e-7), name
        assert [estimate.low, estimate.high] == pytest.approx(ends.tolist(), rel=1e-5, abs=1e-7), name


def test_metrics_are_flat_and_named() -> None:
    found: Persistence = measure_persistence(
        bigram(6), with_table(1.0, 6), BIAS, CONVERSATIONS, (1, 6), CONFIG, seeded()
    )
    metrics = found.metrics()
    assert metrics["drift_turns"] == 6
    assert metrics["presence_prompted"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["presence_baked_low"] == pytest.approx(1.0, abs=1e-9)
    assert metrics["drift_difference_low"] == pytest.approx(1.0, abs=1e-9)
    assert metrics["presence_advantage"] == pytest.approx(1.0, abs=1e-9)


def test_what_cannot_be_measured_is_refused() -> None:
    model = make_model()

    def measure(
        conversations: Sequence[Sequence[Sequence[int]]], turns: Sequence[int], student: Cognate = model
    ) -> None:
        measure_persistence(model, student, PROMPT, conversations, turns, CONFIG, seeded())

    one = [[ids(2, t) for t in range(12)]]
    # 8 of prompt + 2 * 12 + 3 * 11 + 3 = 68 positions of 64
    with pytest.raises(ValueError, match=r"8 tokens of prompt \+ 57 of prefix \+ 3 of continuation = 68 exceed"):
        measure(one, (1, 12))
    measure(one, (1, 11))
    for turns in ((), (3,), (0, 2), (2, 2), (4, 1)):
        with pytest.raises(ValueError, match="turns must be at least two, rising, from 1 on"):
            measure(one, turns)
    with pytest.raises(ValueError, match="there are no conversations"):
        measure([], (1, 2))
    with pytest.raises(ValueError, match="conversation 1 must have a line that is not empty for each of 2 turns"):
        measure([[[1], [2]], [[1]]], (1, 2))
    with pytest.raises(ValueError, match="conversation 0 must have a line that is not empty"):
        measure([[[1], []]], (1, 2))
    with pytest.raises(ValueError, match="conversation 0 holds the token id 300"):
        measure([[[1], [300]]], (1, 2))
    with pytest.raises(ValueError, match="the prompt is empty"):
        measure_persistence(model, model, [], one, (1, 2), CONFIG, seeded())
    silent = bigram(bias_scale=0.0)
    with pytest.raises(ValueError, match="at turn 1 the prompt changes the teacher by 0 nats per token"):
        measure_persistence(silent, silent, BIAS, CONVERSATIONS, (1, 2), CONFIG, seeded())
    with pytest.raises(ValueError, match="must share a tokenizer"):
        measure_persistence(bigram(), model, BIAS, CONVERSATIONS, (1, 2), CONFIG, seeded())
