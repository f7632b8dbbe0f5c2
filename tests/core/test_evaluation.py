"""The suite's numbers against hand computation, and intervals with known coverage."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.core.scripted_model import ScriptedModel
from tests.core.small_data import SHAPE, make_data, sentences
from training_core.data.documents import CorpusConfig, SourceConfig
from training_core.data.packing import TokenStream
from training_core.data.task_bank import (
    FAMILIES,
    GYM_FAMILIES,
    WORLD_FAMILIES,
    Task,
    TaskBankConfig,
    as_tasks,
    read_tasks,
)
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.family_score import FamilyScore
from training_core.evaluation.generated_answers import answer_tasks
from training_core.evaluation.held_out import SuiteConfig, make_suite, open_suite
from training_core.evaluation.intervals import paired_difference, rate, wilson
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.multiple_choice import Continuation, log_likelihoods, score_pairs, score_tasks
from training_core.evaluation.probes import causality_violations, non_finite_weights, streaming_error
from training_core.evaluation.suite import _stories, compare_counts, measure_bundle
from training_core.evaluation.task_baselines import world_baselines
from training_core.evaluation.windows import cut_windows
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.reporting import SilentReporter
from training_core.store.bundle import BundleError, Lineage, open_bundle, write_bundle, write_measurements
from training_core.world.baselines import majorities, outcomes
from training_core.world.config import WorldConfig
from training_core.world.minimal_pairs import PHENOMENA, MinimalPair
from training_core.world.tasks import level_items


def model(**changes: object) -> Cognate:
    torch.manual_seed(0)
    return Cognate(CognateConfig(vocab_size=320, **(SHAPE | changes))).eval()  # type: ignore[arg-type]


def stream_of(documents: list[list[int]], num_bytes: list[int]) -> TokenStream:
    flat = np.array([t for d in documents for t in [0, *d]], np.uint16)
    starts = np.cumsum([0] + [len(d) + 1 for d in documents[:-1]])
    return TokenStream((flat,), starts.astype(np.int64), np.array(num_bytes, np.int64))


def test_windows_cover_whole_documents_once() -> None:
    stream = stream_of([[5, 6, 7], [8, 9], [10] * 50], [3, 2, 50])
    windows = cut_windows(stream, 10, 4)
    assert windows.num_documents == 2
    assert windows.inputs.tolist() == [[0, 5, 6, 7], [0, 8, 0, 0]]
    assert windows.targets.tolist() == [[5, 6, 7, 0], [8, 9, -1, -1]]
    assert windows.documents.tolist() == [[0, 0, 0, 1], [1, 1, -1, -1]]
    with pytest.raises(ValueError, match="no held-out document of the corpus fits 3 tokens"):
        cut_windows(stream, 3, 4)


def test_bits_per_byte_by_hand() -> None:
    windows = cut_windows(stream_of([[5, 6, 7], [8, 9]], [30, 20]), 100, 4)
    net = model()
    counts = measure_windows(net, windows, batch_size=1)
    nats, right = [0.0, 0.0], [0, 0]
    for inputs, targets, owners in zip(windows.inputs, windows.targets, windows.documents, strict=True):
        log_p = net(inputs[None]).logits[0].log_softmax(-1).detach()
        for t in range(4):
            if targets[t] >= 0:
                nats[int(owners[t])] -= float(log_p[t, targets[t]])
                right[int(owners[t])] += int(log_p[t].argmax() == targets[t])
    assert counts.nats.tolist() == pytest.approx(nats, rel=1e-5)
    assert counts.correct.tolist() == right
    assert counts.tokens.tolist() == [3, 3]
    assert counts.bits_per_byte() == pytest.approx(sum(nats) / 50 / math.log(2), rel=1e-5)
    assert measure_windows(net, windows, batch_size=7).bits_per_byte() == pytest.approx(
        counts.bits_per_byte(), rel=1e-6
    )


def test_uniform_model_has_log2_vocabulary_bits_a_token() -> None:
    net = model()
    torch.nn.init.zeros_(net.embedding.weight)
    windows = cut_windows(stream_of([[5, 6, 7]], [1]), 100, 4)
    assert measure_windows(net, windows, 1).bits_per_byte() == pytest.approx(3 * math.log2(320), rel=1e-5)


def test_suite_with_another_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="made with another tokenizer"):
        measure_windows(model(), cut_windows(stream_of([[5, 900]], [2]), 100, 4), 1)


def test_bootstrap_interval_covers_the_truth() -> None:
    """95 % intervals of a known rate cover it in 95 % of 200 draws, within 3 sigma of a binomial."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        tokens = torch.randint(20, 60, (80,), generator=generator).double()
        p = 0.3 + 0.1 * torch.randn(80, generator=generator, dtype=torch.float64)
        correct = torch.binomial(tokens, p.clamp(0, 1), generator=generator)
        estimate = rate(correct, tokens)
        covered += estimate.low <= 0.3 <= estimate.high
    assert abs(covered / 200 - 0.95) < 3 * (0.95 * 0.05 / 200) ** 0.5


