"""Ternary quantisation against hand numbers, a RoundClip written from the paper, and its own frozen form."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.ternary import (
    FrozenTernaryEmbedding,
    FrozenTernaryLinear,
    TernaryEmbedding,
    TernaryLinear,
    apply_ternary,
    freeze_ternary,
    quantize_activations,
    ternarize,
    ternary_modules,
    ternary_weight,
)


def round_clip(weight: list[list[float]], gamma: float) -> list[list[int]]:
    """BitNet b1.58 eq. 1 and 2 in plain Python: max(-1, min(1, round(w / gamma))), round half to even."""
    return [[max(-1, min(1, round(w / gamma))) for w in row] for row in weight]


class Tied(nn.Module):
    """Embedding and head share a Parameter; one linear layer is reachable under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.again = self.first
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.norm(self.again(torch.tanh(self.first(x)))))


def everything(name: str, module: nn.Module) -> bool:
    return True


def test_hand_numbers_per_tensor() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.5], [0.0, 2.0, -0.25]])  # mean|W| = 6.75 / 6 = 1.125, a float16 value
    ternary = ternarize(weight)
    assert ternary.scale.item() == 1.125
    assert ternary.codes.tolist() == [[1, -1, 0], [0, 1, 0]]
    assert ternary.dequantize().tolist() == [[1.125, -1.125, 0.0], [0.0, 1.125, 0.0]]


def test_hand_numbers_per_row_and_threshold() -> None:
    weight = torch.tensor([[1.0, -3.0, 0.5], [0.0, 2.0, -0.25]])
    ternary = ternarize(weight, granularity="row")  # rows' means: 1.5 and 0.75
    assert ternary.scale.tolist() == [[1.5], [0.75]]
    assert ternary.codes.tolist() == [[1, -1, 0], [0, 1, 0]]
    low = ternarize(weight, threshold=0.1)  # .1 * 1.125 = .1125: everything but the zero passes
    assert low.codes.tolist() == [[1, -1, 1], [0, 1, -1]]


def test_a_tie_is_zero_for_either_sign() -> None:
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5]])  # mean|W| = 1
    assert ternarize(weight).codes.tolist() == [[0, 0, 1, -1]]
    assert round_clip(weight.tolist(), 1.0) == [[0, 0, 1, -1]]


def test_equals_round_clip_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        weight = torch.randn(13, 17, generator=generator) * 0.03
        exact = math.fsum(abs(w) for row in weight.tolist() for w in row) / weight.numel()
        ternary = ternarize(weight)
        assert ternary.scale.item() == torch.tensor(exact, dtype=torch.float64).half().item()
        assert ternary.codes.tolist() == round_clip(weight.tolist(), ternary.scale.item())


def test_share_of_zeros_of_a_gaussian() -> None:
    weight = torch.randn(400, 500, generator=torch.Generator().manual_seed(1))
    # gamma = sigma sqrt(2/pi); P(|w| <= .5 gamma) = erf(.5 / sqrt(pi)) = .3101; three sigma of 200000 draws
    expected = math.erf(0.5 / math.sqrt(math.pi))
    band = 3 * math.sqrt(expected * (1 - expected) / weight.numel())
    assert abs((ternarize(weight).codes == 0).float().mean().item() - expected) < band


def test_scale_is_a_float16_value_and_never_rounds_to_zero() -> None:
    tiny = ternarize(torch.full((2, 2), 1e-9))
    assert tiny.scale.item() == 2.0**-24
    assert tiny.codes.tolist() == [[0, 0], [0, 0]]
    assert ternarize(torch.zeros(3, 3)).dequantize().abs().sum().item() == 0
    with pytest.raises(ValueError, match="at most 65504"):
        ternarize(torch.full((2, 2), 1e5))
    with pytest.raises(ValueError, match="finite"):
        ternarize(torch.tensor([[1.0, float("nan")]]))
    assert ternary_weight(torch.tensor([[1.0, float("nan")]])).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -0.1}, "threshold must be"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"granularity": "column"}, "granularity must be"),
    ],
)
def test_settings_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ternarize(torch.ones(2, 2), **arguments)


