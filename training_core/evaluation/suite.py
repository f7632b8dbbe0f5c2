"""Evaluation of a bundle read back from disk, and comparison with its parents on the same documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.task_bank import LONG_STORY, WORLD_FAMILIES
from training_core.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from training_core.evaluation.family_score import FamilyScore
from training_core.evaluation.generated_answers import answer_tasks
from training_core.evaluation.held_out import Suite, open_suite
from training_core.evaluation.intervals import difference_of_rates, proportion, rate, wilson
from training_core.evaluation.language_modeling import DocumentCounts, measure_windows
from training_core.evaluation.multiple_choice import score_pairs, score_tasks
from training_core.evaluation.probes import (
    causality_violations,
    latency_ms_per_token,
    non_finite_weights,
    streaming_error,
)
from training_core.evaluation.result import ABOVE_BEST, ANSWERED, GRAMMAR, SuiteResult
from training_core.evaluation.retention import OUTCOMES, handed_on, retention
from training_core.formats.loading import load_model, parameter_count
from training_core.nn.cognate import Cognate
from training_core.record import Estimate, record
from training_core.reporting import Reporter
from training_core.store.bundle import Bundle, BundleError
from training_core.text.sampling import continue_rows
from training_core.training.device import best_device
from training_core.world.checker import shares

PROBE_TOKENS = 96
STORY_TOKENS, STORY_TEMPERATURE, STORY_SEED = 128, 0.7, 11
QUESTION = "Question:"
LN2 = math.log(2)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measurements of the evaluation suite on a bundle read back from disk.

    `metrics` are flat scalars, `tasks` maps a task family to its scores, and `counts` holds per-document counts and,
    as `task.` and the family's name, per-item outcomes, with which two models can be compared on the same documents and
    items.
    """

    metrics: Mapping[str, float]
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, torch.Tensor] = field(default_factory=dict)