def test_wilson_by_hand() -> None:
    estimate = wilson(8, 10)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10).low == 0.0
    with pytest.raises(ValueError, match="at least one trial"):
        wilson(0, 0)


def test_paired_comparison_is_exact_for_equal_models_and_tight_for_shifted_ones() -> None:
    torch.manual_seed(0)
    nats = torch.rand(50, dtype=torch.float64) * 100 + 50
    suite = torch.zeros(32, dtype=torch.uint8)
    own = {"nats": nats * 1.02, "correct": nats * 0.98, "tokens": nats * 4, "suite": suite}
    compared = compare_counts(own, {"nats": nats, "correct": nats, "suite": suite})
    for name, value in {"bits_per_byte_ratio": 1.02, "retention": 0.98, "next_token_accuracy_drop": 0.005}.items():
        found = compared[name]
        assert (found.value, found.low, found.high) == pytest.approx((value, value, value), rel=1e-9)
    with pytest.raises(ValueError, match="different evaluation suites"):
        compare_counts(own, {"nats": nats, "correct": nats, "suite": suite + 1})


def test_multiple_choice_prefers_what_the_model_knows(small_data: dict[str, Path]) -> None:
    """A model whose head always favours one digit picks the option made of it; chance is corrected for."""
    tokenizer = load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())
    net = model()
    favourite = tokenizer.encode(" 7").ids[-1]
    with torch.no_grad():
        net.embedding.weight.zero_()
        net.core_norm.weight.zero_()
    options = ("9", "7", "3", "5")  # each is a space and a digit to this tokenizer
    tasks = [Task("arithmetic", "x", 0, "Question: ?\nAnswer:", "7", options, 1)] * 6
    for right in range(4):  # all options tie, wherever the right one stands
        tied = score_tasks(net, tokenizer, [replace(task, answer_index=right) for task in tasks], 4)["arithmetic"]
        assert tied.outcomes.tolist() == [0.25] * 6
        assert tied.as_dict()["corrected"] == 0.0
    net.logits = lambda y: torch.nn.functional.one_hot(torch.full(y.shape[:-1], favourite), 320).float() * 9  # type: ignore[method-assign,assignment]
    knows = score_tasks(net, tokenizer, tasks, 4)["arithmetic"]
    assert (knows.accuracy(), knows.chance, knows.as_dict()["corrected"]) == (wilson(6, 6), 0.25, 1.0)
    one_token = [MinimalPair("number", "7", "3"), MinimalPair("number", "3", "9"), MinimalPair("number", "9", "7")]
    seven = tokenizer.encode("7").ids[0]
    net.logits = lambda y: torch.nn.functional.one_hot(torch.full(y.shape[:-1], seven), 320).float() * 9  # type: ignore[method-assign,assignment]
    assert score_pairs(net, tokenizer, one_token, 2)["number"].outcomes.tolist() == [1, 0.5, 0]


