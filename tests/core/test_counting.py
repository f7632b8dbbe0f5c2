"""The counting model against the equations of Chen and Goodman; its sums by document."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.oracles.kneser_ney import KneserNey
from training_core.evaluation.counting import fit
from training_core.evaluation.windows import Windows

VOCAB = 7


def text(length: int, seed: int = 0) -> list[int]:
    """A Markov text: the next token is mostly the last plus one or two."""
    draw = np.random.default_rng(seed)
    tokens = [0]
    while len(tokens) < length:
        tokens.append(int((tokens[-1] + draw.choice([1, 2, 3], p=[0.6, 0.3, 0.1])) % VOCAB))
    return tokens


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [5, 60, 400])
def test_probabilities_equal_the_equations(order: int, length: int) -> None:
    tokens = text(length)
    model, oracle = fit(np.array(tokens), VOCAB, order), KneserNey(tokens, order, VOCAB)
    asked = [*(tokens[i : i + 3] for i in range(0, length - 3, 7)), [6, 6, 6], [0, 0, 0], [1, 5, 2]]
    found = model.probabilities(np.array(asked)[:, 3 - (order - 1) :].reshape(len(asked), order - 1))
    assert np.abs(found.sum(-1) - 1).max() < 1e-12
    for row, context in zip(found, asked, strict=True):
        expected = [oracle.probability(tuple(context[3 - (order - 1) :]), token) for token in range(VOCAB)]
        assert np.abs(row - expected).max() < 1e-12


def test_measure_sums_by_document_and_sees_no_earlier_window() -> None:
    model = fit(np.array(text(400)), VOCAB)
    inputs = torch.tensor([[0, 1, 2, 3], [4, 5, 0, 0]])
    targets = torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1]])
    windows = Windows(inputs, targets, torch.tensor([[0, 0, 1, 1], [1, 1, -1, -1]]), torch.tensor([2, 4]))
    measured = model.measure(windows)
    contexts = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3), (0, 0, 4), (0, 4, 5)]
    found = model.probabilities(np.array(contexts))
    p = found[np.arange(6), [1, 2, 3, 4, 5, 6]]
    right = found.argmax(-1) == [1, 2, 3, 4, 5, 6]
    assert measured["nats"].tolist() == pytest.approx([-np.log(p[:2]).sum(), -np.log(p[2:]).sum()])
    assert measured["correct"].tolist() == [right[:2].sum(), right[2:].sum()]
    assert 0 < right.sum() < 6


def test_refuses_what_it_cannot_count() -> None:
    with pytest.raises(ValueError, match="order must be 1 to 4"):
        fit(np.array(text(50)), VOCAB, 5)
    with pytest.raises(ValueError, match="needs at least that many tokens, got 3"):
        fit(np.array([1, 2, 3]), VOCAB, 4)