def test_ternarising_twice_is_another_model() -> None:
    """Why frozen modules exist: mean|gamma codes| is gamma times the share of non-zero codes."""
    weight = torch.randn(40, 40, generator=torch.Generator().manual_seed(2))
    once = ternarize(weight)
    twice = ternarize(once.dequantize())
    share = (once.codes != 0).double().mean().item()
    assert twice.scale.item() == pytest.approx(once.scale.item() * share, rel=2**-10)
    assert share < 0.75


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_effective_weight_is_exact_and_gradient_is_straight_through(granularity: str, threshold: float) -> None:
    latent = (torch.randn(80, 50, generator=torch.Generator().manual_seed(3)) * 0.07).requires_grad_()
    effective = ternary_weight(latent, threshold, granularity)
    assert torch.equal(effective, ternarize(latent.detach(), threshold, granularity).dequantize())
    upstream = torch.randn(80, 50, generator=torch.Generator().manual_seed(4))
    (effective * upstream).sum().backward()
    assert torch.equal(latent.grad, upstream)


def test_effective_weight_is_exact_beside_an_outlier() -> None:
    """gamma = 1 + 2^-10; w + (gamma - w) could not give it back: 30031.7 has steps of 2^-9."""
    weight = torch.zeros(300, 100)
    weight[7, 7] = 30031.7
    effective = ternary_weight(weight)
    assert effective[7, 7].item() == 1 + 2**-10
    assert effective.count_nonzero().item() == 1


def test_activations_hand_numbers_and_gradient() -> None:
    x = torch.tensor([[127.0, -63.4, 0.4], [0.0, 0.0, 0.0], [-2.54, 0.024, 1.297]], requires_grad=True)
    y = quantize_activations(x)
    expected = torch.tensor([[127.0, -63.0, 0.0], [0.0, 0.0, 0.0], [-2.54, 0.02, 1.3]])
    # third token: 127 / 2.54 = 50, so the step is .02: 1.2 steps become 1, 64.85 become 65
    assert torch.allclose(y, expected, rtol=1e-6, atol=0)
    (y * torch.arange(9.0).view(3, 3)).sum().backward()
    assert torch.equal(x.grad, torch.arange(9.0).view(3, 3))


def test_activations_have_256_levels_and_half_a_step_of_error() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step = x.abs().amax(dim=1, keepdim=True) / 127
    y = quantize_activations(x)
    levels = y / step
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    assert (x - y).abs().max() <= (step.max() / 2) * (1 + 1e-9)
    assert levels.abs().max().round().item() == 127


def test_linear_matches_integer_arithmetic() -> None:
    """[1]: y = (integer activations x integer weights) * max|x| / 127 * gamma, accumulated in integers."""
    layer = TernaryLinear(32, 7, bias=False)
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(6))
    ternary = ternarize(layer.weight.detach())
    maximum = x.double().abs().amax(dim=1, keepdim=True)
    integers = (127 * x.double() / maximum).round().long()
    expected = (integers @ ternary.codes.long().T).double() * maximum / 127 * ternary.scale.double()
    # float32 accumulation of 32 products: 32 * 2^-24 of the largest partial sum, generously
    assert torch.allclose(layer(x).double(), expected, rtol=0, atol=32 * 2**-22 * expected.abs().max())


def test_apply_keeps_parameters_ties_and_names() -> None:
    torch.manual_seed(0)
    model = Tied()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    names = apply_ternary(model, everything, threshold=0.3, granularity="row", activation_bits=0)
    assert names == ["embedding", "first", "head"]
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    assert model.first is model.again
    assert type(model.first) is TernaryLinear
    assert type(model.embedding) is TernaryEmbedding
    assert type(model.norm) is nn.LayerNorm
    assert [name for name, _ in ternary_modules(model)] == names
    tokens = torch.tensor([[1, 4, 10]])
    weight = {n: ternarize(p.detach(), 0.3, "row").dequantize() for n, p in model.named_parameters() if p.dim() == 2}
    x = F.embedding(tokens, weight["embedding.weight"])
    x = torch.tanh(F.linear(x, weight["first.weight"], model.first.bias))
    x = model.norm(F.linear(x, weight["first.weight"], model.first.bias))
    assert torch.equal(model(tokens), F.linear(x, weight["embedding.weight"]))


