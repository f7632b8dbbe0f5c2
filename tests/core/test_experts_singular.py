"""Experts on singular values: the authors' formula, what a model without one stays, rows, streaming, and storage."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.core.small_data import SHAPE
from tests.oracles.singular_value_reference import compose, compose_paper
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.int8 import MOST_CODE
from training_core.nn.svf import (
    LEAST_MULTIPLIER,
    P_START,
    SVD,
    Expert,
    ScaledLinear,
    SVFModel,
    decompose,
    mixture,
)
from training_core.nn.ternary import inference_copy
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.training.device import best_device

SHAPES = [(12, 7), (7, 12), (9, 9)]
TOKENS = torch.randint(1, 300, (3, 20), generator=torch.Generator().manual_seed(5))


def model(*, ternary: bool = True, activation_bits: int = 0, **changes: object) -> Cognate:
    """Random, with large embeddings, so that it is sensitive to what it reads."""
    torch.manual_seed(0)
    made = Cognate(CognateConfig(vocab_size=300, **SHAPE | changes))  # type: ignore[arg-type]
    torch.nn.init.normal_(made.embedding.weight, std=0.4)
    torch.nn.init.normal_(made.halt_head.weight)
    if ternary:
        make_ternary(made, TernarySettings(activation_bits=activation_bits))
    return made.eval()


def weight(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(scalable: SVFModel, seed: int, rows: int = 0) -> dict[str, Tensor]:
    """Multipliers in .3 .. 1.7 of every matrix."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 + 1.4 * torch.rand((rows, len(its.s_R)) if rows else (len(its.s_R),), generator=generator)
        for name, its in scalable.singular.items()
    }


def expert(scalable: SVFModel, seed: int) -> Expert:
    return Expert.of(drawn(scalable, seed), scalable.singular)


@pytest.fixture(scope="module")
def scalable() -> SVFModel:
    return SVFModel(model())


# -- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_and_its_gradient_are_the_authors(shape: tuple[int, int]) -> None:
    """Float32 against float64: entries are about 1, so 1e-5 is some hundred roundings."""
    w = weight(shape)
    p = torch.randn(min(shape), generator=torch.Generator().manual_seed(1))
    onto = weight(shape, 2)  # the gradient of a loss in W'
    u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
    theirs_p = p.double().requires_grad_()
    theirs = compose(u, s, vh.T, theirs_p)
    (theirs * onto).sum().backward()
    ours_p = p.clone().requires_grad_()
    ours = decompose(w).compose(ours_p.sigmoid())
    (ours * onto).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(ours.double(), theirs, rtol=0, atol=1e-5)
    assert ours_p.grad is not None
    assert theirs_p.grad is not None
    assert torch.allclose(ours_p.grad.double(), theirs_p.grad, rtol=0, atol=1e-5)
    assert theirs_p.grad.abs().max() > 0.1
    paper = compose_paper(u, s, vh.T, theirs_p.detach().sigmoid())
    assert (paper - theirs.detach()).abs().max() > 0.1, "code and paper differ"


def test_two_singular_values_by_hand() -> None:
    """W = diag(4, 1), m = (1, 1/2): S m = (4, 1/2), factor 5 / 4.5."""
    found = decompose(torch.tensor([[4.0, 0.0], [0.0, 1.0]])).compose(torch.tensor([1.0, 0.5]))
    assert torch.allclose(found, torch.tensor([[40 / 9, 0.0], [0.0, 5 / 9]]), atol=1e-6)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6), st.floats(0.05, 5.0), st.floats(-4.0, 4.0))
