"""Many texts in lockstep: equal to one at a time, tokens put in by something else, log-probabilities, limits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.core.test_baking import ids, make_model
from training_core.nn.cognate import Cognate, StreamState
from training_core.text.sampling import ROWS_AT_ONCE, Drawn, continue_rows

ROWS = [ids(n, n) for n in (3, 0, 9, 1)]


def greedy(model: Cognate, rows: Sequence[Sequence[int]], limit: int, interject: object = None) -> list[Drawn]:
    return continue_rows(model, rows, limit, torch.Generator(), temperature=0, interject=interject)  # type: ignore[arg-type]


def test_what_is_put_in_is_read_like_the_rest() -> None:
    """After every second token of odd rows three tokens come in; each drawn token is the parallel form's argmax."""
    model = make_model(cycles=2, latent_steps=1, num_supervision=3, halt_threshold=0.5).double()

    def interject(row: int, written: Sequence[int]) -> Sequence[int]:
        return (70 + row, 71, 72) if row % 2 and len(written) % 5 == 2 else ()

    for number, (given, drawn) in enumerate(zip(ROWS, greedy(model, ROWS, 11, interject), strict=True)):
        assert len(drawn.ids) == len(drawn.own) == len(drawn.log_probs) <= 11
        expected_in = [n % 5 in (2, 3, 4) and bool(number % 2) for n in range(len(drawn.ids))]
        assert [not own for own in drawn.own] == expected_in
        for place, (token, own, log_prob) in enumerate(zip(drawn.ids, drawn.own, drawn.log_probs, strict=True)):
            with torch.no_grad():
                logits = model(torch.tensor([[0, *given, *drawn.ids[:place]]])).logits[0, -1].log_softmax(-1)
            if own:
                assert token == int(logits.argmax())
                assert log_prob == pytest.approx(float(logits[token]), abs=1e-9)
            else:
                assert log_prob == 0.0


def test_log_probabilities_do_not_depend_on_temperature_and_nucleus() -> None:
    model = make_model().double()
    again = continue_rows(model, [[5, 6]], 3, torch.Generator().manual_seed(2), temperature=3.0, top_p=0.9)[0]
    for place, token in enumerate(again.ids):
        with torch.no_grad():
            log_p = model(torch.tensor([[0, 5, 6, *again.ids[:place]]])).logits[0, -1].log_softmax(-1)
        assert again.log_probs[place] == pytest.approx(float(log_p[token]), abs=1e-9)


def test_more_rows_than_go_at_once_come_back_in_order() -> None:
    model = make_model()
    rows = [[1 + n % 7] for n in range(ROWS_AT_ONCE + 5)]
    found = greedy(model, rows, 2)
    assert len(found) == len(rows)
    for number, drawn in enumerate(found):
        assert drawn.ids == found[number % 7].ids


def test_a_tool_that_answers_too_much_is_cut_off() -> None:
    drawn = greedy(make_model(), [[4]], 6, lambda row, written: [9] * 50)[0]
    assert drawn.ids[1:] == (9,) * 5
    assert drawn.own == (True, *(False,) * 5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="rows to continue"):
        greedy(make_model(), [], 4)
    with pytest.raises(ValueError, match="at least one token"):
        greedy(make_model(), [[1]], 0)


def test_rows_that_are_over_are_left_behind_and_change_nothing() -> None:
    """Texts with long prompts, many of which end early: each, drawn greedily in float64, is the one that it is alone,
    and all that the model was fed are the rows that were running."""
    model = make_model(memory_layers=[1], num_layers=4, cycles=2, latent_steps=1, num_supervision=2).double()
    rows = [ids(n, n) for n in (12, 1, 1, 2, 30, 3, 1, 2)]
    fed: list[int] = []
    stepped = model.step

    def step(tokens_B: torch.Tensor, state: StreamState) -> torch.Tensor:
        fed.append(len(tokens_B))
        return stepped(tokens_B, state)

    model.step = step  # type: ignore[method-assign]
    together = greedy(model, rows, 5)
    assert fed[0] == 8
    assert fed[-1] == 1
    assert fed == sorted(fed, reverse=True)
    for row, drawn in zip(rows, together, strict=True):
        alone = greedy(model, [row], 5)[0]
        assert drawn.ids == alone.ids
        assert drawn.log_probs == pytest.approx(alone.log_probs, abs=1e-9)
