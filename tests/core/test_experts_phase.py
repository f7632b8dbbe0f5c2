"""Phase 7 as a whole on a small ternary model: what is stored, what is refused, a kill in every part, bad input."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forge_assets.gates import gates_for
from tests.core.declared import assert_declared
from tests.core.small_cycles import parent
from tests.core.small_experts import bank, fixed_time, keep, made, told
from tests.killed import killed_at_each
from training_core.data.batches import TrainingData
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.held_out import open_suite
from training_core.evaluation.language_modeling import measure_windows
from training_core.formats.loading import load_latents, load_model
from training_core.formats.ternary_packing import round_to_half_
from training_core.nn.svf import SVFModel
from training_core.nn.ternary import inference_copy
from training_core.phases.p7_experts import evaluator, phase
from training_core.phases.p7_experts.bundles import at_point, load_experts, probed_tokens
from training_core.phases.p7_experts.exhibit import ExpertsExhibit
from training_core.phases.p7_experts.genome import Composition, Space
from training_core.phases.p7_experts.measurement import measure_text
from training_core.phases.p7_experts.reproduction_check import measure_expert_bundle, reproduction_error
from training_core.reporting import SilentReporter
from training_core.store.bundle import Bundle, BundleError, Product, write_bundle
from training_core.svf.expert_accuracy import (
    PerExpertAccuracy,
    accuracy,
    family_drops,
    family_weights,
    gain,
    of_each_family,
)
from training_core.svf.routing import NONE, ClassifierRouter


@pytest.fixture(scope="module")
def product(small_data: dict[str, Path]) -> Product:
    """Made undisturbed; how long a structure takes does not depend on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator.Evaluator, "_seconds", fixed_time)
        return made(small_data, SilentReporter(), None)