def test_shared_rows_give_the_likelihoods_of_single_ones() -> None:
    """Continuations of one context, of which some begin others, and of other contexts: as scored one by one."""
    net = model()
    contexts = [(0, 5, 6, 7), (0, 5, 6), (0, 300)]
    endings = [(9,), (10,), (9, 11), (9, 11, 12), (7, 9), (13, 14)]
    asked = [Continuation((*c, *e), len(c)) for c in contexts for e in endings]
    found = log_likelihoods(net, asked, 3)
    for one, total in zip(asked, found.tolist(), strict=True):
        log_p = net(torch.tensor([one.ids])).logits[0].detach().double().log_softmax(-1)
        naive = sum(float(log_p[at - 1, one.ids[at]]) for at in range(one.start, len(one.ids)))
        assert total == pytest.approx(naive, rel=1e-5)
    rows: list[int] = []
    answers = net.answers
    net.answers = lambda tokens: rows.append(len(tokens)) or answers(tokens)  # type: ignore[method-assign,assignment,func-returns-value]
    log_likelihoods(net, asked[:4], 8)
    assert rows == [1], "all four are read from the longest one"


class TellsOrAsks(ScriptedModel):
    """Writes one of two texts, which it chooses by a coin."""

    def step(self, tokens: torch.Tensor, state: list[list[int]]) -> torch.Tensor:
        logits = torch.zeros(len(state), self.tokenizer.get_vocab_size())
        texts = [(*self.tokenizer.encode(script[0]).ids, 0) for script in self.scripts.values()]
        for row, (token, fed) in enumerate(zip(tokens.tolist(), state, strict=True)):
            fed.append(token)
            for text in texts:
                if tuple(fed[1:]) == text[: len(fed) - 1] and len(fed) <= len(text):
                    logits[row, text[len(fed) - 1]] = 30.0
        return logits


def test_as_many_stories_are_judged_as_texts_are_drawn(small_data: dict[str, Path]) -> None:
    """Half of the texts begin with a question: for each of them another story is drawn."""
    tokenizer = load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())
    asks = "Question: Mia was in the hall. Where is Mia?\nAnswer: hall"
    for story, judged in (
        ("Mia was in the hall. Mia went to the kitchen.", wilson(40, 40)),
        ("Mia had the bell. Tom had the bell.", wilson(0, 40)),  # a contradiction
    ):
        measured = _stories(TellsOrAsks(tokenizer, {"a": [asks], "b": [story]}), tokenizer, 40)  # type: ignore[arg-type]
        assert measured["world_parsed"] == 1.0
        assert (measured["world_consistent_low"], measured["world_consistent_high"]) == (judged.low, judged.high)
    only_asks = _stories(TellsOrAsks(tokenizer, {"a": [asks]}), tokenizer, 4)  # type: ignore[arg-type]
    assert only_asks["world_consistent_high"] == wilson(0, 1).high, "no story: nothing is known"


def test_generated_answers_are_read_in_the_corpus_own_format(small_data: dict[str, Path]) -> None:
    tokenizer = load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())
    written = {
        " hall": 1.0,
        " Hall.": 1.0,
        " Tom went to the hall. The answer is hall": 1.0,
        " hall\nQuestion: Where is Tom?\nAnswer: kitchen": 1.0,
        " kitchen": 0.0,
        " Tom went to the hall.": 0.0,
        " hall. The answer is kitchen": 0.0,
        "": 0.0,
    }
    tasks = [
        Task("one_hop" if n % 2 else "two_hops", "x", 0, f"Question: {n}?\nAnswer:", "hall", ("hall",), 0)
        for n in range(len(written))
    ]
    writer = ScriptedModel(tokenizer, {t.prompt: [text] for t, text in zip(tasks, written, strict=True)})
    found = answer_tasks(writer, tokenizer, tasks)  # type: ignore[arg-type]
    expected = list(written.values())
    assert {family: of.tolist() for family, of in found.items()} == {
        "answered_two_hops": expected[::2],
        "answered_one_hop": expected[1::2],
    }