def test_apply_selects_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert apply_ternary(model, lambda name, module: name == "1") == ["1"]
    assert type(model[0]) is nn.Linear


def test_apply_refuses_what_it_cannot_do() -> None:
    model = Tied()
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        apply_ternary(model, lambda name, module: False)
    with pytest.raises(ValueError, match=r"head.weight is the same Parameter as embedding.weight"):
        apply_ternary(model, lambda name, module: name == "embedding")
    assert type(model.embedding) is nn.Embedding
    with pytest.raises(ValueError, match="wrap it"):
        apply_ternary(nn.Linear(2, 2), everything)
    with pytest.raises(ValueError, match="activation_bits"):
        apply_ternary(model, everything, activation_bits=4)
    with pytest.raises(ValueError, match="max_norm"):
        apply_ternary(nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), everything)
    apply_ternary(model, everything)
    with pytest.raises(ValueError, match="got TernaryEmbedding"):
        apply_ternary(model, everything)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("activation_bits", [0, 8])
def test_freeze_is_bit_identical(granularity: str, activation_bits: int) -> None:
    torch.manual_seed(1)
    model = Tied()
    apply_ternary(model, everything, granularity=granularity, activation_bits=activation_bits)
    tokens = torch.randint(11, (3, 9))
    trained = model(tokens)
    frozen = copy.deepcopy(model)
    assert freeze_ternary(frozen) == ["embedding", "first", "head"]
    assert torch.equal(frozen(tokens), trained)
    assert type(frozen.first) is FrozenTernaryLinear
    assert type(frozen.embedding) is FrozenTernaryEmbedding
    assert frozen.first is frozen.again
    assert frozen.head.codes is frozen.embedding.codes
    assert "first.weight" not in frozen.state_dict()
    with pytest.raises(ValueError, match="no ternary module"):
        freeze_ternary(frozen)


def test_frozen_state_dict_carries_the_weight() -> None:
    torch.manual_seed(2)
    models = [Tied(), Tied()]
    for model in models:
        apply_ternary(model, everything)
        freeze_ternary(model)
    tokens = torch.randint(11, (2, 5))
    assert not torch.equal(models[0](tokens), models[1](tokens))
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(models[0](tokens), models[1](tokens))


def test_training_through_the_quantiser_learns_a_ternary_map() -> None:
    """A ternary teacher of the same shape is recovered: 95 % of the codes agree after 200 steps of Adam."""
    generator = torch.Generator().manual_seed(7)
    target = torch.randint(-1, 2, (6, 12), generator=generator).float() * 0.5
    torch.manual_seed(3)
    layer = TernaryLinear(12, 6, bias=False, activation_bits=0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(200):
        x = torch.randn(64, 12, generator=generator)
        loss = F.mse_loss(layer(x), x @ target.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    agreement = (ternarize(layer.weight.detach()).codes == target.sign()).float().mean().item()
    assert agreement >= 0.95


def test_hardness_moves_the_forward_pass_from_latent_to_ternary() -> None:
    from training_core.nn.ternary import hardness, set_hardness

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
    apply_ternary(model, lambda name, module: True, activation_bits=0)
    layer = model[0]
    latent = layer.weight.detach().clone()
    hard = layer.effective_weight().detach()
    for value in (0.0, 0.25, 1.0):
        set_hardness(model, value)
        effective = layer.effective_weight()
        assert torch.allclose(effective, latent + value * (hard - latent), atol=1e-7)
        layer.weight.grad = None
        effective.sum().backward()
        assert torch.equal(layer.weight.grad, torch.ones(4, 6)), "the gradient passes straight at every hardness"
    assert torch.equal(layer.effective_weight(), hard)
    assert [hardness(step, 10, 0.5) for step in (0, 2, 4, 9)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert hardness(0, 10, 0.0) == 1.0
    with pytest.raises(ValueError, match="hardness must lie in"):
        set_hardness(model, 1.5)