@settings(max_examples=40)
def test_the_nuclear_norm_stays_and_a_constant_does_nothing(
    rows: int, columns: int, seed: int, spread: float, constant: float
) -> None:
    w = weight((rows, columns), seed)
    its = decompose(w)
    p = spread * torch.randn(min(rows, columns), generator=torch.Generator().manual_seed(seed + 1))
    after = torch.linalg.matrix_norm(its.compose(p.sigmoid()).double(), ord="nuc")
    before = torch.linalg.matrix_norm(w.double(), ord="nuc")
    assert abs(float(after / before) - 1) < 2e-6  # float32 products
    same = its.compose(torch.full_like(p, constant).sigmoid())
    assert float((same - w).norm() / w.norm()) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_decomposition_is_that_of_its_weight_and_has_one_sign(shape: tuple[int, int]) -> None:
    its = decompose(weight(shape))
    assert torch.allclose((its.u_OR * its.s_R) @ its.v_IR.T, weight(shape), atol=1e-5)
    assert torch.equal(its.s_R, its.s_R.sort(descending=True).values)
    largest = its.u_OR.gather(0, its.u_OR.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())
    turned = decompose(-weight(shape))
    assert torch.allclose(turned.u_OR, its.u_OR, atol=1e-5)
    assert torch.allclose(turned.v_IR, -its.v_IR, atol=1e-5)


# -- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("ternary", [True, False])
def test_without_multipliers_the_model_is_the_original_bit_for_bit(ternary: bool, bits: int) -> None:
    original = model(ternary=ternary, activation_bits=bits, num_supervision=2, halt_threshold=0.5)
    before = copy.deepcopy(original.state_dict())
    scaled = SVFModel(original)
    assert len(scaled.layers) == 9, "gate, up and down of three blocks, and no other matrix"
    expected = inference_copy(original)(TOKENS)
    for found in (scaled.model(TOKENS), scaled.plain()(TOKENS)):
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.halt, expected.halt)
    with scaled.using(drawn(scaled, 1)) as changed:
        assert (changed(TOKENS).logits - expected.logits).abs().max() > 0.05
        assert torch.equal(scaled.plain()(TOKENS).logits, expected.logits)
    assert torch.equal(scaled.model(TOKENS).logits, expected.logits)
    assert all(torch.equal(t, before[n]) for n, t in original.state_dict().items())


def test_multipliers_do_what_composed_weights_do(scalable: SVFModel) -> None:
    m = drawn(scalable, 2)
    by_hand = scalable.plain()
    for name, its in scalable.singular.items():
        layer = by_hand.get_submodule(name)
        assert isinstance(layer, ScaledLinear)
        layer.weight = its.compose(m[name])
    with scalable.using(m) as scaled:
        assert torch.equal(scaled(TOKENS).logits, by_hand(TOKENS).logits)


@pytest.mark.parametrize("bits", [0, 8])
def test_rows_have_multipliers_of_their_own(bits: int) -> None:
    """W' of a row is never written down; logits are a few units large and the order of summation differs."""
    scaled = SVFModel(model(activation_bits=bits, num_supervision=2))
    m = drawn(scaled, 3, rows=len(TOKENS))
    with scaled.using(m) as many:
        together = many(TOKENS).logits
    for row in range(len(TOKENS)):
        with scaled.using({name: each[row] for name, each in m.items()}) as one:
            alone = one(TOKENS[row : row + 1]).logits[0]
        # a rounding of activations to 8 bits may fall on the other side
        assert torch.allclose(together[row], alone, rtol=0, atol=1e-5 if bits == 0 else 0.1)
    assert (together - scaled.model(TOKENS).logits).abs().amax((1, 2)).min() > 0.05


@pytest.mark.parametrize("rows", [0, len(TOKENS)])
def test_streaming_is_the_parallel_form(scalable: SVFModel, rows: int) -> None:
    with scalable.using(drawn(scalable, 4, rows)) as scaled, torch.no_grad():
        parallel, state = scaled(TOKENS).logits, scaled.stream(len(TOKENS))
        streamed = torch.stack([scaled.step(TOKENS[:, t], state) for t in range(TOKENS.shape[1])], dim=1)
    assert torch.allclose(streamed, parallel, rtol=0, atol=2e-5)


def test_using_comes_back_to_what_was(scalable: SVFModel) -> None:
    first, second = drawn(scalable, 5), drawn(scalable, 6)
    with scalable.using(first) as scaled:
        expected = scaled(TOKENS).logits
        with pytest.raises(KeyError), scalable.using(second):
            raise KeyError
        assert torch.equal(scaled(TOKENS).logits, expected)
        with scalable.using({"prelude.0.mlp.gate": second["prelude.0.mlp.gate"]}):
            assert {n for n, layer in scalable.layers.items() if layer.multipliers is not None} == {
                "prelude.0.mlp.gate"
            }
    assert all(layer.multipliers is None for layer in scalable.layers.values())


