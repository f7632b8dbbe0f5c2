"""Trajectories: rows by hand, sampling against the parallel form, tokens that are not the model's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import pytest
import torch

from tests.core.test_baking import PROMPT, drawn, ids, make_model
from tests.oracles.prompted_bigram import PROMPT_TOKEN, SIZE, PromptedBigram, baked_table
from training_core.distill.trajectories import (
    SamplingConfig,
    Trajectory,
    align,
    check_trajectories,
    sample_continuations,
)
from training_core.nn.cognate import Cognate


def test_rows_by_hand() -> None:
    rows = align([7, 8], [Trajectory((1, 2), (3, 4, 0)), Trajectory((), (5,))])
    assert rows.student_BS.tolist() == [[0, 1, 2, 3, 4], [0, 5, 0, 0, 0]]
    assert rows.teacher_BT.tolist() == [[0, 7, 8, 1, 2, 3, 4], [0, 7, 8, 5, 0, 0, 0]]
    assert rows.targets_BS.tolist() == [[1, 2, 3, 4, 0], [5, 0, 0, 0, 0]]
    assert rows.mask_BS.int().tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 0, 0]]


def test_greedy_sampling_in_lockstep_is_greedy_decoding_of_every_row_alone() -> None:
    """Rows of unlike lengths, on a model that recurses and halts, against the parallel form row by row."""
    model = make_model(cycles=2, latent_steps=1, num_supervision=3, halt_threshold=0.5).double()
    prefixes = [ids(n, n) for n in (3, 0, 9, 1)]
    config = SamplingConfig(max_tokens=6, sampling_temperature=0)
    found = sample_continuations(model, PROMPT, prefixes, config, torch.Generator())
    for prefix, trajectory in zip(prefixes, found, strict=True):
        row = [0, *PROMPT, *prefix]
        alone: list[int] = []
        while len(alone) < 6 and alone[-1:] != [0]:
            with torch.no_grad():
                alone.append(int(model(torch.tensor([row + alone])).logits[0, -1].argmax()))
        assert trajectory == Trajectory(tuple(prefix), tuple(alone))


def test_sampling_has_the_teachers_distribution() -> None:
    """600 draws from a 2-token nucleus at temperature 4: within 3 sigma of the renormalised probability."""
    model = make_model()
    with torch.no_grad():
        p = (model(torch.tensor([[0, *PROMPT, 5]])).logits[0, -1].double() / 4).softmax(-1)
    top = p.topk(2)
    config = SamplingConfig(max_tokens=1, sampling_temperature=4, top_p=float(top.values[0]) + 1e-6)
    found = sample_continuations(model, PROMPT, [[5]] * 600, config, torch.Generator().manual_seed(0))
    firsts = [t.continuation[0] for t in found]
    share = float(top.values[0] / top.values.sum())
    assert 0.05 < share < 0.95
    assert set(firsts) == set(top.indices.tolist())
    assert abs(firsts.count(int(top.indices[0])) / 600 - share) < 3 * math.sqrt(share * (1 - share) / 600)


def test_a_continuation_ends_with_end_of_text() -> None:
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[0] *= 8  # makes end-of-text likely
    found = drawn(model, 40)
    ended = [t for t in found if t.continuation[-1] == 0]
    assert len(ended) > 5
    assert all(0 not in t.continuation[:-1] and 1 <= len(t.continuation) <= 8 for t in found)
    assert all(len(t.continuation) == 8 for t in found if t not in ended)
    assert found == drawn(model, 40), "the generator alone decides"


def test_trajectories_refuse_bad_input() -> None:
    model, generator, config = make_model(), torch.Generator(), SamplingConfig(max_tokens=8)
    with pytest.raises(ValueError, match="the prompt is empty"):
        sample_continuations(model, [], [[1]], config, generator)
    with pytest.raises(ValueError, match="no prefixes"):
        sample_continuations(model, PROMPT, [], config, generator)
    with pytest.raises(ValueError, match=r"8 tokens of prompt \+ 49 of prefix \+ 8 of continuation = 65 exceed"):
        sample_continuations(model, PROMPT, [ids(49, 0)], config, generator)
    with pytest.raises(ValueError, match="the prompt holds the token id 300, outside 0 .. 299"):
        sample_continuations(model, [300], [[1]], config, generator)
    with pytest.raises(ValueError, match="a prefix holds the token id -1"):
        sample_continuations(model, PROMPT, [[-1]], config, generator)
    assert len(sample_continuations(model, PROMPT, [ids(48, 0)], config, generator)[0].prefix) == 48


# -- tokens that are not the model's own -----------------------------------------------------------------------------


def test_rows_with_foreign_tokens_by_hand() -> None:
    """Position j is learned from where the teacher wrote the token behind it."""
    rows = align([7, 8], [Trajectory((1,), (3, 4, 5, 6), (True, False, False, True)), Trajectory((), (2, 9))])
    assert rows.student_BS.tolist() == [[0, 1, 3, 4, 5], [0, 2, 9, 0, 0]]
    assert rows.targets_BS.tolist() == [[1, 3, 4, 5, 6], [2, 9, 0, 0, 0]]
    assert rows.mask_BS.int().tolist() == [[0, 1, 0, 0, 1], [1, 1, 0, 0, 0]]


def test_interjected_tokens_are_read_and_marked() -> None:
    """Behind every second own token a reply is put in; the trajectories say so, and greedy decoding goes on from it."""
    model = make_model()
    asked = []

    def interject(row: int, written: Sequence[int]) -> Sequence[int]:
        asked.append((row, tuple(written)))
        return (21, 22) if len(written) % 4 == 2 else ()

    config = SamplingConfig(max_tokens=9, sampling_temperature=0)
    (found,) = sample_continuations(model, PROMPT, [[5]], config, torch.Generator(), interject)
    own = (True, True, False, False, True, True, False, False, True)
    assert found.own == own
    assert (found.num_own, len(found.continuation)) == (5, 9)
    assert found.continuation[2:4] == found.continuation[6:8] == (21, 22)
    row = [0, *PROMPT, 5]
    with torch.no_grad():
        for token, mine in zip(found.continuation, own, strict=True):
            if mine:
                assert token == int(model(torch.tensor([row])).logits[0, -1].argmax())
            row.append(token)
    assert asked[1] == (0, found.continuation[:2])
    (plain,) = sample_continuations(model, PROMPT, [[5]], config, torch.Generator(), lambda row, written: ())
    assert plain == Trajectory((5,), plain.continuation)
    assert plain.num_own == len(plain.continuation)


# -- histories -------------------------------------------------------------------------------------------------------


def test_rows_with_a_history_by_hand() -> None:
    """The prompt stands behind the history; position j and j + 2 hold the same token from the prefix on."""
    rows = align([7, 8], [Trajectory((1,), (3, 4), (), (5, 6)), Trajectory((2,), (9, 1, 1))])
    assert rows.student_BS.tolist() == [[0, 5, 6, 1, 3], [0, 2, 9, 1, 1]]
    assert rows.teacher_BT.tolist() == [[0, 5, 6, 7, 8, 1, 3], [0, 7, 8, 2, 9, 1, 1]]
    assert rows.targets_BS.tolist() == [[5, 6, 1, 3, 4], [2, 9, 1, 1, 0]]
    assert rows.mask_BS.int().tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 0]]
    # an empty prefix is predicted from the last token of the history, and from the last one of the prompt
    bare = align([7, 8], [Trajectory((), (3,), (), (5, 6))])
    assert (bare.mask_BS.int().tolist(), bare.student_BS.tolist()) == ([[0, 0, 1]], [[0, 5, 6]])
    assert bare.teacher_BT.tolist() == [[0, 5, 6, 7, 8]]


def test_sampling_behind_a_history_reads_it_in_front_of_the_prompt() -> None:
    """A bigram that sees a prompt in its last four tokens: in front of the history it would be out of sight."""
    seen = PromptedBigram(bias_scale=5.0, window=4)
    prefixes, config = [[w] for w in range(1, SIZE - 1)], SamplingConfig(max_tokens=1, sampling_temperature=0)
    behind = [[2, 4, 6, 8]] * len(prefixes)
    drawn_behind = sample_continuations(
        cast(Cognate, seen), [PROMPT_TOKEN], prefixes, config, torch.Generator(), histories=behind
    )
    firsts = [t.continuation[0] for t in drawn_behind]
    assert firsts == baked_table(seen).argmax(-1)[1 : SIZE - 1].tolist()
    assert firsts != baked_table(seen, 0.0).argmax(-1)[1 : SIZE - 1].tolist()


def test_histories_of_unlike_lengths() -> None:
    model = make_model()
    config, histories = SamplingConfig(max_tokens=3, sampling_temperature=0), [ids(4, 1), []]
    found = sample_continuations(model, PROMPT, [[5], [6]], config, torch.Generator(), histories=histories)
    for history, trajectory in zip(histories, found, strict=True):
        row = [0, *history, *PROMPT, *trajectory.prefix]
        with torch.no_grad():
            for token in trajectory.continuation:
                assert token == int(model(torch.tensor([row])).logits[0, -1].argmax())
                row.append(token)
        assert trajectory.history == tuple(history)
    with pytest.raises(ValueError, match="there are 1 histories for 2 prefixes"):
        sample_continuations(model, PROMPT, [[5], [6]], config, torch.Generator(), histories=[[1]])
    with pytest.raises(ValueError, match=r"8 tokens of prompt \+ 54 of prefix \+ 3 of continuation = 65 exceed"):
        sample_continuations(model, PROMPT, [[5]], config, torch.Generator(), histories=[ids(53, 0)])
    with pytest.raises(ValueError, match="a history holds the token id 300"):
        sample_continuations(model, PROMPT, [[5]], config, torch.Generator(), histories=[[300]])
    with pytest.raises(ValueError, match="= 65 exceed"):
        check_trajectories(model, PROMPT, [Trajectory((), (1,), (), tuple(ids(56, 0)))])


def test_trajectories_with_wrong_marks_are_refused() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"trajectory 1 says of 1 tokens who wrote them, its continuation has 2"):
        check_trajectories(model, PROMPT, [Trajectory((), (4,)), Trajectory((), (2, 3), (True,))])
    with pytest.raises(ValueError, match="the teacher wrote no token of trajectory 0"):
        check_trajectories(model, PROMPT, [Trajectory((), (2, 3), (False, False))])
    check_trajectories(model, PROMPT, [Trajectory((), (2, 3), (False, True))])
