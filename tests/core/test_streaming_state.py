"""Prefill in parallel, in any parts, equals streaming token by token; rows of a state are the states of those rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.test_baking import make_model
from training_core.nn.cognate import Cognate, StreamState
from training_core.nn.streaming import take_rows
from training_core.nn.svf import SVFModel, scaled_matrices
from training_core.nn.ternary_cognate import TernarySettings, make_ternary

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"memory_layers": []},
    "memory": {"memory_layers": [0, 1], "num_layers": 4, "memory_chunk": 5},
    "recursion": {"memory_layers": [0], "cycles": 2, "latent_steps": 1, "memory_chunk": 4},
    "halting": {"memory_layers": [], "num_supervision": 3, "halt_threshold": 0.5, "cycles": 2, "latent_steps": 1},
    "never halting": {"memory_layers": [], "num_supervision": 2},
    "window of 1": {"memory_layers": [], "window": 1},
    "convolution": {"memory_layers": [1], "num_layers": 4, "conv_kernel": 6},
    "convolution, halting": {"memory_layers": [], "num_supervision": 3, "halt_threshold": 0.5, "conv_kernel": 3},
    "factorised": {"memory_layers": [1], "num_layers": 4, "embedding_rank": 8},
}


def stepped(model: Cognate, tokens_BS: Tensor) -> tuple[Tensor, StreamState]:
    state = model.stream(len(tokens_BS))
    for position in range(tokens_BS.shape[1]):
        logits = model.step(tokens_BS[:, position], state)
    return logits, state


def read(model: Cognate, tokens_BS: Tensor, parts: Sequence[int]) -> tuple[Tensor, StreamState]:
    """Logits (batch, seq, vocab) and the state after feeding parts of these lengths, one after another."""
    state = model.stream(len(tokens_BS))
    logits = [model.logits(model.read(part, state).y) for part in tokens_BS.split(list(parts), dim=1)]
    return torch.cat(logits, dim=1), state


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "parts", [(1,), (4,), (5,), (13,), (31,), (3, 4, 1, 23), (1, 30), (10, 10, 11), (1, 1, 2)], ids=str
)
def test_reading_in_parts_equals_streaming(shape: dict[str, Any], parts: tuple[int, ...]) -> None:
    """The logits at every position of the prefix, and behind six more tokens that are streamed from either state, over
    the borders of parts, chunks and windows; answers, inputs of the last block, surprises and the number of supervision
    steps that were used are the same. float64: rounding is of order 1e-14."""
    model = make_model(**shape).double()
    torch.manual_seed(4)
    length = sum(parts)
    tokens = torch.randint(1, model.config.vocab_size, (3, length + 6))
    logits, state = read(model, tokens[:, :length], parts)
    other = model.stream(3)
    for position in range(length):
        assert (model.step(tokens[:, position], other) - logits[:, position]).abs().max() < 1e-11
    for mine, its in ((state.answer, other.answer), (state.given, other.given)):
        assert mine is not None
        assert its is not None
        assert (mine - its).abs().max() < 1e-11
    for block, expected in zip(state.prelude, other.prelude, strict=True):
        if block.memory is not None and expected.memory is not None:
            assert (block.memory.surprise() - expected.memory.surprise()).abs().max() < 1e-11
    assert state.position == other.position == length
    assert state.steps_used == other.steps_used
    for position in range(length, length + 6):
        assert (model.step(tokens[:, position], state) - model.step(tokens[:, position], other)).abs().max() < 1e-11
    assert state.steps_used == other.steps_used


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ternary", "8-bit activations", "experts"])
def test_reading_equals_streaming_for_quantised_and_adapted_models(kind: str) -> None:
    model = make_model(memory_layers=[1], num_layers=4, memory_chunk=5, window=6).double()
    if kind == "experts":
        svf = SVFModel(model.float())
        svf.scale({name: torch.linspace(0.5, 1.5, rank) for name, rank in scaled_matrices(model).items()})
        model = svf.model.double()
    else:
        make_ternary(model, TernarySettings(activation_bits=8 if kind == "8-bit activations" else 0))
    tokens = torch.randint(1, 50, (2, 23))
    expected, _ = stepped(model, tokens)
    logits, _ = read(model, tokens, (9, 14))
    assert (logits[:, -1] - expected).abs().max() < 1e-11


def test_reading_nothing_is_refused() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="feed at least one token"):
        model.read(torch.zeros(1, 0, dtype=torch.long), model.stream())


@torch.no_grad()
def test_a_memory_that_was_read_ahead_is_surprised_alike() -> None:
    model = make_model(memory_layers=[1], num_layers=4, memory_chunk=5).double()
    tokens = torch.randint(1, 50, (2, 8))
    memories = [found[1].prelude[1].memory for found in (read(model, tokens, (3, 5)), stepped(model, tokens))]
    assert all(memory is not None for memory in memories)
    first, second = (memory.surprise() for memory in memories if memory is not None)
    assert (first - second).abs().max() < 1e-12


@torch.no_grad()
def test_rows_of_a_state_are_the_states_of_those_rows() -> None:
    """In another order, and twice: what follows is what follows those texts; the whole state is unchanged by it."""
    model = make_model(**SHAPES["recursion"]).double()
    tokens = torch.randint(1, 50, (4, 9))
    _, state = stepped(model, tokens)
    rows = torch.tensor([3, 1, 1])
    taken = take_rows(state, rows)
    following = torch.tensor([7, 8, 9, 10])
    after = model.step(following, state)
    assert (model.step(following[rows], taken) - after[rows]).abs().max() < 1e-12
