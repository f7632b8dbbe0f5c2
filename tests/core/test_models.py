"""Blocks against naive float64 references; causality bit for bit; streaming equals parallel."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tests.oracles.titans_reference import attention_rows, memory_reads
from training_core.nn.attention import SlidingWindowAttention
from training_core.nn.block import TitansBlock
from training_core.nn.cognate import Cognate, CognateConfig, count_parameters
from training_core.nn.layers import (
    CausalConv,
    RMSNorm,
    SwiGLU,
    join_heads,
    rotary_table,
    rotate,
    split_heads,
)
from training_core.nn.memory import MemoryState, NeuralMemory, _write_chunk
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig

SMALL = {
    "vocab_size": 300,
    "d_model": 32,
    "num_heads": 4,
    "d_ff": 48,
    "window": 8,
    "max_seq_len": 64,
    "memory_heads": 2,
    "memory_rank": 8,
    "memory_chunk": 8,
    "conv_kernel": 4,
}
DEPTHS = [
    {},
    {"cycles": 2, "latent_steps": 1},
    {"cycles": 2, "latent_steps": 2, "num_supervision": 3},
    {"latent_steps": 1, "num_supervision": 4, "halt_threshold": 0.5},
    {"memory_layers": []},
    {"use_memory": False},
    {"num_core_layers": 1, "memory_layers": [0, 2]},
    {"num_persistent": 0, "window": 1},
    {"embedding_rank": 8},
    {"conv_kernel": 0, "memory_layers": []},
    {"conv_kernel": 3, "latent_steps": 1, "num_supervision": 4, "halt_threshold": 0.5},
]


def small(**changes: object) -> Cognate:
    torch.manual_seed(3)
    model = Cognate(CognateConfig(**(SMALL | changes))).eval()  # type: ignore[arg-type]
    torch.nn.init.normal_(model.halt_head.weight, std=0.5)
    torch.nn.init.constant_(model.halt_head.bias, 0.0)
    torch.nn.init.normal_(model.latent, std=0.3)
    for block in model.prelude:
        if block.residual is not None:
            torch.nn.init.normal_(block.residual)
    return model


@pytest.mark.parametrize(("chunk", "seq"), [(1, 9), (4, 12), (5, 13), (64, 20)])
def test_memory_equals_sequential_equations(chunk: int, seq: int) -> None:
    torch.manual_seed(0)
    memory = NeuralMemory(24, num_heads=3, rank=6, chunk=chunk).double()
    torch.nn.init.normal_(memory.gates.weight, std=0.8)
    x, convolved = torch.randn(2, seq, 4 * 24, dtype=torch.float64).split([24, 72], dim=-1)
    query, key, value, (eta, theta, alpha) = memory._project(x, convolved)
    for found, projection, inputs in zip(
        (query, key, value), (memory.query, memory.key, memory.value), convolved.split(24, dim=-1), strict=True
    ):
        assert (found - F.normalize(split_heads(projection(inputs), 3), dim=-1)).abs().max() < 1e-15
    expected = torch.stack(
        [
            torch.stack(
                [memory_reads(*(t[b, h].detach() for t in (query, key, value, eta, theta, alpha))) for h in range(3)]
            )
            for b in range(2)
        ]
    )
    read = split_heads(memory(x, convolved)[0], 3)
    assert (read - expected).abs().max() < 1e-13  # float64; a few hundred roundings of values of order 1
    state = memory.initial_state(x)
    streamed = []
    for t in range(seq):
        out, state = memory.step(x[:, t : t + 1], convolved[:, t : t + 1], state)
        streamed.append(out)
    assert (torch.cat(streamed, 1) - join_heads(expected)).abs().max() < 1e-13


def test_gates_of_a_new_memory() -> None:
    """Momentum .018, rate .119 of the largest, forgetting .0025 a token: what the gates' biases give where the text is
    zero; elsewhere each gate is a sigmoid of its own third of the projection, in bounds."""
    heads, width = 2, 8
    memory = NeuralMemory(heads * width, num_heads=heads, rank=4, chunk=4).double()

    def gates(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gate[0].detach() for gate in memory._project(x, x.repeat(1, 1, 3))[3])

    eta, theta, alpha = gates(torch.zeros(1, 3, heads * width, dtype=torch.float64))
    assert eta.shape == theta.shape == alpha.shape == (heads, 3)
    assert (eta - 1 / (1 + math.exp(4))).abs().max() < 1e-12
    assert (theta - (1 - 1 / (1 + math.exp(4))) / (1 + math.exp(2))).abs().max() < 1e-12
    assert (alpha - 0.999 / (1 + math.exp(6))).abs().max() < 1e-9
    x = torch.randn(1, 5, heads * width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eta, theta, alpha = gates(x)
    projected = (x @ memory.gates.weight.T + memory.gates.bias)[0].detach().sigmoid().T
    assert torch.allclose(eta, projected[:heads], atol=1e-14)
    assert torch.allclose(theta, projected[heads : 2 * heads] * (1 - eta), atol=1e-14)
    assert torch.allclose(alpha, 0.999 * projected[2 * heads :], atol=1e-14)


def memory_with(eta: float, theta: float, alpha: float, **shape: int) -> NeuralMemory:
    """A memory whose gates are these at every token, with projections of any size."""
    torch.manual_seed(0)
    memory = NeuralMemory(**({"d_model": 32, "num_heads": 2, "rank": 16, "chunk": 64} | shape)).double()
    with torch.no_grad():
        memory.gates.weight.zero_()
        memory.gates.bias.view(3, -1).copy_(torch.tensor([[eta], [theta], [alpha]]).logit(1e-9).expand(3, 2))
        for projection in (memory.query, memory.key, memory.value):
            projection.up.weight.mul_(5)
    return memory


@torch.no_grad()
def test_a_memory_forgets_its_weights() -> None:
    """Without an inner step what is left of the weights after n tokens is (1 - alpha)^n of them, in both forms."""
    memory, x = memory_with(0.5, 0.0, 0.1), torch.randn(1, 10, 32, dtype=torch.float64)
    held = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    streamed = MemoryState(held, torch.zeros_like(held))
    for t in range(10):
        _, streamed = memory.step(x[:, t : t + 1], x[:, t : t + 1].repeat(1, 1, 3), streamed)
    for after in (streamed, memory(x, x.repeat(1, 1, 3), MemoryState(held, torch.zeros_like(held)))[1].after):
        assert torch.allclose(after.weight, (1 - 0.999 * 0.1) ** 10 * held, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("pairs", "least"), [(16, 0.98), (64, 0.85)])
def test_a_memory_recalls_what_was_written_once(pairs: int, least: float) -> None:
    """Random keys and values of width 64, written once each at the largest rate within one chunk of the presets: the
    value nearest to what is read is the key's own. Chance is 1 / pairs."""
    draw = torch.Generator().manual_seed(0)
    key, value = (F.normalize(torch.randn(50, 1, pairs, 64, generator=draw), dim=-1) for _ in range(2))
    gates = (torch.zeros(50, 1, pairs), torch.ones(50, 1, pairs), torch.zeros(50, 1, pairs))
    empty = torch.zeros(50, 1, 64, 64)
    _, weight, _ = _write_chunk(key, value, gates, empty, empty)
    found = ((key @ weight.mT) @ value.mT).argmax(-1)
    assert float((found == torch.arange(pairs)).float().mean()) >= least


