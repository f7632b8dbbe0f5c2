"""Branches: parallel equals one at a time, streaming equals parallel, nothing is written and nothing leaks."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.core.test_models import DEPTHS, small
from tests.oracles.quiet_star_reference import continue_alone
from training_core.nn.branching import Branches
from training_core.nn.cognate import Cognate

DEPTHS_HERE = [*DEPTHS, {"cycles": 2, "latent_steps": 1, "num_supervision": 3, "halt_threshold": 0.5}]


def model_and_tokens(seq: int = 13, **changes: object) -> tuple[Cognate, torch.Tensor]:
    model = small(**changes).double()
    for block in model.prelude:
        if block.memory is not None:
            torch.nn.init.normal_(block.memory.gates.weight, std=0.4)
    return model, torch.randint(1, 300, (2, seq), generator=torch.Generator().manual_seed(5))


def feed_all(branches: Branches, fed: torch.Tensor) -> torch.Tensor:
    """Outputs (batch, branches, length, d_model) of `fed` (batch, branches, length, d_model)."""
    return torch.stack([branches.feed(fed[:, :, step]) for step in range(fed.shape[2])], dim=2)


@pytest.mark.parametrize("changes", DEPTHS_HERE)
@torch.no_grad()
def test_parallel_equals_one_thought_at_a_time(changes: dict[str, object]) -> None:
    model, tokens = model_and_tokens(**changes)
    positions = torch.tensor([[0, 3, 8, 12], [12, 7, 7, 2]])  # over chunks of 8, window 8, repeated
    fed = torch.randn(2, 4, 3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = feed_all(Branches.from_trace(model, model.trace(tokens), positions), fed)
    for b in range(2):
        for r in range(4):
            alone = continue_alone(model, tokens[b, : int(positions[b, r]) + 1], fed[b, r])
            assert (together[b, r] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("changes", DEPTHS_HERE)
@torch.no_grad()
def test_streaming_equals_parallel(changes: dict[str, object]) -> None:
    model, tokens = model_and_tokens(**changes)
    fed = torch.randn(2, 3, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    trace = model.trace(tokens)
    state = model.stream(2)
    for position in range(tokens.shape[1]):
        model.step(tokens[:, position], state)
        if position in (0, 6, 8, 12):
            before = copy.deepcopy(state)
            streamed = feed_all(Branches.from_stream(model, state, 3), fed)
            parallel = feed_all(Branches.from_trace(model, trace, torch.full((2, 3), position)), fed)
            assert (streamed - parallel).abs().max() < 1e-12
            for now, then in zip(state.prelude, before.prelude, strict=True):
                if now.memory is not None and then.memory is not None:
                    assert torch.equal(now.memory.weight, then.memory.weight)
                    assert torch.equal(now.memory.momentum, then.memory.momentum)


@torch.no_grad()
def test_a_thought_of_true_tokens_continues_the_text_where_there_is_no_memory() -> None:
    model, tokens = model_and_tokens(12, memory_layers=[], window=32)
    branches = Branches.from_trace(model, model.trace(tokens[:, :7]), torch.full((2, 1), 6))
    outputs = feed_all(branches, model.embed(tokens[:, 7:])[:, None])
    assert (outputs[:, 0] - model.trace(tokens).y[:, 7:]).abs().max() < 1e-12


@torch.no_grad()
def test_branches_see_neither_the_future_nor_each_other() -> None:
    model = small()
    tokens = torch.randint(1, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[4, 9, 9, 14]])
    fed = torch.randn(1, 4, 3, 32, generator=torch.Generator().manual_seed(1))
    before = feed_all(Branches.from_trace(model, model.trace(tokens), positions), fed)
    later = tokens.clone()
    later[:, 10:] = 7
    after = feed_all(Branches.from_trace(model, model.trace(later), positions), fed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])
    other = fed.clone()
    other[:, 1] += 1.0
    changed = feed_all(Branches.from_trace(model, model.trace(tokens), positions), other)
    assert torch.equal(before[:, [0, 2, 3]], changed[:, [0, 2, 3]])
    assert not torch.equal(before[:, 1], changed[:, 1])


@torch.no_grad()
def test_a_branch_that_stands_still_is_as_if_it_had_not_been_fed() -> None:
    model, tokens = model_and_tokens()
    positions = torch.tensor([[5, 12], [5, 12]])
    trace = model.trace(tokens)
    a, b, c = torch.randn(3, 2, 2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).unbind(0)
    plain, pausing = (Branches.from_trace(model, trace, positions) for _ in range(2))
    plain.feed(a)
    expected = plain.feed(c)
    pausing.feed(a)
    moving = torch.tensor([[False, True], [False, True]])
    pausing.feed(b, moving)
    found = pausing.feed(c)
    assert (found[:, 0] - expected[:, 0]).abs().max() < 1e-12
    assert (found[:, 1] - expected[:, 1]).abs().max() > 1e-3
    assert torch.equal(pausing.next_position, torch.tensor([[8, 16], [8, 16]]))


def test_bad_positions_and_an_empty_stream_are_refused() -> None:
    model, tokens = model_and_tokens()
    with pytest.raises(ValueError, match=r"positions 0 \.\. 12 .* got 3 \.\. 13"):
        Branches.from_trace(model, model.trace(tokens), torch.tensor([[3, 13], [4, 5]]))
    with pytest.raises(ValueError, match="feed at least END_OF_TEXT"):
        Branches.from_stream(model, model.stream(1), 2)


@torch.no_grad()
def test_surprise_is_the_norm_of_the_memory_gradient() -> None:
    model, tokens = model_and_tokens(13)
    block = model.prelude[0]
    record = model.trace(tokens).prelude[0]
    assert record.memory is not None
    assert block.memory is not None
    writes = record.memory.chunks[0]
    value = block.memory._project(record.inputs, block.attention._convolved(record.inputs))[2]
    surprise = record.memory.surprise()
    assert surprise.shape == (2, 13)
    for token in (0, 5, 7):
        total = 0.0
        for head in range(2):
            weight = torch.zeros(16, 16, dtype=torch.float64)
            if token:  # M_{t-1}, read from the record with unit vectors as queries
                unit, before = torch.eye(16, dtype=torch.float64).expand(2, 2, -1, -1), torch.full((2, 16), token - 1)
                weight = writes.read(unit, before)[0, head].T
            weight = weight.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                loss = (weight @ writes.key[0, head, token] - value[0, head, token]).square().sum() / 2
                (gradient,) = torch.autograd.grad(loss, [weight])
            total += float(gradient.square().sum())
        assert float(surprise[0, token]) == pytest.approx(total**0.5, rel=1e-10)
