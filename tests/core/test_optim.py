"""MuGrokfast against naive references, and what belongs to which optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.oracles.titans_reference import grokfast, muon_step
from tests.oracles.titans_reference import newton_schulz as reference_newton_schulz
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.optim.grokfast import GrokfastFilter
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig, is_hidden_matrix
from training_core.optim.muon import Muon, newton_schulz
from training_core.optim.schedules import warmup_stable_decay


def test_filter_equals_reference_and_is_low_pass() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, dtype=torch.float64) for _ in range(6)]
    ours = GrokfastFilter(alpha=0.9, lamb=2.0)
    for gradient, expected in zip(gradients, grokfast(gradients, 0.9, 2.0), strict=True):
        filtered = {"w": gradient.clone()}
        ours.apply(filtered)
        assert (filtered["w"] - expected).abs().max() < 1e-15
    constant, alternating = GrokfastFilter(0.98, 2.0), GrokfastFilter(0.98, 2.0)
    for step in range(400):
        slow, fast = {"w": torch.ones(1)}, {"w": torch.ones(1) * (-1) ** step}
        constant.apply(slow)
        alternating.apply(fast)
    assert slow["w"].item() == pytest.approx(3.0, abs=1e-5)  # slow gradients are amplified by 1 + lambda
    assert abs(fast["w"].item()) == pytest.approx(1.0, abs=0.05)  # fast ones pass as they are


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_muon_equals_naive_version(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(shape[1], shape[0], bias=False)
    start = layer.weight.detach().double().clone()
    gradients = [torch.randn(shape) for _ in range(5)]
    lr = 0.02
    optimizer = MuGrokfast(layer, OptimizerConfig(muon_lr=lr, grokfast_lambda=0.0, clip_norm=1e9))
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        optimizer.step(1.0)
    expected = muon_step(start, [g.double() for g in gradients], lr, 0.95)
    moved, wanted = layer.weight.detach().double() - start, expected - start
    assert (moved - wanted).abs().max() < 1e-5 * lr * 5  # float32 iterations, against float64 ones


def test_muon_equals_torchs_but_for_its_bfloat16() -> None:
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 24), (8, 24), (16, 16)]
    starts = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, start in zip(ours, theirs, starts, strict=True):
        moved, wanted = (mine - start).flatten(), (other - start).flatten()
        assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.9995
        assert (moved - wanted).abs().max() < 0.1 * 0.02 * 5  # bfloat16 is off by a few per cent of each step
    assert set(optimizers[0].state[ours[0]]) == {"momentum_buffer"}


def test_matrices_are_orthogonalised_alone_or_among_others() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, 20)
    together = newton_schulz(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        assert (newton_schulz(matrix[None])[0] - found).abs().max() < 1e-6
        assert 0.6 < torch.linalg.svdvals(found).min() < torch.linalg.svdvals(found).max() < 1.3


def test_newton_schulz_reference_bounds_singular_values() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(reference_newton_schulz(torch.randn(16, 32, dtype=torch.float64)))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_filter_changes_the_direction_of_muon_but_not_its_length() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(16, 16) for _ in range(8)]
    moves = []
    for lamb in (0.0, 2.0):
        layer = torch.nn.Linear(16, 16, bias=False)
        torch.nn.init.zeros_(layer.weight)
        optimizer = MuGrokfast(layer, OptimizerConfig(grokfast_lambda=lamb, clip_norm=1e9))
        for gradient in gradients:
            layer.weight.grad = gradient.clone()
            before = layer.weight.detach().clone()
            optimizer.step(1.0)
        moves.append(layer.weight.detach() - before)
    assert moves[1].norm() / moves[0].norm() == pytest.approx(1.0, abs=0.1)
    assert torch.nn.functional.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0) < 0.99


def test_ownership() -> None:
    model = Cognate(CognateConfig(embedding_rank=16))
    hidden = {name for name, p in model.named_parameters() if is_hidden_matrix(name, p)}
    assert "core.0.attention.query.weight" in hidden
    assert "prelude.0.memory.key.down.weight" in hidden
    assert "embedding_out.weight" in hidden
    for name in (
        "embedding.weight",
        "halt_head.weight",
        "prelude.0.memory.gates.weight",
        "prelude.1.residual",
        "core.0.attention.conv.weight",
        "core.0.attention.persistent",
    ):
        assert name not in hidden
        assert name in dict(model.named_parameters())


def test_clipping_scales_the_whole_gradient() -> None:
    model = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.zeros(2)), "b": torch.nn.Parameter(torch.zeros(1))})
    optimizer = MuGrokfast(model, OptimizerConfig(grokfast_lambda=0.0, clip_norm=1.0))
    model["a"].grad, model["b"].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    captured = {}
    original = optimizer._groups[0][0].step
    optimizer._groups[0][0].step = lambda: (
        captured.update({k: p.grad.clone() for k, p in model.items()}),
        original(),
    )  # type: ignore[method-assign,func-returns-value,union-attr]
    assert optimizer.step(1.0) == pytest.approx(5.0)
    assert captured["a"].tolist() == pytest.approx([0.6, 0.0], abs=1e-5)
    assert captured["b"].tolist() == pytest.approx([0.8], abs=1e-5)


def test_gradients_are_clipped_after_the_filter() -> None:
    """The first filtered gradient is (1 + lambda) g: what is applied has the clipped norm, not twice that."""
    model = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.zeros(2))})
    optimizer = MuGrokfast(model, OptimizerConfig(grokfast_lambda=1.0, clip_norm=1.0))
    model["a"].grad = torch.tensor([3.0, 4.0])
    assert optimizer.step(1.0) == pytest.approx(5.0), "the norm before the filter"
    applied = optimizer.state()["adamw.exp_avg.a"] / (1 - 0.9)
    assert applied.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)
    assert optimizer.state()["grokfast.a"].tolist() == [3.0, 4.0], "the average is of gradients as they were"


def test_adamw_by_hand() -> None:
    """Kingma & Ba, algorithm 1, with beta1 = .9 and beta2 = .95, no decay; gradients of very unlike sizes."""
    gradients = [1.0, -0.1, 5.0, 0.3, -2.0]
    model = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))})
    optimizer = MuGrokfast(model, OptimizerConfig(adamw_lr=0.01, grokfast_lambda=0.0, clip_norm=1e9))
    expected, m, v = 0.5, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        model["a"].grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step(1.0)
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        expected -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)) ** 0.5 + 1e-8)
        assert float(model["a"].detach()) == pytest.approx(expected, rel=1e-12)


def test_schedule_by_hand() -> None:
    factors = [warmup_stable_decay(s, 10, 0.2, 0.3) for s in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert warmup_stable_decay(0, 1, 0.0, 1.0) == pytest.approx(0.5)