@pytest.mark.parametrize("layers", [2, 8])
def test_projections_into_the_residual_stream_start_smaller(layers: int) -> None:
    """By 1 / sqrt(2 L): torch draws a linear layer uniformly up to 1 / sqrt(inputs), and of so many weights the largest
    is within 2 % of that bound."""
    model = Cognate(CognateConfig(**(SMALL | {"num_layers": layers, "num_core_layers": 1, "memory_layers": []})))  # type: ignore[arg-type]
    for block in [*model.prelude, *model.core]:
        for linear in (block.output, block.mlp.down):
            bound = float(linear.weight.detach().abs().max()) * linear.in_features**0.5
            assert bound == pytest.approx((2 * layers) ** -0.5, rel=0.02)
        inside = block.attention.query.weight.detach()
        assert float(inside.abs().max()) * inside.shape[1] ** 0.5 == pytest.approx(1.0, rel=0.02)


def test_memory_uses_each_of_its_parts() -> None:
    """Momentum, forgetting and the inner step each change the read, and no state leaks between rows of a batch."""
    torch.manual_seed(0)
    memory = NeuralMemory(16, num_heads=2, rank=4, chunk=4).double()
    x, convolved = torch.randn(2, 10, 64, dtype=torch.float64).split([16, 48], dim=-1)
    base = memory(x, convolved)[0]
    assert (memory(x[1:], convolved[1:])[0] - base[1:]).abs().max() < 1e-14
    for gate in range(3):
        with torch.no_grad():
            memory.gates.bias[2 * gate : 2 * gate + 2] += 2.0
            assert (memory(x, convolved)[0] - base).abs().max() > 1e-4
            memory.gates.bias[2 * gate : 2 * gate + 2] -= 2.0