def test_baselines_of_tasks_are_those_of_their_documents() -> None:
    """The reader of prompts finds the events, the query and the candidates that the generator had."""
    world = WorldConfig()
    items = [document for level in (2, 5, 9, 10) for document in level_items(world, 3, level, 20)]
    tasks = [replace(task, family="asked") for document in items for task in as_tasks(3, document)]
    counts = majorities(items)
    found = world_baselines(tasks, counts)
    for name, choices in (("asked", "options"), ("answered_asked", "candidates")):
        expected = [
            outcomes(d.events, asked.query, asked.word, getattr(asked, choices), counts[asked.family])
            for d in items
            for asked in d.questions
        ]
        for baseline, values in found[name].items():
            assert values.tolist() == pytest.approx([one[baseline] for one in expected]), (name, baseline)
    with pytest.raises(ValueError, match="the world reads another answer than 'nowhere'"):
        world_baselines([replace(tasks[0], answer="nowhere")], counts)


def test_the_best_baseline_is_that_of_the_set() -> None:
    right = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    rules = {"chance": torch.full((4,), 0.25).double(), "copying": torch.tensor([0.0, 1, 1, 0]).double()}
    score = FamilyScore(right, 0.25, rules)
    assert score.best_baseline() == "copying"
    assert score.above_best_baseline() == paired_difference(right, rules["copying"])
    told = score.as_dict()
    assert (told["accuracy"], told["baseline_copying"], told["above_best_baseline"]) == (0.75, 0.5, 0.25)
    assert "above_best_baseline" not in FamilyScore(right, 0.25).as_dict()


def test_probes_find_what_they_look_for() -> None:
    tokens = torch.randint(0, 320, (1, 24))
    net = model()
    assert causality_violations(net, tokens, (1, 12, 23)) == 0
    assert streaming_error(net, tokens) < 1e-4
    leak = net.prelude[0].attention.forward

    def leaking(x: torch.Tensor, *rest: object, **named: object) -> tuple[object, ...]:
        heads, *others = leak(x, *rest, **named)
        return (heads + x.mean(1, keepdim=True), *others)

    net.prelude[0].attention.forward = leaking  # type: ignore[method-assign,assignment]
    assert causality_violations(net, tokens, (12,)) > 0
    assert streaming_error(net, tokens) > 1e-3
    assert non_finite_weights([torch.tensor([1.0, float("nan"), float("inf")]), torch.tensor([1])]) == 2


def test_bundle_is_measured_as_it_lies_on_disk(small_data: dict[str, Path], tmp_path: Path) -> None:
    suite = small_data["evaluation_suite"]
    tokenizer_json = (small_data["tokens"] / "tokenizer.json").read_text()
    net = model()
    config = {"cognate": net.config.model_dump()}
    parts = {
        "kind": "cognate",
        "model_config": config,
        "tensors": net.state_dict(),
        "tokenizer_json": tokenizer_json,
    }
    parent = write_bundle(tmp_path / "parent", **parts)  # type: ignore[arg-type]
    measured = measure_bundle(parent, suite, {}, SilentReporter())
    assert measured.metrics["params"] == sum(p.numel() for p in net.parameters())
    assert measured.metrics["bytes_on_disk"] == (tmp_path / "parent" / "model.safetensors").stat().st_size
    expected = measure_windows(net, open_suite(suite).test, 8)
    assert measured.metrics["bits_per_byte"] == pytest.approx(expected.bits_per_byte(), rel=1e-9)
    assert (
        measured.metrics["bits_per_byte_low"]
        < measured.metrics["bits_per_byte"]
        < measured.metrics["bits_per_byte_high"]
    )
    assert measured.metrics["margin_below_counting_high"] < 0, "a random model is worse than counting"
    assert set(measured.tasks) == {"arithmetic", "logic", "needle"}
    lineage = Lineage("trunk", 1, "nano", parent.digest(), "", "", {}, {}, measured.metrics)
    write_measurements(parent, lineage, measured.counts)
    child = write_bundle(tmp_path / "child", **parts)  # type: ignore[arg-type]
    against = measure_bundle(child, suite, {"trunk": parent}, SilentReporter()).metrics
    assert against["bits_per_byte_ratio_to_best_parent"] == pytest.approx(1.0, abs=1e-12)
    assert against["retention_to_trunk_low"] == pytest.approx(1.0, abs=1e-12)
    assert against["bits_per_parameter"] == 8 * against["bytes_on_disk"] / against["params"]
    assert against["bytes_ratio"] == 4 * against["params"] / against["bytes_on_disk"]
    smaller = model(num_layers=2, num_core_layers=1)
    parts |= {"model_config": {"cognate": smaller.config.model_dump()}, "tensors": smaller.state_dict()}
    student = measure_bundle(write_bundle(tmp_path / "student", **parts), suite, {"trunk": parent}, SilentReporter())  # type: ignore[arg-type]
    against = student.metrics
    assert against["params"] == sum(p.numel() for p in smaller.parameters()) < measured.metrics["params"]
    assert against["bits_per_parameter"] == 8 * against["bytes_on_disk"] / measured.metrics["params"], "the teacher's"
    assert against["bytes_ratio"] == 4 * measured.metrics["params"] / against["bytes_on_disk"]


