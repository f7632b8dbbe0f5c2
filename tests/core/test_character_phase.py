"""Rules, preferences and the whole phase on a small ternary model: oracles, harm, a kill in every stage, the bundle."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from forge_resources.sandbox import open_sandbox
from tests.core.declared import assert_declared
from tests.core.small_data import SHAPE
from tests.core.test_character_council import question
from tests.killed import killed_at_each
from tests.nested import nested
from training_core.data.batches import TrainingData
from training_core.data.tokenizer import load_tokenizer
from training_core.distill.prompt_baking import measure_baking
from training_core.distill.rehearsal_data import staying_rows
from training_core.evaluation.harm import RULES as RULES_HARM
from training_core.formats.loading import load_latents, load_model
from training_core.formats.ternary_packing import round_to_half_
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.ternary import inference_copy, ternary_modules
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phases.p5_curriculum import curriculum_model as phase
from training_core.phases.p5_curriculum.config import CharacterConfig
from training_core.phases.p5_curriculum.curriculum_model import make_character
from training_core.phases.p5_curriculum.eudaimonia import flipped_codes, rule_prompt, sample_rule
from training_core.phases.p5_curriculum.exhibit import CharacterExhibit
from training_core.phases.p5_curriculum.preferences import log_likelihoods, margins, preference, preference_gain
from training_core.phases.p5_curriculum.scenarios import RULES, ScenarioPair, scenario_pairs
from training_core.phases.p5_curriculum.self_model import load_self_model
from training_core.reporting import Reporter, SilentReporter
from training_core.store.bundle import Product, write_bundle
from training_core.store.checkpoint import DamagedCheckpointError
from training_core.store.result_cache import ResultCache
from training_core.tasks.questions.bank import QuestionBank
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.measurement import spread
from training_core.tasks.questions.question import LEVELS, Question

SMALL = SHAPE | {"max_seq_len": 128, "num_layers": 2, "num_core_layers": 1, "memory_layers": []}
TINY = {
    "situations_per_rule": 4, "held_out_situations": 2, "rules_max_tokens": 4, "fillings_per_template": 2,
    "answer_tokens": 3, "ooda_budget_tokens": 60, "council_questions": 4, "ooda_practice_questions": 4,
    "ooda_questions": 4, "questions_per_level": 14,  # 140 equal answers exclude a fall of 3 %
    "self_model_samples": 20, "self_model_held_out": 20,
    "self_model_tokens": 4, "self_model_steps": 3,
    "steps": 2, "batch_size": 2, "seq_len": 32, "checkpoint_interval_s": 0.0, "muon_lr": 1e-4, "adamw_lr": 1e-4,
}  # fmt: skip
STAGES = ["virtues", "validation", "self_model", "preferences", "council", "ooda", "temperature", "levels"]


def parent() -> Cognate:
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=320, **SMALL))  # type: ignore[arg-type]
    make_ternary(model, TernarySettings())
    return model.eval()


def short_questions(each: int) -> list[Question]:
    """Some of every level, no longer than a small model reads in no time."""
    return [question(f"{level}{n}?", str(n), level) for level in LEVELS for n in range(each)]


def bank() -> QuestionBank:
    questions = short_questions(48)
    parts = [[q for n, q in enumerate(questions) if n % 3 == split] for split in range(3)]
    return QuestionBank(*parts, spent_usd=0.0, note="")


def made(folders: dict[str, Path], reporter: Reporter, checkpoint: Path | None, **changes: object) -> Product:
    with open_sandbox("embedded") as sandbox:
        context = QuestionContext(
            folders=folders, bank=bank(), sandbox=sandbox, reporter=reporter, checkpoint=checkpoint
        )
        config = nested(CharacterConfig, **(TINY | changes))
        return make_character(parent(), TernarySettings(), context, config)


def keep(reporter: Reporter, folder: Path, data: dict[str, Path]) -> None:
    """Make the product with a checkpoint, and write what it is."""
    product = made(data, reporter, folder / "checkpoint")
    save_file(dict(product.tensors or {}), folder / "tensors")
    (folder / "json").write_text(json.dumps([product.metrics, product.exhibits]))
    (folder / "ternary").write_bytes(product.payload or b"")


@pytest.fixture(scope="module")
def product(small_data: dict[str, Path]) -> Product:
    """Made undisturbed."""
    return made(small_data, SilentReporter(), None)


def test_killed_in_every_stage_and_resumed_ends_bit_for_bit_the_same(
    product: Product, small_data: dict[str, Path], tmp_path: Path
) -> None:
    kills = ["baking empathy 2", "validation 0", "self_model 1", "council 0", "levels 0"]
    broken = killed_at_each(keep, tmp_path, kills, data=small_data)
    computed = [[line.rpartition(" ")[0] for line in run.told if line.endswith(" 0")] for run in broken]
    computed = [[stage for stage in run if stage in STAGES] for run in computed]
    # nothing that was finished is done again, and what was cut off is
    assert computed == [
        ["virtues"],
        ["virtues", "validation"],
        ["validation", "self_model"],
        ["preferences", "council"],
        ["council", "ooda", "temperature", "levels"],
        ["levels"],
    ]
    assert [line for line in broken[1].told if line.startswith("baking honesty")] == [], "its two steps were kept"
    first, second = dict(product.tensors or {}), load_file(tmp_path / "tensors")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert (tmp_path / "json").read_text() == json.dumps([product.metrics, product.exhibits])
    assert (tmp_path / "ternary").read_bytes() == product.payload


def test_rules_that_do_no_harm_are_kept_and_the_bundle_holds_all(product: Product, tmp_path: Path) -> None:
    metrics = product.metrics
    assert_declared("curriculum_model", product)
    assert metrics["handed_on"] == 0
    assert 0 < metrics["text_ratio_of_rules"] < RULES_HARM.text_ratio
    assert all(math.isfinite(value) for value in metrics.values())
    for name in (
        "preference_gain_low", "council_gain_over_self_consistency_low", "ooda_gain_over_direct_low",
        "temperature_over_chance_low", "level_accuracy_drop_high", "worst_passed_level_drop_high",
        "baking_strength_honesty", "flipped_codes",
    ):  # fmt: skip
        assert name in metrics
    CharacterExhibit.model_validate(product.exhibits["character"])
    assert product.exhibits["character"]["not_kept"] == ""
    assert [rule["name"] for rule in product.exhibits["character"]["rules"]] == [rule.name for rule in RULES]
    assert len(product.exhibits["character"]["pairs"]) == 12
    bundle = write_bundle(
        tmp_path / "bundle", kind=product.kind, model_config=product.model_config, tensors=product.tensors,
        tokenizer_json=product.tokenizer_json, payload=product.payload,
    )  # fmt: skip
    latents, packed = load_latents(bundle), load_model(bundle)
    tokens = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(inference_copy(latents)(tokens).logits, packed(tokens).logits)
    assert shown_margins(product, "baked_margin") == margins_of(packed, product), "what is stored is what was measured"
    head = load_self_model(bundle.tensors())
    assert head.edges.tolist() == product.exhibits["character"]["temperature"]["edges"]
    before = parent().state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in latents.state_dict().items())


def test_rules_that_harm_are_not_kept(small_data: dict[str, Path]) -> None:
    product = made(small_data, SilentReporter(), None, muon_lr=0.5, adamw_lr=0.5, warmup_fraction=0.0)
    metrics, shown = product.metrics, product.exhibits["character"]
    assert_declared("curriculum_model", product)
    assert metrics["handed_on"] == 1
    assert metrics["text_ratio_of_rules"] > RULES_HARM.text_ratio
    assert f"{metrics['text_ratio_of_rules']:.4f} of the parent's" in shown["not_kept"]
    assert not any(name.startswith(("baking_", "flipped")) for name in metrics), "of a model that is not stored"
    assert [metrics[f"preference_gain{end}"] for end in ("", "_low", "_high")] == [0.0] * 3
    assert metrics["level_accuracy_drop_high"] == metrics["worst_passed_level_drop_high"] == 0.0
    assert all(rule["kl_after"] == rule["kl_before"] and rule["strength"] == 0.0 for rule in shown["rules"])
    stored = round_to_half_copy(parent()).state_dict()
    assert product.tensors is not None
    assert all(torch.equal(product.tensors[name], value) for name, value in stored.items())
    measured = margins_of(inference_copy(round_to_half_copy(parent())), product)
    assert shown_margins(product, "base_margin") == shown_margins(product, "baked_margin") == measured


def shown_margins(product: Product, which: str) -> list[float]:
    return [pair[which] for pair in product.exhibits["character"]["pairs"]]


def margins_of(model: Cognate, product: Product) -> list[float]:
    """Margins of all pairs, as the phase takes them, but for those that are not shown."""
    config = nested(CharacterConfig, **TINY)
    each = config.rules.fillings_per_template
    pairs = [p for rule in RULES for p in scenario_pairs(rule.name, "held_out", each, config.training.seed)]
    found = margins(model, load_tokenizer(product.tokenizer_json), pairs)
    chosen = [n for rule in RULES for n in [i for i in range(0, len(pairs), each) if pairs[i].rule == rule.name][:3]]
    return [found[n] for n in chosen]


def test_drop_is_the_low_end_of_the_gain_turned_around() -> None:
    assert phase.with_drop({"level_accuracy_gain_low": -0.25})["level_accuracy_drop_high"] == 0.25


def round_to_half_copy(model: Cognate) -> Cognate:
    round_to_half_(model)
    return model


def test_too_few_held_out_questions_are_refused(small_data: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="held-out questions and 17 are to be measured"):
        made(small_data, Told(), None, questions_per_level=17)


class Told(SilentReporter):
    """Fails when anything is begun."""

    def progress(self, done: int, total: int, label: str) -> None:
        raise AssertionError(f"{label} was begun")


def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


def test_likelihoods_and_margins_equal_a_naive_loop(small_data: dict[str, Path]) -> None:
    model, words = parent(), tokenizer(small_data)
    rows = [([5, 9, 7], [11, 12]), ([], [13]), ([1] * 9, [2, 3, 4])]

    def naive(context: list[int], continuation: list[int]) -> float:
        total = 0.0
        for at, token in enumerate(continuation):
            with torch.no_grad():
                logits = model(torch.tensor([[0, *context, *continuation[:at]]])).logits[0, -1].double()
            total += float(logits[token] - logits.logsumexp(-1))
        return total

    assert log_likelihoods(model, rows).tolist() == [pytest.approx(naive(*row), rel=1e-5) for row in rows]
    pairs = scenario_pairs("honesty", "held_out", 1, seed=0)[:3]
    prompt = rule_prompt(RULES[0], words)
    for prompts in (None, [prompt] * 3):
        for found, pair in zip(margins(model, words, pairs, prompts), pairs, strict=True):
            context = [*(prompt if prompts else ()), *words.encode(pair.situation).ids]
            better, worse = (
                naive(context, words.encode(text).ids) / len(text.encode()) for text in (pair.better, pair.worse)
            )
            assert found == pytest.approx(better - worse, abs=1e-5)


def test_preferences_are_resampled_by_template() -> None:
    # two templates of three fillings: all of one right, none of the other; a tie counts half
    pairs = [ScenarioPair("honesty", f"t{n // 3}", "x", " a", " b") for n in range(6)]
    found = preference(pairs, [0.1, 0.2, 0.3, -0.1, -0.2, -0.3])
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0), "two templates are two pieces of evidence, not six"
    assert preference(pairs, [0.0] * 6).value == 0.5
    gain = preference_gain(pairs, [0.1] * 6, [-0.1, -0.1, -0.1, 0.1, 0.1, 0.1])
    assert (gain.value, gain.low, gain.high) == (0.5, 0.0, 1.0)


def test_rules_are_sampled_from_the_prompted_teacher(small_data: dict[str, Path]) -> None:
    model, words = inference_copy(parent()), tokenizer(small_data)
    config = nested(CharacterConfig, **TINY)
    drawn = sample_rule(model, words, RULES[1], config, 1)
    assert (len(drawn.teaching), len(drawn.held_out)) == (4, 2)
    assert drawn.prompt == tuple(words.encode("Consider the impact on others.\n").ids)
    assert drawn == sample_rule(model, words, RULES[1], config, 1)
    held = {t.prefix for t in drawn.held_out}
    assert not held & {t.prefix for t in drawn.teaching}
    # the unprompted model is measured as its own student: nothing is baked
    measure = measure_baking(model, copy.deepcopy(model), drawn.prompt, drawn.held_out)
    assert measure.strength == pytest.approx(0.0, abs=1e-6)


def test_flipped_codes_by_hand() -> None:
    before = parent()
    after = copy.deepcopy(before)
    assert flipped_codes(before, after) == 0.0
    (_, module), *_ = ternary_modules(after)
    total = sum(m.weight.numel() for _, m in ternary_modules(after))
    with torch.no_grad():
        module.weight[0] *= -1  # the scale stays, and every code of the row that is not 0 changes
    scale = module.weight.detach().abs().mean()
    changed = int((module.weight[0].detach().abs() > 0.5 * scale).sum())
    assert flipped_codes(before, after) == pytest.approx(changed / total)
    with pytest.raises(ValueError, match="no ternary weights"):
        flipped_codes(inference_copy(before), inference_copy(before))


def test_rows_that_must_stay_mix_text_and_questions(small_data: dict[str, Path]) -> None:
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    words = tokenizer(small_data)
    config = nested(CharacterConfig, **(TINY | {"batch_size": 8, "question_share": 0.5}))
    draw = staying_rows(
        data, ["Question: zzz?\nAnswer: zzz"] * 3, config.mix, config.training.seq_len, config.rules.question_share, 4
    )
    rows = draw(torch.Generator().manual_seed(0))
    assert rows.shape == (4, 33)
    assert ["zzz" in words.decode(row.tolist()) for row in rows] == [False, False, True, True]
    for row in rows[2:].tolist():
        assert row[0] == 0
        assert words.decode(row[1:]).startswith("Question: zzz?"), "asked at the beginning of a row"
    alone = staying_rows(data, [], config.mix, config.training.seq_len, 0.5, 4)(torch.Generator().manual_seed(0))
    assert alone.shape == (4, 33)


def test_questions_are_spread_over_levels() -> None:
    questions = short_questions(3)
    assert [q.level for q in spread(questions, 5, [2, 4])] == [2, 4, 2, 4, 2]
    assert len(spread(questions, 100, LEVELS)) == 30


def test_stages_keep_results_of_their_own_fingerprint_alone(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"x": 0.1}

    for fingerprint, expected in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        assert ResultCache(tmp_path, fingerprint, SilentReporter()).cached("s", compute) == {"x": 0.1}
        assert len(calls) == expected
    for damaged in ('{"half', "[1]", '{"fingerprint": "b"}'):
        (tmp_path / "s.json").write_text(damaged)
        with pytest.raises(DamagedCheckpointError, match=r"s\.json is not a readable checkpoint .*: delete it"):
            ResultCache(tmp_path, "b", SilentReporter()).cached("s", compute)
    (tmp_path / "s.json").unlink()
    assert ResultCache(tmp_path, "b", SilentReporter()).cached("s", compute) == {"x": 0.1}
    assert len(calls) == 3
    kept = ResultCache(tmp_path, "b", SilentReporter())
    value = {"t": torch.tensor([0.1, 1e-30], dtype=torch.float64)}
    assert torch.equal(kept.cached_tensors("t", lambda: value)["t"], value["t"])
    assert torch.equal(kept.cached_tensors("t", lambda: {})["t"], value["t"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.cached("nan", lambda: {"x": math.nan})
    assert ResultCache(None, "a", SilentReporter()).cached("s", compute) == {"x": 0.1}
    assert len(calls) == 4