@torch.no_grad()
def test_a_memory_that_is_not_used_is_as_an_empty_one() -> None:
    """With a rate of 0 nothing is written, so that reads are 0 and the gate sigmoid(0)."""
    torch.manual_seed(0)
    writing, unused = small().double(), small(use_memory=False).double()
    unused.load_state_dict(writing.state_dict())
    tokens = torch.randint(0, 300, (2, 20))
    assert (writing(tokens).logits - unused(tokens).logits).abs().max() > 1e-4
    memory = writing.prelude[0].memory
    memory.gates.weight[2:4], memory.gates.bias[2:4] = 0.0, -1e3
    assert (writing(tokens).logits - unused(tokens).logits).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("period", "most"), [(1, 2.0), (4, 2.0), (16, 12.0), (33, 8.0), (2048, 8.0)])
def test_memory_stays_bounded(momentum: float, period: int, most: float) -> None:
    """At the largest inner rate and without forgetting, 2048 tokens, equal, cycling or all different, leave bounded
    reads. Values have unit length; as many keys as a head is wide (16) are the worst case, because all of them can just
    be met, by large weights."""
    memory = memory_with(momentum, 1.0, 0.0)
    x = torch.randn(1, period, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.repeat(1, 2048 // period, 1)
    assert split_heads(memory(x, x.repeat(1, 1, 3))[0], 2).norm(dim=-1).max() < most


def test_memory_gradients() -> None:
    torch.manual_seed(0)
    memory = NeuralMemory(8, num_heads=2, rank=4, chunk=3).double()
    x = torch.randn(1, 5, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: memory(*t.split([8, 24], dim=-1))[0], (x,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize(("seq", "window", "prefix"), [(5, 8, 2), (8, 8, 0), (17, 4, 3), (24, 8, 1), (7, 1, 2)])
def test_attention_equals_naive_rows(seq: int, window: int, prefix: int) -> None:
    torch.manual_seed(1)
    attention = SlidingWindowAttention(16, num_heads=2, window=window, num_persistent=prefix).double()
    torch.nn.init.normal_(attention.persistent)
    x = torch.randn(2, seq, 16, dtype=torch.float64)
    out, (key, value), _ = attention(x)
    query, _, _ = attention._project(x, torch.arange(x.shape[1]))
    prefix_key, prefix_value = attention._persistent(2, x.dtype)
    for b, h in itertools.product(range(2), range(2)):
        expected = attention_rows(query[b, h], key[b, h], value[b, h], prefix_key[b, h], prefix_value[b, h], window)
        assert (split_heads(out, 2)[b, h] - expected).abs().max() < 1e-14


def test_convolution_stands_before_the_projections() -> None:
    torch.manual_seed(1)
    plain = SlidingWindowAttention(16, 2, window=5, num_persistent=1).double()
    mixed = SlidingWindowAttention(16, 2, window=5, num_persistent=1, conv_kernel=4).double()
    mixed.load_state_dict(plain.state_dict(), strict=False)
    assert mixed.conv is not None
    x, kernels = torch.randn(2, 9, 16, dtype=torch.float64), mixed.conv.weight[:, 0].detach()
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert 0.1 < float((kernels - identity).std()) < 0.3
    expected = []
    for kernel in kernels.split(16):  # of the query, of the key, of the value
        expected.append(torch.zeros_like(x))
        for t, back in itertools.product(range(9), range(4)):
            if t >= back:
                expected[-1][:, t] += kernel[:, 3 - back] * x[:, t - back]
    out, (_, _, inputs), convolved = mixed(x)
    assert (convolved - torch.cat(expected, dim=-1)).abs().max() < 1e-14
    query, key, value = (plain._project(mixing, torch.arange(9))[n] for n, mixing in enumerate(expected))
    assert (out - join_heads(plain._mix(query, key, value))).abs().max() < 1e-14
    assert torch.equal(inputs[:, 0], x)
    assert count_parameters(mixed) - count_parameters(plain) == 3 * 16 * 4


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "least", "most"), [(8, 0.95, 1.0), (0, 0.35, 0.65)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_short_convolution_binds_a_name_to_a_place(kernel: int, least: float, most: float, seed: int) -> None:
    """ "Anna went to the garden. Tom went to the hall. Where is Anna?" of 16 names and 8 places; chance is one half."""

    def drawn(rows: int, draws: random.Random) -> torch.Tensor:
        items = []
        for _ in range(rows):
            (first, second), (here, there) = draws.sample(range(260, 276), 2), draws.sample(range(280, 288), 2)
            asked, answer = draws.choice([(first, here), (second, there)])
            went = [290, 291, 292]
            items.append([0, first, *went, here, 293, second, *went, there, 293, 294, 295, asked, 296, answer])
        return torch.tensor(items)

    torch.manual_seed(seed)
    model, draws = Cognate(CognateConfig(vocab_size=300, memory_layers=[], conv_kernel=kernel)), random.Random(seed)
    optimizer = MuGrokfast(model, OptimizerConfig(muon_lr=0.015, adamw_lr=0.02, grokfast_lambda=0.0))
    weight = torch.ones(17)
    weight[-1] = 5.0
    for _ in range(200):
        tokens = drawn(32, draws)
        h = model.encode(tokens[:, :-1])
        logits = model.logits(model.supervise(h, model.start(h)).y).transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none")
        (losses * weight).mean().backward()
        optimizer.step(1.0)
    unseen = drawn(400, random.Random(10**6))
    with torch.no_grad():
        right = (model(unseen[:, :-1]).logits[:, -1].argmax(-1) == unseen[:, -1]).float().mean()
    assert least <= float(right) <= most


@pytest.mark.slow
@pytest.mark.parametrize(("used", "least", "most"), [(True, 0.9, 1.0), (False, 0.0, 0.2)])
def test_a_memory_learns_to_recall_from_beyond_the_window(used: bool, least: float, most: float) -> None:
    """Four of 16 names with a thing each, 64 tokens of filler, then all four names in another order; two blocks with a
    window of 16 reach 32 tokens back. Chance is .06, and .25 for who knows which things were told."""

    def drawn(rows: int, draws: torch.Generator) -> torch.Tensor:
        names = torch.stack([torch.randperm(16, generator=draws)[:4] for _ in range(rows)]) + 10
        things = torch.randint(16, (rows, 4), generator=draws) + 40
        order = torch.stack([torch.randperm(4, generator=draws) for _ in range(rows)])
        told = torch.stack([names, things, torch.full_like(names, 5)], -1).flatten(1)
        asked = torch.stack([torch.full_like(names, 7), names.gather(1, order), things.gather(1, order)], -1).flatten(1)
        return torch.cat([told, torch.randint(100, 120, (rows, 64), generator=draws), asked], dim=1)

    torch.manual_seed(0)
    shape = {"d_model": 64, "num_layers": 2, "num_core_layers": 1, "num_heads": 2, "d_ff": 128, "window": 16}
    model = Cognate(CognateConfig(vocab_size=300, use_memory=used, **shape))  # type: ignore[arg-type]
    optimizer = MuGrokfast(model, OptimizerConfig(muon_lr=0.015, adamw_lr=0.01, grokfast_lambda=0.0))
    draws, answers = torch.Generator().manual_seed(0), slice(-10, None, 3)
    for step in range(250):
        tokens = drawn(32, draws)
        h = model.encode(tokens[:, :-1])
        logits = model.logits(model.supervise(h, model.start(h)).y)
        F.cross_entropy(logits[:, answers].flatten(0, 1), tokens[:, 1:][:, answers].flatten()).backward()
        optimizer.step(min(1.0, (250 - step) / 125))
    unseen = drawn(100, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(unseen[:, :-1]).logits[:, answers].argmax(-1) == unseen[:, 1:][:, answers]
    assert least <= float(found.float().mean()) <= most


def test_rotary_depends_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i: int, j: int) -> torch.Tensor:
        rotated = [rotate(t, rotary_table(torch.tensor([p]), 8)) for t, p in ((q, i), (k, j))]
        return (rotated[0] * rotated[1]).sum()

    assert product(7, 3) == pytest.approx(float(product(104, 100)), abs=1e-5)  # float32 angles up to 104 radians
    assert abs(float(product(7, 3) - product(7, 4))) > 1e-2


def test_small_layers_by_hand() -> None:
    x = torch.tensor([[[3.0, 4.0]]])
    assert torch.allclose(RMSNorm(2, eps=0.0)(x), x / 12.5**0.5)
    norm = RMSNorm(5).double()
    torch.nn.init.normal_(norm.weight)
    wide = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t, w: torch.func.functional_call(norm, {"weight": w}, (t,)), (wide, norm.weight)
    )
    assert torch.allclose(norm(wide), torch.nn.functional.rms_norm(wide, (5,), norm.weight, 1e-6), atol=1e-15)
    conv = CausalConv(2, 3, 0.0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 0.0, 1.0]]]))
    out, tail = conv(torch.tensor([[[1.0, 5.0], [2.0, 6.0], [4.0, 7.0]]]))
    assert out[0, :, 0].tolist() == [3.0, 8.0, 17.0]
    assert out[0, :, 1].tolist() == [5.0, 6.0, 7.0]
    assert tail.tolist() == [[[2.0, 6.0], [4.0, 7.0]]]
    mlp = SwiGLU(1, 1)
    with torch.no_grad():
        for linear, value in ((mlp.gate, 2.0), (mlp.up, 3.0), (mlp.down, 0.5)):
            linear.weight.fill_(value)
    silu = 2.0 / (1 + torch.exp(torch.tensor(-2.0)))
    assert mlp(torch.ones(1, 1, 1)).item() == pytest.approx(float(0.5 * silu * 3.0), rel=1e-6)


