"""Phase 6 as a whole on a small ternary model: what is kept, what is rolled back, a kill in every part, bad input."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forge_assets.gates import gates_for
from tests.core.declared import assert_declared
from tests.core.small_cycles import keep, made, parent
from tests.killed import killed_at_each
from training_core.evaluation.harm import BAKES, HarmLimits
from training_core.formats.loading import load_latents, load_model
from training_core.formats.ternary_packing import round_to_half_
from training_core.gates import judge
from training_core.nn.ternary import inference_copy
from training_core.phases.p6_baking import context as material
from training_core.phases.p6_baking import phase
from training_core.phases.p6_baking.context import harmful
from training_core.phases.p6_baking.exhibit import BakedExhibit
from training_core.record import Estimate
from training_core.reporting import SilentReporter
from training_core.store.bundle import Product, write_bundle


@pytest.fixture(scope="module")
def product(small_data: dict[str, Path]) -> Product:
    """Made undisturbed."""
    return made(small_data, SilentReporter(), None)


@pytest.mark.slow
def test_killed_in_every_part_and_resumed_ends_bit_for_bit_the_same(
    product: Product, small_data: dict[str, Path], tmp_path: Path
) -> None:
    kills = ["lesson 0 1", "trajectories 0 1", "baking 1 2", "judged 1 1", "stacking 0", "families 0"]
    broken = killed_at_each(keep, tmp_path, kills, data=small_data)
    # what was finished is not done again: after the kill in the second iteration's bake, nothing of the first is
    again = ("lesson 0", "trajectories", "proposals", "baking 0")
    assert not [line for line in broken[3].told if line.startswith(again)]
    assert not [line for line in broken[-1].told if line.startswith(("judged", "effects", "repairs", "persona"))]
    first, second = dict(product.tensors or {}), load_file(tmp_path / "tensors")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (tmp_path / "json").read_text() == json.dumps([product.metrics, product.exhibits])
    assert (tmp_path / "ternary").read_bytes() == product.payload


def test_what_does_no_harm_is_kept_and_every_gate_has_its_number(product: Product, tmp_path: Path) -> None:
    metrics, shown = product.metrics, product.exhibits["baked"]
    assert [(step["cycle"], step["kept"], step["decision"]) for step in shown["timeline"]] == [
        ("tools", True, "switch"),
        ("persona", True, "stop"),
    ]
    assert_declared("baked_model", product)
    assert metrics["handed_on"] == 0
    assert metrics["prompts_kept"] == metrics["iterations_kept"] == 2
    assert all(math.isfinite(value) for value in metrics.values())
    measured_by_the_suite = {
        "non_finite_weights",
        "causality_violations",
        "margin_below_counting_low",
        "bits_per_byte_ratio_to_best_parent_high",
    }
    for gate in gates_for("baked_model", "nano"):
        assert gate.metric in metrics or gate.metric in measured_by_the_suite | {"sandbox_breaches"}, gate.metric
    lows = [prompt["strength"]["low"] for prompt in shown["prompts"]]
    assert metrics["weakest_effect_low"] == min(lows)
    assert metrics["faint_prompts"] == sum(low < 0.25 for low in lows)
    assert metrics["prompted_over_baked_high"] == max(
        metrics["repairs_prompted_over_baked_high"], metrics["answers_prompted_over_baked_high"]
    )
    BakedExhibit.model_validate(shown)
    assert shown["not_kept"] == ""
    assert [text["prompt"] for text in shown["generations"]].count("Fix.\n") == 3, "as many as are measured"
    assert len(shown["generations"]) == 7
    assert [(row["times"], row["expected"]) for row in shown["stacking"]] == [(1, 0.5)]
    bundle = write_bundle(
        tmp_path / "bundle", kind=product.kind, model_config=product.model_config, tensors=product.tensors,
        tokenizer_json=product.tokenizer_json, payload=product.payload,
    )  # fmt: skip
    latents, packed = load_latents(bundle), load_model(bundle)
    tokens = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(inference_copy(latents)(tokens).logits, packed(tokens).logits)
    before = parent().state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in latents.state_dict().items())


def test_a_turn_bakes_one_teacher_further_and_stacking_is_measured_on_it(small_data: dict[str, Path]) -> None:
    reporter = _Heard()
    product = made(small_data, reporter, None, max_iterations=3, max_turn=2, strength_last=0.9,
                   strength_schedule="linear", seed=3)  # fmt: skip
    metrics, shown = product.metrics, product.exhibits["baked"]
    first, second, third = shown["timeline"]
    assert [(step["cycle"], step["kept"], step["target"]) for step in (first, second)] == [
        ("tools", True, 0.5), ("tools", True, 0.7)
    ]  # fmt: skip
    assert (third["cycle"], third["target"]) == ("persona", 0.5)
    assert {"lesson 0", "baking 0", "baking 1", "baking 2"} <= reporter.labels
    assert "lesson 1" not in reporter.labels, "the second bake has the first one's teacher"
    assert [(row["times"], row["expected"]) for row in shown["stacking"]] == [(1, 0.5), (2, pytest.approx(0.85))]
    assert [metrics["stacked_1_expected"], metrics["stacked_2_expected"]] == pytest.approx([0.5, 0.85])
    assert [prompt["cycle"] for prompt in shown["prompts"]].count("tools") == 1, "of each cycle the last"
    assert shown["prompts"][0]["target"] == pytest.approx(0.85)
    assert metrics["prompts_kept"] == len(shown["prompts"])
    BakedExhibit.model_validate(shown)


class _Heard(SilentReporter):
    """Remembers what was under way."""

    def __init__(self) -> None:
        self.labels: set[str] = set()

    def progress(self, done: int, total: int, label: str) -> None:
        self.labels.add(label)


def test_what_harms_is_rolled_back_and_the_parent_handed_on(
    small_data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit that nothing keeps: bits per byte a tenth lower than the parent's."""
    monkeypatch.setattr(material, "BAKES", HarmLimits(text_ratio=0.9, accuracy_drop=0.03))
    product = made(small_data, SilentReporter(), None)
    metrics, shown = product.metrics, product.exhibits["baked"]
    assert [step["kept"] for step in shown["timeline"]] == [False, False]
    assert all("bits per byte on validation text" in step["why"] for step in shown["timeline"])
    assert "No prompt was kept" in shown["not_kept"]
    assert shown["timeline"][0]["why"] in shown["not_kept"]
    assert_declared("baked_model", product)
    assert metrics["handed_on"] == 1
    assert metrics["weakest_effect_low"] == metrics["prompts_kept"] == 0
    verdicts = {gate.name: judge(gate, metrics) for gate in gates_for("baked_model", "nano")}
    assert verdicts["effect_present"].passed, "the parent, unchanged, is no reason to stop the chain"
    assert not verdicts["keeps_a_prompt"].passed, "and no success either"
    assert metrics["worst_family_drop_high"] == 0.0
    assert "prompted_over_baked_high" not in metrics, "nothing was baked: the claim is not measured, and stands in red"
    BakedExhibit.model_validate(shown)
    expected = copy.deepcopy(parent())
    round_to_half_(expected)
    stored = product.tensors or {}
    assert all(torch.equal(value, stored[name]) for name, value in expected.state_dict().items())