def test_each_source_is_measured_and_the_world_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in sentences(200)))
    own = SourceConfig(name="own", paths=[str(tmp_path / "a.jsonl")], min_characters=20, weight=1.0)
    world = SourceConfig(kind="world", max_documents=200, weight=3.0)
    asked = SuiteConfig(
        test_tokens=4000, validation_tokens=2000, window=64, tasks_per_family=10, latency_tokens=8,
        one_hop_tasks=6, minimal_pairs=8, world_stories=8,
    )  # fmt: skip
    suites = {}
    for name, sources in {"both": [world, own], "own": [own]}.items():
        corpus = CorpusConfig(sources=sources, test_fraction=0.2)
        bank = TaskBankConfig(train_per_family=10, held_out_per_family=12, world_train_per_family=4, story_sentences=16)
        folders = make_data(tmp_path / name, corpus, asked, bank)
        suites[name] = (folders, open_suite(folders["evaluation_suite"]))
    folders, suite = suites["both"]
    sizes = dict.fromkeys(FAMILIES, 10) | {"one_hop": 6, "long_story": 6}
    assert Counter(task.family for task in suite.tasks) == sizes
    held_out = list(read_tasks(folders["task_bank"], "test"))
    assert set(suite.tasks) < set(held_out)
    assert sorted(torch.cat(list(suite.sources.values())).tolist()) == list(range(suite.test.num_documents))
    net = model()
    tokenizer_json = (folders["tokens"] / "tokenizer.json").read_text()
    config = {"cognate": net.config.model_dump()}
    bundle = write_bundle(
        tmp_path / "model", kind="cognate", model_config=config, tensors=net.state_dict(), tokenizer_json=tokenizer_json
    )
    measured = measure_bundle(bundle, folders["evaluation_suite"], {}, SilentReporter())
    counts = measure_windows(net, suite.test, 8)
    for name, where in suite.sources.items():
        bits = float(counts.nats[where].sum() / counts.num_bytes[where].sum()) / math.log(2)
        rival = float(suite.counting["nats"][where].sum() / counts.num_bytes[where].sum()) / math.log(2)
        assert measured.metrics[f"bits_per_byte_on_{name}"] == pytest.approx(bits, rel=1e-9)
        assert measured.metrics[f"margin_below_counting_on_{name}"] == pytest.approx(rival - bits, rel=1e-9)
    answered = {f"answered_{family}" for family in WORLD_FAMILIES}
    assert {*FAMILIES, *answered, *PHENOMENA} - {"long_story"} == set(measured.tasks)
    assert {*WORLD_FAMILIES, *answered, *PHENOMENA} == set(suite.baselines)
    for family, rules in suite.baselines.items():
        if family == "long_story":  # its rules are known among its options, but models write their answers
            continue
        outcomes_of, told = measured.counts[f"task.{family}"], measured.tasks[family]
        assert (
            told["items"] == len(outcomes_of) == (8 if family in PHENOMENA else sizes[family.removeprefix("answered_")])
        )
        best = max(rules, key=lambda name: float(rules[name].mean()))
        gap = paired_difference(outcomes_of, rules[best])
        assert measured.metrics[f"{family}_above_best_baseline_low"] == gap.low
    assert {float(suite.baselines[name]["word_frequency"].mean()) for name in PHENOMENA} == {0.5}
    assert measured.metrics["answered_one_hop_high"] == wilson(0, 6).high, "a random model writes no answers"
    assert measured.metrics["world_parsed"] == 0.0  # random bytes are no sentences
    assert measured.metrics["world_consistent"] == 0.0
    _, alone = suites["own"]
    assert (alone.config.one_hop_tasks, alone.config.world_stories, alone.config.minimal_pairs) == (0, 0, 0)
    assert (alone.pairs, alone.baselines) == ((), {})
    assert {task.family for task in alone.tasks} == set(GYM_FAMILIES)
    other = asked.model_copy(update={"world": WorldConfig(vocabulary=220)})
    with pytest.raises(ValueError, match="a world with other settings than evaluation_suite.world"):
        make_suite(other, folders["tokens"], folders["task_bank"], tmp_path, SilentReporter())