@pytest.mark.parametrize("changes", DEPTHS)
def test_causal_bit_for_bit_and_streaming_equals_parallel(changes: dict[str, object]) -> None:
    model = small(**changes)
    tokens = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        prediction = model(tokens)
        for position in (1, 8, 15, 19):
            changed = tokens.clone()
            changed[:, position] = (changed[:, position] + 1) % 300
            moved = model(changed)
            assert torch.equal(moved.logits[:, :position], prediction.logits[:, :position])
            assert torch.equal(moved.steps[:, :position], prediction.steps[:, :position])
            assert not torch.equal(moved.logits[:, position], prediction.logits[:, position])
        double = model.double()
        parallel = double(tokens)
        state = double.stream(2)
        streamed = torch.stack([double.step(tokens[:, t], state) for t in range(20)], 1)
    assert (streamed - parallel.logits).abs().max() < 1e-12
    assert state.steps_used == parallel.steps.amax(0).tolist()


@pytest.mark.parametrize("with_memory", [False, True])
def test_every_module_is_causal(with_memory: bool) -> None:
    torch.manual_seed(2)
    memory = NeuralMemory(16, 2, 4, 4)
    attention = SlidingWindowAttention(16, 2, 4, 2, conv_kernel=3)
    modules = {
        "attention": lambda x: attention(x)[0],
        "memory": lambda x: memory(x, x.repeat(1, 1, 3))[0],
        "convolution": lambda x: attention._convolved(x),
        "block": lambda x: TitansBlock.forward(block, x)[0],
    }
    block = TitansBlock(16, 24, attention, memory if with_memory else None)
    x = torch.randn(1, 13, 16)
    for name, module in modules.items():
        before = module(x)
        for position in (1, 4, 9, 12):
            changed = x.clone()
            changed[:, position] += 1.0
            after = module(changed)
            assert torch.equal(after[:, :position], before[:, :position]), name
            assert not torch.equal(after[:, position], before[:, position]), name