@pytest.fixture(scope="module")
def bundle(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(
        tmp_path_factory.mktemp("experts") / "bundle", kind=product.kind, model_config=product.model_config,
        tensors=product.tensors, tokenizer_json=product.tokenizer_json, payload=product.payload,
    )  # fmt: skip


def test_every_gate_and_claim_has_its_number(product: Product) -> None:
    metrics = product.metrics
    assert_declared("expert_model", product)
    assert all(math.isfinite(value) for value in metrics.values())
    elsewhere = {
        "non_finite_weights", "causality_violations", "margin_below_counting_low",
        "bits_per_byte_ratio_to_best_parent_high", "sandbox_breaches",
        "expert_reproduction_error",
    }  # fmt: skip
    for gate in gates_for("expert_model", "nano"):
        assert gate.metric in metrics or gate.metric in elsewhere, gate.metric
    shown = ExpertsExhibit.model_validate(product.exhibits["experts"])
    assert metrics["num_experts"] == len(shown.experts) == 3
    assert metrics["expert_bytes"] == shown.experts[0].bytes == metrics["expert_parameters"] + 2 * 6
    assert metrics["routed_over_single"] == pytest.approx(metrics["accuracy_composed"] - metrics["accuracy_single"])
    assert metrics["hypervolume_over_random_low"] == min(
        climb.search[-1] - climb.random[-1] for climb in shown.search.climbs
    )
    assert [climb.evaluations for climb in shown.search.climbs] == [[6, 12, 18]] * 2
    assert shown.search.evaluations == 2 * 2 * 18
    assert sum(point.chosen for point in shown.search.front) == 1


def test_the_model_itself_stays_as_it_is(product: Product, bundle: Bundle) -> None:
    """Latents and packed weights are the parent's; what stands beside them is not read as a model."""
    before = parent()
    round_to_half_(before)
    assert all(
        torch.equal(tensor, load_latents(bundle).state_dict()[name]) for name, tensor in before.state_dict().items()
    )
    tokens = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(inference_copy(before)(tokens).logits, load_model(bundle)(tokens).logits)


def test_experts_come_back_from_the_bundle(bundle: Bundle, small_data: dict[str, Path], tmp_path: Path) -> None:
    """Logits of each expert as they were; other codes, or another decomposition, are noticed."""
    assert reproduction_error(bundle) < 1e-5
    tokens, logits = probed_tokens(bundle)
    assert logits.shape == (3, len(tokens), 320)
    assert (logits[0] - logits[1]).abs().max() > 1e-4, "experts differ"
    tensors = bundle.tensors()
    tensors["experts.1.codes.core.0.mlp.up"] = -tensors["experts.1.codes.core.0.mlp.up"]
    changed = write_bundle(
        tmp_path / "changed", kind=bundle.kind, model_config=bundle.model_config, tensors=tensors,
        tokenizer_json=bundle.tokenizer_json(), payload=bundle.payload().read_bytes(),
    )  # fmt: skip
    assert reproduction_error(changed) > 1e-4
    measured = measure_expert_bundle(bundle, small_data["evaluation_suite"], {}, SilentReporter())
    assert measured.metrics["expert_reproduction_error"] < 1e-5
    assert measured.metrics["bits_per_byte"] > 0


def test_a_prompt_is_answered_in_two_passes_and_at_any_point_of_the_front(product: Product, bundle: Bundle) -> None:
    experts, tokenizer = load_experts(bundle), load_tokenizer(bundle.tokenizer_json())
    prompt = tokenizer.encode("Question: Repeat a\nAnswer:").ids
    plain = load_model(bundle)
    tokens = torch.tensor([[0, *prompt]])
    shown = product.exhibits["experts"]
    for point in shown["search"]["front"]:
        there = at_point(experts, shown, point["number"])
        composition = Composition.from_document(point["composition"])
        with there.answering(prompt, tokenizer) as (model, weights), torch.no_grad():
            answered = model(tokens).logits
            recursion = {name: getattr(model.config, name) for name in composition.recursion()}
        assert recursion == composition.recursion()
        assert list(weights) == [expert["name"] for expert in shown["experts"]]
        same = torch.equal(answered, plain(tokens).logits)
        changed = any(weights.values()) or recursion != {name: getattr(plain.config, name) for name in recursion}
        assert same or changed
    with torch.no_grad():
        assert torch.equal(experts.svf.model(tokens).logits, plain(tokens).logits), "and it is as it was"
    with pytest.raises(ValueError, match=r"the front has the points 0.*, not 99: choose one"):
        at_point(experts, shown, 99)


def test_what_makes_a_family_worse_is_not_used(small_data: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every family were worse beyond chance: the model answers without experts, and says why."""
    drops = phase.family_drops

    def worse(*given: object) -> object:
        return {family: replace(drop, low=0.25) for family, drop in drops(*given).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(phase, "family_drops", worse)
    found = made(small_data, SilentReporter(), None)
    shown = found.exhibits["experts"]
    assert_declared("expert_model", found)
    assert found.metrics["handed_on"] == 1.0
    assert found.metrics["experts_in_use"] == 0.0
    assert shown["not_kept"].startswith("no composition is better and does no harm on validation questions")
    if "gains in accuracy" not in shown["not_kept"]:
        assert re.search(
            r"the family \w+ would fall by -?0\.\d+, and one family by 0\.2500 at least", shown["not_kept"]
        )
    assert found.metrics["composed_over_none"] == found.metrics["worst_family_drop_low"] == 0.0
    assert found.metrics["routed_bits_per_byte_ratio"] == 1.0
    ExpertsExhibit.model_validate(shown)


@pytest.mark.slow
def test_one_family_has_one_expert_and_two_have_two(small_data: dict[str, Path]) -> None:
    for families in (("copying",), ("copying", "lists")):
        found = made(small_data, SilentReporter(), None, bank(families))
        assert_declared("expert_model", found)
        shown = found.exhibits["experts"]
        assert [expert["families"] for expert in shown["experts"]] == [[family] for family in families]
        assert "there was no choice" in shown["discovery"]["note"]
        assert shown["routing"]["labels"] == [NONE, *families]


@pytest.mark.slow
def test_killed_in_every_part_and_resumed_ends_the_same(
    product: Product, small_data: dict[str, Path], tmp_path: Path
) -> None:
    """Times are set to what a structure asks for; all else, the choice of a composition included, is measured."""

    kills = [
        "expert 1 reward 1",
        "expert 2 supervised 2",
        "expert 2 low rank 2",
        "search 1 of 4 12",
        "search 4 of 4 15",
    ]
    *_, last = killed_at_each(keep, tmp_path, kills, data=small_data)
    assert not [line for line in last.told if line.startswith(("expert", "search 1", "search 2", "search 3"))]
    first, second = dict(product.tensors or {}), load_file(tmp_path / "tensors")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert told(product) == (tmp_path / "json").read_text()


def test_families_weigh_alike() -> None:
    """By hand: three questions of one family, one of another."""
    questions = [q for q in bank().train if q.family == "copying"][:3] + [
        q for q in bank().train if q.family == "lists"
    ][:1]
    assert family_weights(questions).tolist() == pytest.approx([1 / 6] * 3 + [1 / 2])
    expected, other = torch.tensor([1.0, 0.5, 0.0, 0.2]).double(), torch.tensor([0.0, 0.5, 0.0, 0.4]).double()
    assert accuracy(expected, questions).value == pytest.approx((0.5 + 0.2) / 2)
    assert gain(expected, other, questions).value == pytest.approx((1 / 3 - 0.2) / 2)
    drops = family_drops(other, expected, questions)
    assert drops["copying"].value == pytest.approx(-1 / 3)
    assert drops["lists"].value == pytest.approx(0.2)
    assert drops["copying"].low == pytest.approx(-1.0), (
        "all three draws of the question that rose: 1 in 27, above .0125"
    )
    assert drops["copying"].high == 0.0
    alone = PerExpertAccuracy(
        tuple(questions), torch.stack([other, expected, torch.tensor([0.9, 0.0, 0.0, 0.6]).double()])
    )
    assert alone.best_single() == 2, "(.3 + .6) / 2 against (.5 + .2) / 2"
    assert alone.by_oracle({"copying": 1}).tolist() == pytest.approx([1.0, 0.5, 0.0, 0.4])
    assert alone.by_family() == (
        ["copying", "lists"],
        [pytest.approx([0.5 / 3, 0.4]), pytest.approx([0.5, 0.2]), pytest.approx([0.3, 0.6])],
    )
    chosen = of_each_family(bank().train, 2)
    counted = {family: sum(q.family == family for q in chosen) for family in {q.family for q in chosen}}
    assert set(counted.values()) <= {1, 2}


def test_text_without_experts_costs_nothing_and_is_what_the_suite_measures(small_data: dict[str, Path]) -> None:
    """Routed by no token: bits per byte are `measure_windows`', and a composition without experts has a ratio of 1."""
    suite = open_suite(small_data["evaluation_suite"])
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    scalable = SVFModel(parent())
    tokenizer = load_tokenizer(data.tokenizer_json)
    questions = bank().train
    router = ClassifierRouter.fit(
        scalable.model, tokenizer, questions, {questions[0].family: 1}, suite.validation.inputs[:4, :8].tolist()
    )
    none = Space.of(scalable.model.config, 1).unadapted
    ratio, before, after = measure_text(scalable, [], none, router, suite.test, 8, 4)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert before == after
    whole = measure_windows(scalable.model, suite.test, 4).bits_per_byte()
    assert before == pytest.approx(whole, rel=0.05), "all but the first eight tokens of each window"


def test_bad_input_says_what_to_change(bundle: Bundle, small_data: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lower questions\.routed_tokens, or raise search\.window_tokens"):
        made(small_data, SilentReporter(), None, routed_tokens=32)
    with pytest.raises(ValueError, match=r"raise search\.questions, or set search\.racing_share to 1"):
        made(small_data, SilentReporter(), None, search_questions=4)
    with pytest.raises(ValueError, match=r"raise search\.population"):
        made(small_data, SilentReporter(), None, search_population=4)
    with pytest.raises(BundleError, match="has no experts: an expert_model has"):
        load_experts(replace(bundle, model_config={k: v for k, v in bundle.model_config.items() if k != "experts"}))
    document = bundle.model_config["experts"]
    with pytest.raises(BundleError, match="are damaged"):
        load_experts(replace(bundle, model_config={**bundle.model_config, "experts": {**document, "names": ["a"] * 9}}))