def test_only_p_trains_and_training_starts_at_the_model_itself(scalable: SVFModel) -> None:
    """sigmoid(.1) everywhere is a constant, so the function differs by rounding alone."""
    trained = scalable.trainable()
    names = {n for n, parameter in trained.named_parameters() if parameter.requires_grad}
    assert names == {f"{name}.p" for name in scalable.layers}
    assert all(float(p.detach().sub(P_START).abs().max()) == 0 for n, p in trained.named_parameters() if n in names)
    found = trained(TOKENS).logits
    assert torch.allclose(found, scalable.model(TOKENS).logits, rtol=0, atol=1e-5)
    found.square().sum().backward()  # type: ignore[no-untyped-call]
    for name in scalable.layers:
        gradient = trained.get_parameter(f"{name}.p").grad
        assert gradient is not None
        assert gradient.abs().max() > 1e-3
        # along a constant p nothing changes, at first order too
        assert abs(float(gradient.sum())) < 1e-4 * float(gradient.abs().sum()) + 1e-5
    assert all(not p.requires_grad for p in scalable.model.parameters())


def test_what_is_trained_is_what_is_stored(scalable: SVFModel) -> None:
    trained = scalable.trainable()
    generator = torch.Generator().manual_seed(7)
    for name in scalable.layers:
        trained.get_parameter(f"{name}.p").data.normal_(generator=generator)
    stored = scalable.expert_of(trained)
    with torch.no_grad(), scalable.using(stored.multipliers()) as scaled:
        difference = (scaled(TOKENS).logits - trained(TOKENS).logits).abs().mean()
        moved = (scalable.plain()(TOKENS).logits - trained(TOKENS).logits).abs().mean()
    assert float(difference) < 0.02 * float(moved), "a byte for each singular value loses a hundredth"


def test_decompositions_can_be_given_and_must_fit(scalable: SVFModel) -> None:
    again = SVFModel(model(), scalable.singular)
    assert all(again.singular[n].u_OR is its.u_OR for n, its in scalable.singular.items())
    missing = {n: its for n, its in scalable.singular.items() if n != "core.1.mlp.up"}
    with pytest.raises(ValueError, match=r"core\.1\.mlp\.up has no decomposition of its shape \(48, 32\)"):
        SVFModel(model(), missing)
    with pytest.raises(ValueError, match=r"prelude\.0\.mlp\.gate has no decomposition of its shape \(40, 32\)"):
        SVFModel(model(d_ff=40), scalable.singular)


def test_a_layer_takes_its_decomposition_along() -> None:
    """Where a model moves, to a GPU or to another precision, what its layers are composed of moves too."""
    scaled = SVFModel(model())
    scaled.scale(drawn(scaled, 1))
    layer = scaled.layers["core.0.mlp.up"]
    layer.double()
    assert layer.multipliers is not None
    assert {t.dtype for t in (layer.weight, layer.singular.u_OR, layer.singular.s_R, layer.multipliers)} == {
        torch.float64
    }
    scaled = SVFModel(model())
    scaled.model.to(best_device())
    with scaled.using(expert(scaled, 1).multipliers()) as moved:
        assert moved(TOKENS.to(best_device())).logits.device.type == best_device().type


# -- storage ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 10**6), st.floats(1e-6, 6.0), st.floats(1e-3, 1e3))
@settings(max_examples=60)
def test_a_stored_multiplier_is_off_by_half_a_step_at_most(rank: int, seed: int, spread: float, scale: float) -> None:
    """A code is a 127th of the spread, and half of one is spread / 254; a float16 spread may be 2^-11 too small."""
    generator = torch.Generator().manual_seed(seed)
    its = SVD(torch.zeros(rank, rank), torch.rand(rank, generator=generator) + 0.05, torch.zeros(rank, rank))
    m = (spread * torch.randn(rank, generator=generator)).sigmoid()
    stored = Expert.of({"w": scale * m}, {"w": its})
    exact = m.double() * (its.s_R.double().sum() / (m.double() @ its.s_R.double()))
    assert torch.allclose(its.normalised(m).double(), exact, rtol=1e-6)
    error = (stored.deviations()["w"].double() - (exact - 1)).abs().max()
    # float32 rounds 1 + deviation to 2^-24 of it
    assert float(error) <= float((exact - 1).abs().max()) / 254 * (1 + 2**-9) + 3e-7 * float(exact.max())


