"""Merge formulas: hand numbers, naive float64 oracles, mergekit, and invariants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import merging_reference as reference
from training_core.phases.p2_evomerge import methods

Merge = Callable[[methods.StateDict, list[methods.StateDict]], dict[str, torch.Tensor]]


def random_models(seed: int, count: int, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (17, 31), "bias": (31,), "gain": ()}
    return [
        {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
        | {"mask": torch.tensor([True, False])}
        for _ in range(count)
    ]


def vector(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values)}


def largest_difference(a: methods.StateDict, b: methods.StateDict) -> float:
    assert list(a) == list(b)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


ALL_METHODS: dict[str, Merge] = {
    "linear": lambda base, models: methods.linear(models, [0.3, 0.9]),
    "slerp": lambda base, models: methods.slerp(models[0], models[1], 0.3),
    "ties": lambda base, models: methods.ties(base, models, [0.3, 0.9], 0.4),
    "ties model": lambda base, models: methods.ties(base, models, [0.3, 0.9], 0.4, 0.7, "model"),
    "dare": lambda base, models: methods.dare(base, models, [0.3, 0.9], 0.5, torch.Generator().manual_seed(1)),
    "dare ties": lambda base, models: methods.dare(
        base, models, [0.3, 0.9], 0.5, torch.Generator().manual_seed(1), "ties"
    ),
}


# --- hand numbers -------------------------------------------------------------------------------------------


def test_linear_by_hand() -> None:
    merged = methods.linear([vector(1.0, 2.0), vector(5.0, -2.0)], [3.0, 1.0])
    assert merged["w"].tolist() == [2.0, 1.0]


def test_slerp_by_hand_is_a_quarter_turn_halved_and_does_not_normalise() -> None:
    merged = methods.slerp(vector(2.0, 0.0), vector(0.0, 4.0), 0.5)
    assert merged["w"].tolist() == pytest.approx([2.0 * math.sqrt(0.5), 4.0 * math.sqrt(0.5)], rel=1e-7)


def test_slerp_interpolates_linearly_where_the_angle_is_undefined_or_too_small() -> None:
    assert methods.slerp(vector(0.0, 0.0), vector(2.0, 4.0), 0.25)["w"].tolist() == [0.5, 1.0]
    assert methods.slerp(vector(1.0, 0.0), vector(-1.0, 0.0), 0.25)["w"].tolist() == [0.5, 0.0]
    narrow, wide = math.acos(0.9996), math.acos(0.9994)
    for angle, chord in ((narrow, True), (wide, False)):
        merged = methods.slerp(vector(1.0, 0.0), vector(math.cos(angle), math.sin(angle)), 0.5)["w"]
        # The chord's midpoint has length cos(angle / 2), about 1 - 1.4e-4; the arc's has length 1.
        expected = math.cos(angle / 2) if chord else 1.0
        assert float(merged.double().norm()) == pytest.approx(expected, abs=3e-7)


def test_ties_by_hand() -> None:
    base = vector(1.0, 1.0, 1.0, 1.0)
    a = vector(1.0 + 4.0, 1.0 + 3.0, 1.0 + 0.5, 1.0 - 2.0)  # trimmed to 3 of 4: 4, 3, -, -2
    b = vector(1.0 + 2.0, 1.0 - 5.0, 1.0 + 0.25, 1.0 - 6.0)  # trimmed to 3 of 4: 2, -5, -, -6
    merged = methods.ties(base, [a, b], [1.0, 1.0], density=0.75)
    assert merged["w"].tolist() == [1.0 + 3.0, 1.0 - 5.0, 1.0, 1.0 - 4.0]
    scaled = methods.ties(base, [a, b], [3.0, 1.0], density=0.75, scale=0.5)
    # Elected by mass 9 - 5 > 0, so the second entry is +3; means weighted 3 : 1.
    assert scaled["w"].tolist() == [1.0 + 0.5 * 3.5, 1.0 + 0.5 * 3.0, 1.0, 1.0 - 0.5 * 3.0]


def test_ties_elects_plus_where_the_signed_masses_cancel() -> None:
    merged = methods.ties(vector(0.0), [vector(2.0), vector(-2.0)], [1.0, 1.0], density=1.0)
    assert merged["w"].tolist() == [2.0]


def test_trim_keeps_exactly_the_share_and_the_first_of_equal_magnitudes() -> None:
    base = vector(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    model = vector(1.0, -1.0, 3.0, 1.0, -1.0, 1.0)
    merged = methods.ties(base, [model], [1.0], density=0.5)
    assert merged["w"].tolist() == [1.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    assert methods.ties(base, [model], [1.0], density=0.01)["w"].tolist() == [0.0, 0.0, 3.0, 0.0, 0.0, 0.0]


def test_trimming_the_model_ranks_all_tensors_together() -> None:
    base = {"large": torch.zeros(4), "small": torch.zeros(4)}
    model = {"large": torch.tensor([9.0, 8.0, -7.0, 6.0]), "small": torch.tensor([0.4, 0.3, -0.2, 0.1])}
    by_tensor = methods.ties(base, [model], [1.0], density=0.5, trim="tensor")
    by_model = methods.ties(base, [model], [1.0], density=0.5, trim="model")
    assert by_tensor["large"].tolist() == [9.0, 8.0, 0.0, 0.0]
    assert by_tensor["small"].tolist() == pytest.approx([0.4, 0.3, 0.0, 0.0])
    assert by_model["large"].tolist() == [9.0, 8.0, -7.0, 6.0]
    assert by_model["small"].tolist() == [0.0, 0.0, 0.0, 0.0]


# --- float64 oracles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", ["tensor", "model"])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.77, 1.0])
def test_ties_equals_the_paper(trim: str, density: float) -> None:
    base, *models = random_models(3, 4, torch.float64)
    weights = [0.2, 1.0, 0.5]
    merged = methods.ties(base, models, weights, density, 0.8, trim)
    groups = [["weight"], ["bias"], ["gain"]] if trim == "tensor" else [["bias", "gain", "weight"]]
    for names in groups:
        flat = [np.concatenate([m[n].reshape(-1).numpy() for n in names]) for m in (base, *models)]
        expected = reference.ties(flat[0], flat[1:], weights, density, 0.8)
        found = np.concatenate([merged[n].reshape(-1).numpy() for n in names])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)  # a few float64 roundings of values < 10


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_slerp_equals_the_reference(t: float) -> None:
    a, b = random_models(4, 2, torch.float64)
    merged = methods.slerp(a, b, t)
    for name in ("weight", "bias"):
        expected = reference.slerp(a[name].reshape(-1).numpy(), b[name].reshape(-1).numpy(), t)
        np.testing.assert_allclose(merged[name].reshape(-1).numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("elect", ["linear", "ties"])
@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.9])
def test_dare_equals_the_formula_under_the_same_masks(elect: str, drop_rate: float) -> None:
    base, *models = random_models(5, 4, torch.float64)
    weights = [0.5, 0.1, 0.9]
    merged = methods.dare(base, models, weights, drop_rate, torch.Generator().manual_seed(8), elect)
    replay = torch.Generator().manual_seed(8)
    names = ("bias", "gain", "weight")
    masks = [{n: (torch.rand(base[n].shape, generator=replay) >= drop_rate).double() for n in names} for _ in models]
    oracle = reference.dare_linear if elect == "linear" else reference.dare_ties
    for name in names:
        flat = [m[name].reshape(-1).numpy() for m in (base, *models)]
        kept = [mask[name].reshape(-1).numpy() for mask in masks]
        expected = oracle(flat[0], flat[1:], weights, kept, drop_rate)
        np.testing.assert_allclose(merged[name].reshape(-1).numpy(), expected, rtol=0, atol=1e-13)


def test_dare_is_unbiased_within_three_sigma() -> None:
    drop_rate, repeats, weights = 0.7, 3000, (0.25, 0.75)
    base = {"w": torch.zeros(5, dtype=torch.float64)}
    models = [{"w": torch.tensor(x, dtype=torch.float64)} for x in ([1, -2, 3, 0.5, 4], [2, 1, -1, 0.25, -4])]
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([methods.dare(base, models, weights, drop_rate, generator)["w"] for _ in range(repeats)])
    expected = sum(w * m["w"] for w, m in zip(weights, models, strict=True))
    # Var[m tau / (1 - p)] = tau^2 p / (1 - p) for each model; independent, so weighted variances add.
    variance = sum((w * m["w"]) ** 2 for w, m in zip(weights, models, strict=True)) * drop_rate / (1 - drop_rate)
    deviations = (draws.mean(0) - expected) / (variance / repeats).sqrt()
    assert float(deviations.abs().max()) < 3.0
    assert float((draws.var(0) / variance - 1).abs().max()) < 0.1  # kurtosis of these sums keeps 3 sigma below .1


# --- mergekit -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mergekit_merge() -> Callable[..., dict[str, torch.Tensor]]:
    from mergekit.merge_methods import merge_state_dicts

    return merge_state_dicts


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_ties_equals_mergekit_exactly(mergekit_merge: Callable[..., dict], density: float, scale: float) -> None:
    base, *models = random_models(6, 4)
    weights = [0.3, 1.0, 0.7]
    parameters = {"weight": dict(enumerate(weights, start=1)), "density": density, "lambda": scale}
    expected = mergekit_merge(dict(enumerate([base, *models])), "ties", base=0, parameters=parameters)
    assert largest_difference(methods.ties(base, models, weights, density, scale), expected) == 0.0


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_equals_mergekit(mergekit_merge: Callable[..., dict], t: float) -> None:
    a, b = random_models(7, 2)
    expected = mergekit_merge({"a": a, "b": b}, "slerp", base="a", parameters={"t": t})
    assert largest_difference(methods.slerp(a, b, t), expected) < 1e-6


def test_linear_equals_mergekit(mergekit_merge: Callable[..., dict]) -> None:
    models = random_models(9, 4)
    weights = [0.1, 0.9, 0.5, 0.3]
    expected = mergekit_merge(models, "linear", parameters={"weight": weights})
    assert largest_difference(methods.linear(models, weights), expected) < 1e-6


# --- invariants ---------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32)
shares = st.floats(0.0, 1.0)
positive = st.floats(0.01, 100.0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, t=shares, weights=st.lists(positive, min_size=2, max_size=4))
def test_merging_equal_models_returns_them_bit_for_bit(seed: int, t: float, weights: list[float]) -> None:
    base, a = random_models(seed, 2)
    copies = [a] * len(weights)
    assert largest_difference(methods.linear(copies, weights), a) == 0.0
    assert largest_difference(methods.slerp(a, a, t), a) == 0.0
    assert largest_difference(methods.ties(a, copies, weights, 0.5), a) == 0.0
    assert largest_difference(methods.dare(a, copies, weights, 0.5, torch.Generator()), a) == 0.0
    # From another base the task vector is rounded twice (W - W_0, then + W_0), with |values| < 8: ulp 4.8e-7,
    # and the weighted mean of equal vectors once or twice more.
    assert largest_difference(methods.ties(base, copies, weights, 1.0), a) < 4e-6
    assert largest_difference(methods.dare(base, copies, weights, 0.0, torch.Generator(), "ties"), a) < 4e-6


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_end_points_return_an_input_bit_for_bit(seed: int) -> None:
    a, b = random_models(seed, 2)
    assert largest_difference(methods.slerp(a, b, 0.0), a) == 0.0
    assert largest_difference(methods.slerp(a, b, 1.0), b) == 0.0
    assert largest_difference(methods.linear([a, b], [0.0, 2.0]), b) == 0.0


@settings(max_examples=25, deadline=None)
@given(seed=seeds, t=shares)
def test_slerp_of_equal_lengths_keeps_the_length_and_turns_by_t_theta(seed: int, t: float) -> None:
    a, b = ({"w": m["weight"] / m["weight"].norm()} for m in random_models(seed, 2, torch.float64))
    merged = methods.slerp(a, b, t)["w"]
    theta = math.acos(float((a["w"] * b["w"]).sum()))
    assert float(merged.norm()) == pytest.approx(1.0, abs=1e-12)
    # The chord to `a` is 2 sin(t theta / 2).
    assert float((merged - a["w"]).norm()) == pytest.approx(2 * math.sin(t * theta / 2), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, density=st.floats(0.01, 1.0), trim=st.sampled_from(["tensor", "model"]))
def test_ties_keeps_exactly_the_density_and_entries_of_the_task_vector(seed: int, density: float, trim: str) -> None:
    base = {name: torch.zeros_like(x) for name, x in random_models(seed, 1)[0].items() if name != "mask"}
    model = {name: x for name, x in random_models(seed, 1)[0].items() if name != "mask"}
    merged = methods.ties(base, [model], [2.0], density, trim=trim)
    sizes = [x.numel() for x in model.values()]
    groups = sizes if trim == "tensor" else [sum(sizes)]
    assert sum(int((x != 0).sum()) for x in merged.values()) == sum(max(1, int(density * n)) for n in groups)
    for name, x in merged.items():
        kept = x != 0
        # w tau / w rounds twice
        torch.testing.assert_close(x[kept], model[name][kept], rtol=2.4e-7, atol=0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, factor=st.sampled_from([0.25, 2.0, 8.0]))
def test_only_the_ratio_of_the_weights_counts(seed: int, factor: float) -> None:
    base, *models = random_models(seed, 4)
    weights = [0.2, 0.5, 1.0]
    scaled = [factor * w for w in weights]
    assert largest_difference(methods.linear(models, weights), methods.linear(models, scaled)) == 0.0
    assert largest_difference(methods.ties(base, models, weights, 0.4), methods.ties(base, models, scaled, 0.4)) == 0.0


@pytest.mark.parametrize("method", ALL_METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inputs_stay_untouched_and_nothing_is_shared(method: str, dtype: torch.dtype) -> None:
    models = [{n: x.to(dtype) if n != "mask" else x for n, x in m.items()} for m in random_models(11, 3)]
    before = [{name: x.clone() for name, x in model.items()} for model in models]
    merged = ALL_METHODS[method](models[0], models[1:])
    assert [x.dtype for x in merged.values()] == [dtype, dtype, dtype, torch.bool]
    for tensor in merged.values():
        tensor.fill_(1)
    assert all(largest_difference(a, b) == 0.0 for a, b in zip(models, before, strict=True))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_the_order_of_the_tensors_does_not_matter_and_blocks_leave_no_seam(method: str) -> None:
    generator = torch.Generator().manual_seed(12)
    models = [{n: torch.randn(70_000, generator=generator) for n in ("b", "a")} for _ in range(3)]
    merged = ALL_METHODS[method](models[0], models[1:])
    assert list(merged) == ["b", "a"]
    reordered = [{n: m[n] for n in ("a", "b")} for m in models]
    swapped = ALL_METHODS[method](reordered[0], reordered[1:])
    assert all(torch.equal(merged[n], swapped[n]) for n in ("a", "b"))
    assert all(int((merged[n] != 0).sum()) == 70_000 for n in ("a", "b"))


def test_blocks_do_not_change_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    base, *models = random_models(13, 3)
    whole = {name: merge(base, models) for name, merge in ALL_METHODS.items()}
    monkeypatch.setattr(methods, "_BLOCK", 7)
    for name, merge in ALL_METHODS.items():
        # slerp's cosine is summed in another order: one float32 rounding of values below 8
        assert largest_difference(merge(base, models), whole[name]) <= (4.8e-7 if name == "slerp" else 0.0)


# --- refusals -----------------------------------------------------------------------------------------------


def test_models_of_different_structure_are_refused() -> None:
    a = vector(1.0, 2.0)
    with pytest.raises(ValueError, match="'v' is in only one of models 0 and 1"):
        methods.linear([a, {"v": torch.ones(2)}], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"'w' is \(2,\) torch.float32 in model 0 and \(3,\)"):
        methods.slerp(a, vector(1.0, 2.0, 3.0), 0.5)
    with pytest.raises(ValueError, match=r"shape and dtype: 'w'.*torch.float64"):
        methods.ties(a, [{"w": a["w"].double()}], [1.0], 0.5)
    with pytest.raises(ValueError, match=r"'n' .*must be equal in all"):
        methods.linear([{"n": torch.tensor(1)}, {"n": torch.tensor(2)}], [1.0, 1.0])
    with pytest.raises(ValueError, match="at least one model"):
        methods.task_vectors({}, [])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.1], [0.0, 0.0], [1.0, math.nan], [math.inf, 1.0]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    models = [vector(1.0), vector(2.0)]
    for merge in (
        lambda: methods.linear(models, weights),
        lambda: methods.ties(models[0], models, weights, 0.5),
        lambda: methods.dare(models[0], models, weights, 0.5, torch.Generator()),
    ):
        with pytest.raises(ValueError, match="weight"):
            merge()


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_shares_outside_their_range_are_refused(value: float) -> None:
    a, b = vector(1.0), vector(2.0)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        methods.slerp(a, b, value)
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\]"):
        methods.ties(a, [b], [1.0], value)
    with pytest.raises(ValueError, match=r"drop_rate must lie in \[0, 1\)"):
        methods.dare(a, [b], [1.0], value, torch.Generator())


def test_range_ends_that_make_no_sense_and_unknown_choices_are_refused() -> None:
    a, b = vector(1.0), vector(2.0)
    with pytest.raises(ValueError, match="density"):
        methods.ties(a, [b], [1.0], 0.0)
    with pytest.raises(ValueError, match="drop_rate"):
        methods.dare(a, [b], [1.0], 1.0, torch.Generator())
    with pytest.raises(ValueError, match="trim"):
        methods.ties(a, [b], [1.0], 0.5, trim="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="elect"):
        methods.dare(a, [b], [1.0], 0.5, torch.Generator(), elect="mass")  # type: ignore[arg-type]