def test_damaged_bundles_are_typed_errors(small_data: dict[str, Path], tmp_path: Path) -> None:
    net = model()
    bundle = write_bundle(
        tmp_path / "b",
        kind="cognate",
        model_config={"cognate": net.config.model_dump()},
        tensors=net.state_dict(),
        tokenizer_json="{}",
    )
    digest = bundle.digest()
    assert open_bundle(tmp_path / "b", expected_digest=digest).digest() == digest
    weights = tmp_path / "b" / "model.safetensors"
    content = weights.read_bytes()
    for position in (20, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(BundleError):
            open_bundle(tmp_path / "b", expected_digest=digest)
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(tmp_path / "b").digest()
    weights.unlink()
    with pytest.raises(BundleError, match="missing"):
        open_bundle(tmp_path / "b").tensors()
    (tmp_path / "b" / "config.json").write_text("{")
    with pytest.raises(BundleError, match="not valid JSON"):
        open_bundle(tmp_path / "b")
    with pytest.raises(ValueError, match="bundle kind must be one of"):
        write_bundle(tmp_path / "c", kind="pickle", model_config={}, tensors=None, tokenizer_json="")


def test_exhibits_lie_beside_the_measurements_and_outside_the_digest(tmp_path: Path) -> None:
    parts = {"kind": "cognate", "model_config": {}, "tensors": {"w": torch.ones(2)}, "tokenizer_json": "{}"}
    plain = write_bundle(tmp_path / "plain", **parts)  # type: ignore[arg-type]
    shown = write_bundle(tmp_path / "shown", **parts)  # type: ignore[arg-type]
    lineage = Lineage("trunk", 3, "nano", plain.digest(), "", "", {}, {}, {})
    documents = {"b": {"text": "</script> 😀 ü", "numbers": [0.1, 1e-300, -3]}, "a": [None, True, "x\n"]}
    write_measurements(plain, lineage, {"bytes": torch.ones(1)})
    write_measurements(shown, lineage, {"bytes": torch.ones(1)}, documents)
    assert open_bundle(shown.folder, expected_digest=plain.digest()).exhibits() == documents
    assert plain.exhibits() == {}
    assert not (plain.folder / "exhibits.json").exists()
    for damaged in (b"{", b"[1]", b"\xff"):
        (shown.folder / "exhibits.json").write_bytes(damaged)
        with pytest.raises(BundleError, match=r"exhibits\.json is .*damaged"):
            shown.exhibits()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(1), {1, 2}])
def test_exhibit_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path, value: object) -> None:
    bundle = write_bundle(
        tmp_path / "b", kind="cognate", model_config={}, tensors={"w": torch.ones(2)}, tokenizer_json="{}"
    )
    before = sorted(tmp_path.rglob("*"))
    lineage = Lineage("trunk", 3, "nano", bundle.digest(), "", "", {}, {}, {})
    with pytest.raises(ValueError, match="the exhibit 'odd' is not JSON"):
        write_measurements(bundle, lineage, {"bytes": torch.ones(1)}, {"odd": {"value": value}})
    assert sorted(tmp_path.rglob("*")) == before