def measure_bundle(
    bundle: Bundle, suite_folder: Path, parents: Mapping[str, Bundle], reporter: Reporter
) -> Measurement:
    """Measure everything that the ledger and the gates need to know about a bundle.

    On the suite's test documents: bits per byte and next-token accuracy with intervals, causality, streaming, latency,
    size. On its items: multiple choice, and where the world is a source of the text also answers that the model writes,
    minimal pairs, and the difference to the best baseline. The model is compared with the n-gram model and with
    every parent, and with the merged model if that is an ancestor, paired by document.

    Raises:
        BundleError: when the bundle or a parent's record cannot be read.
        ValueError: when a parent was measured on another suite.
    """
    suite = open_suite(suite_folder)
    model = load_model(bundle).to(best_device())
    device = best_device()

    def progress(done: int, total: int) -> None:
        reporter.progress(done, total, "measuring")

    counts = measure_windows(model, suite.test, suite.config.batch_size, progress)
    tokenizer = load_tokenizer(bundle.tokenizer_json())
    scores = _scores(model, tokenizer, suite)
    tokens = suite.test.inputs[:2, :PROBE_TOKENS].to(device)
    positions = sorted({1, tokens.shape[1] // 2, tokens.shape[1] - 1})
    metrics = _quality(counts, suite) | {
        "params": parameter_count(bundle),
        "bytes_on_disk": bundle.model_bytes(),
        "non_finite_weights": non_finite_weights([*model.parameters(), *model.buffers()]),
        "causality_violations": causality_violations(model, tokens, positions),
        "streaming_error": streaming_error(model, tokens[:, :48]),
        "latency_ms_per_token": latency_ms_per_token(
            model, suite.test.inputs[0, : suite.config.latency_tokens].to(device)
        ),
        "supervision_steps_per_token": counts.mean_steps,
    }
    if suite.config.world_stories:
        metrics |= _stories(model, tokenizer, suite.config.world_stories)
    metrics |= _of_families(scores, suite)
    counted = _record(counts, suite) | {OUTCOMES + family: score.outcomes for family, score in scores.items()}
    records = {name: parent.evaluation_counts() for name, parent in parents.items()}
    metrics |= _compare(bundle, metrics, counted, parents, records)
    if origin := handed_on(records):
        metrics |= retention(counted, origin, suite.sources, {family: s.chance for family, s in scores.items()})
        counted |= origin
    scored = {family: score.as_dict() for family, score in scores.items()}
    return Measurement(record(SuiteResult, metrics).metrics(), scored, counted)


def compare_counts(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Compare two records, paired by document: ratio of bits per byte, retention (ratio of next-token accuracies), and
    drop of next-token accuracy (positive if `own` is worse).

    Raises:
        ValueError: when the records come from different suites.
    """
    if not torch.equal(own["suite"], other["suite"]):
        raise ValueError(
            "the two models were measured on different evaluation suites; materialize the parent again, so that both "
            "are measured on the same data"
        )
    return {
        "bits_per_byte_ratio": rate(own["nats"], other["nats"]),
        "retention": rate(own["correct"], other["correct"]),
        "next_token_accuracy_drop": difference_of_rates(other["correct"], own["correct"], own["tokens"]),
    }


def _quality(counts: DocumentCounts, suite: Suite) -> dict[str, float]:
    """Bits per byte and next-token accuracy on all test documents and on each source, beside the n-gram model's."""
    nats = suite.counting["nats"]
    margin = difference_of_rates(nats / LN2, counts.nats / LN2, counts.num_bytes)
    result = {
        **rate(counts.nats / LN2, counts.num_bytes).metrics("bits_per_byte"),
        **proportion(counts.correct, counts.tokens).metrics("next_token_accuracy"),
        **margin.metrics("margin_below_counting"),
        "counting_bits_per_byte": float(nats.sum() / counts.num_bytes.sum()) / LN2,
        "counting_accuracy": float(suite.counting["correct"].sum() / counts.tokens.sum()),
    }
    for name, where in suite.sources.items():
        size = counts.num_bytes[where]
        below = difference_of_rates(nats[where] / LN2, counts.nats[where] / LN2, size)
        result |= rate(counts.nats[where] / LN2, size).metrics(f"bits_per_byte_on_{name}")
        result |= proportion(counts.correct[where], counts.tokens[where]).metrics(f"next_token_accuracy_on_{name}")
        result |= below.metrics(f"margin_below_counting_on_{name}")
    return result


def _scores(model: Cognate, tokenizer: Tokenizer, suite: Suite) -> dict[str, FamilyScore]:
    """The scores of all families: by likelihood, by generated answers (`answered_...`), and of minimal pairs. Long
    stories have no likelihoods, which would need each to be read once for each of its options."""
    rows = 2 * suite.config.batch_size
    scores = score_tasks(model, tokenizer, [task for task in suite.tasks if task.family != LONG_STORY], rows)
    if about_world := [task for task in suite.tasks if task.family in WORLD_FAMILIES]:
        for family, outcomes in answer_tasks(model, tokenizer, about_world).items():
            scores[family] = FamilyScore(outcomes, float(suite.baselines[family]["chance"].mean()))
    if suite.pairs:
        scores |= score_pairs(model, tokenizer, suite.pairs, 4 * rows)
    return {family: replace(score, baselines=suite.baselines.get(family, {})) for family, score in scores.items()}


def _of_families(scores: Mapping[str, FamilyScore], suite: Suite) -> dict[str, float]:
    phenomena = {pair.phenomenon for pair in suite.pairs}
    metrics: dict[str, float] = {}
    for family, score in scores.items():
        if family in phenomena:
            metrics |= score.accuracy().metrics(f"{GRAMMAR}{family}")
        elif family.startswith(ANSWERED):
            metrics |= score.accuracy().metrics(family)
        else:
            metrics[f"task_{family}_corrected_low"] = score.as_dict()["corrected_low"]
        if (above := score.above_best_baseline()) is not None:
            metrics |= above.metrics(f"{family}_{ABOVE_BEST}")
    return metrics


def _stories(model: Cognate, tokenizer: Tokenizer, count: int) -> dict[str, float]:
    """Share of the sentences of `count` sampled texts that the world's grammar reads, and of about as many stories
    without a contradiction.

    A text that begins with a question is no story: in its place another one is drawn, as far as its first token.
    """
    generator = torch.Generator().manual_seed(STORY_SEED)
    asked = tokenizer.decode(tokenizer.encode(QUESTION).ids[:1])

    def draw(begun: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, ...]]:
        drawn = continue_rows(model, begun, tokens, generator, temperature=STORY_TEMPERATURE)
        return [(*start, *row.ids) for start, row in zip(begun, drawn, strict=True)]

    def is_story(ids: Sequence[int]) -> bool:
        return not tokenizer.decode(list(ids)).startswith(asked)

    rows = draw([()] * count, STORY_TOKENS)
    stories = [ids for ids in rows if is_story(ids)]
    begun = [ids for ids in draw([()] * (4 * count), 1) if ids[0] != END_OF_TEXT_ID and is_story(ids)]
    if len(stories) < count and begun:
        stories += draw(begun[: count - len(stories)], STORY_TOKENS - 1)
    texts, told = ([tokenizer.decode(list(ids)) for ids in of] for of in (rows, stories))
    written, read = shares(texts, cut=True), shares(told, cut=True)
    return {
        **wilson(written.parsed, max(1, written.sentences)).metrics("world_parsed"),
        **wilson(read.consistent, max(1, read.stories)).metrics("world_consistent"),
    }


def _record(counts: DocumentCounts, suite: Suite) -> dict[str, Tensor]:
    return {
        "nats": counts.nats,
        "correct": counts.correct,
        "tokens": counts.tokens,
        "num_bytes": counts.num_bytes,
        "suite": torch.tensor(list(bytes.fromhex(suite.digest)), dtype=torch.uint8),
    }


def _compare(
    bundle: Bundle,
    metrics: Mapping[str, float],
    record: Mapping[str, Tensor],
    parents: Mapping[str, Bundle],
    records: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, float]:
    if not parents:
        return {}
    if any("nats" not in r for r in records.values()):
        raise BundleError("a parent's evaluation.safetensors lacks its counts; materialize the parent again")
    result: dict[str, float] = {}
    best = min(records, key=lambda name: float(records[name]["nats"].sum()))
    for name, other in records.items():
        for metric, estimate in compare_counts(record, other).items():
            result |= estimate.metrics(f"{metric}_to_{name}")
            if name == best:
                result |= estimate.metrics(f"{metric}_to_best_parent")
    parent_params = parameter_count(parents[best])
    result["bytes_ratio"] = 4 * parent_params / metrics["bytes_on_disk"]
    result["bits_per_parameter"] = 8 * metrics["bytes_on_disk"] / parent_params
    return result