def test_a_cycle_that_has_nothing_to_bake_has_plateaued_at_its_first_step(small_data: dict[str, Path]) -> None:
    """One token is no proposal; tools then run alone."""
    product = made(
        small_data, SilentReporter(), None, proposal_tokens=1, max_iterations=3, **{"alternation.first": "persona"}
    )
    timeline = product.exhibits["baked"]["timeline"]
    assert [(step["cycle"], step["prompt"] == "") for step in timeline][:2] == [("persona", True), ("tools", False)]
    assert timeline[0]["why"] == "the model proposed no prompt that says anything"
    assert timeline[0]["decision"] == "switch"
    assert timeline[0]["score"] == product.exhibits["baked"]["baselines"]["persona"]
    assert product.exhibits["baked"]["turns"] == []
    BakedExhibit.model_validate(product.exhibits["baked"])


def test_the_limits_of_harm() -> None:
    assert harmful({"text_ratio": BAKES.text_ratio, "family": "lists", "family_drop": BAKES.accuracy_drop}) == ""
    assert "1.0101 of the parent's" in harmful({"text_ratio": 1.0101, "family": "lists", "family_drop": 0.0})
    assert "family lists fell by up to 0.011" in harmful(
        {"text_ratio": 1.0, "family": "lists", "family_drop": BAKES.accuracy_drop + 0.001}
    )


def test_worse_only_where_the_intervals_do_not_touch() -> None:
    before = Estimate(0.5, 0.45, 0.55)
    assert phase._worse(Estimate(0.4, 0.35, 0.45), before) == ""
    assert "fell from 0.500 to 0.400" in phase._worse(Estimate(0.4, 0.36, 0.44), before)
    assert phase._worse(Estimate(0.9, 0.8, 1.0), before) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tool_prompt": "long " * 80}, "of tool_prompt.*exceed max_seq_len = 320"),
        ({"tool_prompt": "  "}, "tool_prompt is empty"),
        ({"turns": 200}, "200 turns of line_tokens and reply_tokens exceed max_seq_len = 320"),
        ({"persona_tokens": 300}, "a reply of persona_tokens exceed max_seq_len = 320"),
        ({"style_tokens": 320}, "given_tokens and style_tokens exceed max_seq_len = 320"),
        ({"proposal_tokens": 310}, "a question with its answer exceed max_seq_len = 320"),
        ({"given_tokens": 70, "style_tokens": 1}, "given_tokens = 70 are taken from held-out windows of 64"),
        ({"measured_repairs": 10**6}, "test has"),
        ({"shown_repairs": 10**6}, "train has"),
        ({"held_out_trajectories": 10**6}, "validation has"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    small_data: dict[str, Path], tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        made(small_data, SilentReporter(), tmp_path, **changes)
    assert not list(tmp_path.glob("lesson*"))