def test_gradient_reaches_only_the_past() -> None:
    model = small(cycles=2, latent_steps=1)
    h = torch.randn(1, 12, 32, requires_grad=True)
    after = model.supervise(h, model.start(h))
    after.y[0, 5].sum().backward()
    assert h.grad is not None
    assert h.grad[0, 6:].abs().max() == 0
    assert h.grad[0, 5].abs().max() > 0


def test_without_recursion_the_model_is_a_plain_decoder() -> None:
    """T = 1, n = 0, N_sup = 1 and z = 0: all blocks in order, the second mixes in the embedding and the first block's
    values; then norm and tied head."""
    model = small()
    torch.nn.init.zeros_(model.latent)
    tokens = torch.randint(0, 300, (1, 10))
    embedded = model.embedding(tokens)
    x, first = model.prelude[0](embedded)
    stays, root, value = model.prelude[1].residual
    x = stays * x + root * embedded / embedded.square().mean(-1, keepdim=True).sqrt()
    inputs = model.prelude[1].mixer_norm(x)
    assert model.prelude[1].memory is None
    heads, pair, _ = model.prelude[1].attention(inputs, added=value * first.pair[1])
    unmixed = split_heads(model.prelude[1].attention.value(model.prelude[1].attention._convolved(inputs)[..., 64:]), 4)
    assert torch.allclose(pair[1], unmixed + value * first.pair[1], atol=1e-6)
    x = model.prelude[1]._finish(x, heads)
    x = model.prelude_norm(x)
    for block in model.core:
        x, _ = block(x)
    expected = model.core_norm(x) @ model.embedding.weight.T
    assert torch.allclose(model(tokens).logits, expected, atol=1e-5)


