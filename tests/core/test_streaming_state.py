"""Reading ahead equals streaming token by token, and rows of a state are the states of those rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.test_baking import make_model
from training_core.nn.cognate import Cognate, StreamState
from training_core.nn.streaming import read_ahead, take_rows

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"memory_layers": []},
    "memory": {"memory_layers": [1], "num_layers": 4, "memory_chunk": 5},
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


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("length", [1, 4, 5, 13])
def test_reading_ahead_equals_streaming(shape: dict[str, Any], length: int) -> None:
    """The logits behind the prefix, and behind six more tokens that are streamed from either state, over the borders
    of chunks and windows; the number of supervision steps that were used is the same."""
    model = make_model(**shape).double()
    torch.manual_seed(4)
    tokens = torch.randint(1, model.config.vocab_size, (3, length + 6))
    ahead, state = read_ahead(model, tokens[:, :length])
    expected, other = stepped(model, tokens[:, :length])
    assert (ahead - expected).abs().max() < 1e-11
    assert state.position == other.position == length
    assert state.steps_used == other.steps_used
    for position in range(length, length + 6):
        assert (model.step(tokens[:, position], state) - model.step(tokens[:, position], other)).abs().max() < 1e-11
    assert state.steps_used == other.steps_used


@torch.no_grad()
def test_a_memory_that_was_read_ahead_is_surprised_alike() -> None:
    model = make_model(memory_layers=[1], num_layers=4, memory_chunk=5).double()
    tokens = torch.randint(1, 50, (2, 8))
    memories = [found[1].prelude[1].memory for found in (read_ahead(model, tokens), stepped(model, tokens))]
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