def test_an_expert_survives_its_bundle_and_takes_its_bytes(scalable: SVFModel) -> None:
    written = expert(scalable, 8)
    tensors = written.tensors("experts.3.") | {"experts.30.codes.w": torch.ones(2), "elsewhere": torch.ones(1)}
    again = Expert.from_tensors(tensors, "experts.3.")
    for mine, other in ((written.codes, again.codes), (written.spreads, again.spreads)):
        assert list(mine) == list(other)
        assert all(torch.equal(mine[n], other[n]) and mine[n].dtype == other[n].dtype for n in mine)
    ranks = [len(its.s_R) for its in scalable.singular.values()]
    assert written.num_parameters == sum(ranks) == 9 * 32
    assert written.num_bytes == sum(rank + 2 for rank in ranks)
    assert written.num_bytes == sum(t.numel() * t.element_size() for t in written.tensors("").values())
    assert max(int(code.abs().max()) for code in written.codes.values()) == MOST_CODE


def test_no_deviation_is_stored_exactly() -> None:
    its = decompose(weight((5, 4)))
    stored = Expert.of({"w": torch.full((4,), 0.25)}, {"w": its})
    assert torch.equal(stored.multipliers()["w"], torch.ones(4))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_multipliers_that_cannot_be(scalable: SVFModel, bad: float) -> None:
    m = drawn(scalable, 9)
    m["core.0.mlp.down"][3] = bad
    with pytest.raises(ValueError, match=r"positive and finite, got .* for core\.0\.mlp\.down: .* lower its learning"):
        Expert.of(m, scalable.singular)


# -- mixtures --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.1))
@settings(max_examples=30)
def test_weights_that_sum_to_one_mix_multipliers(weights: list[float]) -> None:
    scaled = _scaled()
    experts = [expert(scaled, seed) for seed in range(3)]
    share = torch.tensor(weights) / sum(weights)
    mixed = mixture(experts, share)
    for name in scaled.layers:
        expected = sum(w * e.multipliers()[name] for w, e in zip(share, experts, strict=True))
        assert isinstance(expected, Tensor)
        assert torch.allclose(mixed[name], expected, rtol=0, atol=1e-6)


def test_weights_of_zero_are_the_model_as_it_is(scalable: SVFModel) -> None:
    experts = [expert(scalable, seed) for seed in range(2)]
    mixed = mixture(experts, torch.zeros(2))
    assert all(torch.equal(m, torch.ones_like(m)) for m in mixed.values())
    with scalable.using(mixed) as scaled:
        assert torch.allclose(scaled(TOKENS).logits, scalable.plain()(TOKENS).logits, rtol=0, atol=1e-5)
    half = mixture(experts, torch.tensor([0.5, 0.0]))
    name = "core.0.mlp.up"
    assert torch.allclose(half[name] - 1, 0.5 * (experts[0].multipliers()[name] - 1), atol=1e-6)


def test_mixtures_of_every_row_at_once_and_no_direction_turns_round(scalable: SVFModel) -> None:
    experts = [expert(scalable, seed) for seed in range(2)]
    weights = torch.tensor([[1.0, 0.0], [0.2, 0.7], [-3.0, 4.0]])
    together: Mapping[str, Tensor] = mixture(experts, weights)
    for row in range(3):
        alone = mixture(experts, weights[row])
        assert all(torch.allclose(together[n][row], alone[n], atol=1e-6) for n in alone)
    assert all(float(m.min()) >= LEAST_MULTIPLIER for m in together.values())
    assert min(float(m.min()) for m in together.values()) == pytest.approx(LEAST_MULTIPLIER)
    assert mixture([], torch.zeros(0)) == {}


def _scaled() -> SVFModel:
    """Made once: hypothesis takes no fixtures of a module's scope with its own draws."""
    if not _MADE:
        _MADE.append(SVFModel(model()))
    return _MADE[0]


_MADE: list[SVFModel] = []