def test_only_the_last_cycle_is_back_propagated() -> None:
    """TRM: T - 1 cycles without a graph. The gradient is that of the last cycle alone."""
    model = small(cycles=3, latent_steps=1, grad_cycles=1)
    h = torch.randn(1, 6, 32)
    model.supervise(h, model.start(h)).y.square().sum().backward()
    reference = {n: p.grad.clone() for n, p in model.core.named_parameters() if p.grad is not None}
    model.zero_grad()
    carry = model.start(h)
    with torch.no_grad():
        for _ in range(2):
            carry, _ = model._cycle(h, carry, None, None)
    model._cycle(h, carry, None, None)[0].y.square().sum().backward()
    for name, parameter in model.core.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, reference[name])
    full = small(cycles=3, latent_steps=1, grad_cycles=3)
    full.supervise(h, full.start(h)).y.square().sum().backward()
    name = "0.mlp.gate.weight"
    assert not torch.allclose(dict(full.core.named_parameters())[name].grad, reference[name])


def test_halting_saves_steps_and_threshold_one_never_halts() -> None:
    tokens = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        often = small(latent_steps=1, num_supervision=4, halt_threshold=0.5)(tokens).steps.float().mean()
        never = small(latent_steps=1, num_supervision=4)(tokens).steps.float().mean()
    assert never == 4
    assert 1 < often < 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window"),
        ({"num_heads": 5}, "must divide d_model"),
        ({"num_heads": 32}, "even head widths"),
        ({"memory_layers": [2]}, "outside the prelude"),
        ({"num_core_layers": 9}, "exceeds num_layers"),
        ({"memory_heads": 5}, "memory_heads = 5 must divide"),
        ({"vocab_size": 70_000}, "65535"),
    ],
)
def test_impossible_configurations_say_what_to_change(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CognateConfig(**(SMALL | changes))  # type: ignore[arg-type]


def test_true_sizes() -> None:
    """The example shape of the specification constructs and is not 25 M; the forge_25m preset is, within 2 %."""
    from training_core.profiles import profile_of

    example = CognateConfig(
        d_model=512, num_layers=8, num_heads=8, d_ff=2048, vocab_size=32768, max_seq_len=2048, window=256,
        memory_layers=[1, 4], memory_heads=8, memory_rank=64,
    )  # fmt: skip
    ours = CognateConfig(vocab_size=6144, **profile_of("forge_25m").trunk.shape.model_dump())
    with torch.device("meta"):
        assert count_parameters(Cognate(example)) == pytest.approx(51.3e6, rel=0.01)
        assert count_parameters(Cognate(ours)) == pytest.approx(25.0e6, rel=0.02)


@torch.no_grad()
def test_a_cache_of_a_window_holds_its_last_positions_however_they_come() -> None:
    """One by one or many at once, over several turns of the ring; and the persistent tokens stay."""
    torch.manual_seed(0)
    attention = SlidingWindowAttention(16, num_heads=2, window=5, num_persistent=3).double()
    keys, values = torch.randn(2, 2, 2, 14, 8, dtype=torch.float64)
    one_by_one, at_once = attention.cache(2), attention.cache(2)
    persistent = one_by_one.keys[:, :, :3].clone()
    for position in range(14):
        one_by_one.write((keys[:, :, position : position + 1], values[:, :, position : position + 1]), position)
        seen = slice(max(0, position - 4), position + 1)
        for cached, whole in zip(one_by_one.visible(position), (keys, values), strict=True):
            assert sorted(cached[0, 0, 3:, 0].tolist()) == sorted(whole[0, 0, seen, 0].tolist())
        before = slice(max(0, position - 3), position + 1)
        for cached, whole in zip(one_by_one.before(position + 1), (keys, values), strict=True):
            assert torch.equal(cached, whole[:, :, before])
    at_once.write((keys[:, :, :9], values[:, :, :9]), 0)
    at_once.write((keys[:, :, 9:], values[:, :, 9:]), 9)
    assert torch.equal(at_once.keys, one_by_one.keys)
    assert torch.equal(at_once.values, one_by_one.values)
    assert torch.equal(at_once.keys[:, :, :3], persistent)


def test_norms_are_the_same_with_and_without_a_gradient() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        without = norm(x)
    assert torch.equal(without, norm(x).detach())
