"""What thoughts are worth: hand numbers, and thinkers whose weights were written by hand, so that it is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tests.core.planted_thinker import LENGTH, cycling_text, planted, true_thoughts
from tests.core.test_models import small
from tests.core.test_reasoning_thoughts import make_thinker, mix_at_random
from training_core.data.task_bank import Task, read_tasks
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.windows import IGNORED, Windows
from training_core.nn.cognate import Cognate, Trace
from training_core.phases.p3_quiet_star.assessment import ThoughtAssessment, assess, helps, leaks, undecodable
from training_core.phases.p3_quiet_star.injection import InjectionConfig, ThoughtInjector
from training_core.phases.p3_quiet_star.measurement import (
    LN2,
    Sample,
    ThoughtOutcome,
    choose_positions,
    correlation,
    divergence_from_greedy,
    first_windows,
    flops,
    gain_per_token,
    levenshtein,
    measure_thoughts,
    shuffled,
    window_signals,
)
from training_core.phases.p3_quiet_star.report import pieces
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thinker, Thoughts
from training_core.reporting import SilentReporter


def sample_of(document: list[int], weight: list[float], documents: int) -> Sample:
    count = torch.arange(len(document))
    return Sample(count, count, torch.tensor(document), count > 0, torch.tensor(weight, dtype=torch.float64), documents)


def random_windows(rows: int = 5, length: int = 20) -> Windows:
    """Random text; the last four positions of the last window are behind it."""
    drawn = torch.randint(1, 300, (rows, length + 1), generator=torch.Generator().manual_seed(8))
    targets, documents = drawn[:, 1:].clone(), torch.arange(rows)[:, None].repeat(1, length)
    targets[-1, -4:] = documents[-1, -4:] = IGNORED
    return Windows(drawn[:, :-1], targets, documents, torch.full((rows,), 50))


def test_gain_is_weighted_by_what_positions_stand_for() -> None:
    sample = sample_of([0, 0, 1], [1.0, 1.0, 6.0], 3)
    gain = torch.tensor([4.0, -2.0, 1.0])
    assert gain_per_token(sample, gain).value == pytest.approx((4 - 2 + 6) / 8)
    chosen = torch.tensor([True, False, False])
    assert gain_per_token(sample, gain, chosen).value == pytest.approx(4 / 8), (
        "where nothing is thought nothing is gained"
    )
    nowhere = gain_per_token(sample, gain, ~chosen & chosen)
    assert (nowhere.value, nowhere.low, nowhere.high) == (0, 0, 0)
    many = sample_of(list(range(200)), [1.0] * 200, 200)
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate, error = gain_per_token(many, values), float(values.std()) / 200**0.5
    assert estimate.low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.35 * error)
    assert estimate.high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.35 * error)
    outcome = ThoughtOutcome(torch.tensor([3 * LN2]), torch.tensor([LN2]), *[torch.zeros(1)] * 3)
    assert outcome.gain().tolist() == pytest.approx([2.0])


def test_hardest_decile_is_that_of_the_entropy() -> None:
    parent, windows = small(), random_windows()
    sample = choose_positions(parent, windows, 2, seed=0)
    with torch.no_grad():
        p = parent(windows.inputs).logits.softmax(-1)
    entropy = {
        (w, s): float(torch.special.entr(p[w, s]).sum())
        for w in range(5)
        for s in range(20)
        if windows.targets[w, s] >= 0
    }
    assert len(entropy) == 96
    hardest = sorted(entropy, key=entropy.__getitem__, reverse=True)[:9]
    places = list(zip(sample.window.tolist(), sample.position.tolist(), strict=True))
    assert {place for place, hard in zip(places, sample.hard.tolist(), strict=True) if hard} == set(hardest)
    assert places == sorted(set(places)), "in the order of the text, each once"
    assert set(places) <= set(entropy), "each has a next token"
    assert len(places) == 18
    assert sample.weight[sample.hard].tolist() == [1.0] * 9
    assert sample.weight[~sample.hard].tolist() == pytest.approx([87 / 9] * 9)
    assert float(sample.weight.sum()) == pytest.approx(96)
    assert sample.document.tolist() == [w for w, _ in places]
    easy = choose_positions(parent, windows, 5, seed=1).only(~sample.hard)
    assert easy.documents == 5
    assert len(easy.window) == 9


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shuffling_leaves_nobody_their_own(count: int) -> None:
    tokens = torch.arange(count)[:, None, None].expand(-1, 2, 3)
    for seed in range(5):
        moved = shuffled(tokens, seed)
        assert not bool((moved == tokens).any())
        assert sorted(moved[:, 0, 0].tolist()) == list(range(count))
        assert torch.equal(moved, moved[:, :1, :1].expand_as(moved)), "thoughts move whole"
    with pytest.raises(ValueError, match="1 position has no other"):
        shuffled(tokens[:1], 0)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("", "abc", 3),
        ("abc", "", 3),
        ("same", "same", 0),
        ("ab", "ba", 2),
    ],
)
def test_levenshtein_by_hand(a: str, b: str, distance: int) -> None:
    assert levenshtein([ord(c) for c in a], [ord(c) for c in b]) == distance


def test_correlation_equals_numpy() -> None:
    x, y = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    assert correlation(x.view(5, 6), y.view(5, 6)) == pytest.approx(float(np.corrcoef(x, y)[0, 1]), rel=1e-5)
    assert correlation(x, torch.ones(30)) == 0.0


@torch.no_grad()
def test_positions_measured_together_equal_each_alone() -> None:
    """Windows of a batch have different numbers of positions, one has none, and the last batch is not full."""
    thinker, windows = mix_at_random(make_thinker(num_thoughts=2)), random_windows()
    window, position = torch.tensor([0, 0, 0, 1, 3, 4, 4]), torch.tensor([2, 3, 19, 7, 0, 5, 15])
    sample = Sample(window, position, window, window >= 0, torch.ones(7), 5)
    own = measure_thoughts(thinker, windows, sample, 2, seed=0)
    given = measure_thoughts(thinker, windows, sample, 3, seed=1, given=own.tokens)
    for number in range(7):
        text = windows.inputs[window[number], : int(position[number]) + 1][None]
        trace = thinker.cognate.trace(text)
        thoughts = thinker.think(trace, position[number].view(1, 1), None, own.tokens[number][None, None])
        talk = thinker.talk(trace.y[:, -1:], thoughts)
        target = int(windows.targets[window[number], position[number]])
        expected = [
            float(-logits.log_softmax(-1)[target])
            for logits in (thinker.cognate(text).logits[0, -1], talk.together[0, 0], *talk.alone[0, 0])
        ]
        for outcome in (own, given):
            found = [outcome.without[number], outcome.with_thoughts[number], *outcome.alone[number]]
            assert [float(value) for value in found] == pytest.approx(expected, abs=2e-5)
            assert (outcome.score[number] - talk.score[0, 0]).abs().max() < 1e-5
            assert torch.equal(outcome.tokens[number], own.tokens[number])
    again = measure_thoughts(thinker, windows, sample, 2, seed=0)
    assert torch.equal(again.with_thoughts, own.with_thoughts)


@torch.no_grad()
def test_greedy_continuation_has_no_distance_from_itself() -> None:
    model = small(memory_layers=[], window=32)  # there a branch continues the text, so that greed can be spelled out
    thinker, windows = make_thinker(model), random_windows()
    sample = Sample(
        torch.tensor([1, 2]), torch.tensor([6, 11]), torch.zeros(2).long(), torch.ones(2) > 0, torch.ones(2), 5
    )
    greedy = []
    for window, position in zip(sample.window.tolist(), sample.position.tolist(), strict=True):
        text = windows.inputs[window, : position + 1].tolist()
        for _ in range(4):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        greedy.append(text[-4:])
    tokens = torch.tensor(greedy)[:, None]
    assert divergence_from_greedy(thinker, windows, sample, tokens) == 0.0
    assert divergence_from_greedy(thinker, windows, sample, torch.full_like(tokens, 299)) == 1.0
    half = tokens.clone()
    half[0, 0, 2:] = ENDED
    half[1, 0, 1] = 299
    assert divergence_from_greedy(thinker, windows, sample, half) == pytest.approx((0 + 1 / 4) / 2)
    assert divergence_from_greedy(thinker, windows, sample, torch.full_like(tokens, ENDED)) == 0.0


def test_first_windows_keep_their_documents() -> None:
    few = first_windows(random_windows(), 2)
    assert (few.inputs.shape, few.num_documents) == ((2, 20), 2)


def test_signals_behind_the_text_are_missing() -> None:
    signals = torch.cat([s["entropy"] for s in window_signals(small(), random_windows(), 2)])
    assert torch.equal(signals.isnan(), random_windows().targets < 0)


def test_operations_are_counted() -> None:
    short, long = (flops(make_thinker(min_length=n, max_length=n), random_windows().inputs[:1]) for n in (2, 8))
    assert short[0] == long[0] > 2 * 300 * 32, "at least the product with the embedding"
    feeds = long[1] - short[1]  # six more tokens for each of three thoughts: feeding one and scoring one action
    assert 3 * 6 * short[0] < feeds < 3 * 6 * 3 * short[0]


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tasks(small_data: dict[str, Path]) -> list[Task]:
    return list(read_tasks(small_data["task_bank"], "test"))[:8]


def calibrated(thinker: Thinker) -> ThoughtInjector:
    injector = ThoughtInjector(InjectionConfig())
    injector.calibrate(window_signals(thinker.cognate, cycling_text(), 3))
    return injector


def assessed(
    thinker: Thinker, controls: dict[str, Thinker], tasks: list[Task], tokenizer: Tokenizer
) -> ThoughtAssessment:
    windows = cycling_text()
    injector = calibrated(thinker)
    return assess(thinker.cognate, thinker, controls, injector, windows, tasks, tokenizer, 3, 0, SilentReporter())


@pytest.fixture(scope="module")
def helpful(tasks: list[Task], tokenizer: Tokenizer) -> ThoughtAssessment:
    return assessed(planted(2.0), {"pause": planted(-2.0), "random reward": planted(2.0)}, tasks, tokenizer)


def test_thoughts_that_help_are_found_to_help(helpful: ThoughtAssessment) -> None:
    metrics = helpful.metrics
    outcome = helpful.outcome
    expected = float(outcome.without.double().mean()) / LN2  # what remains with thoughts is next to nothing
    assert float(outcome.with_thoughts.max()) < 1e-3
    assert metrics["thought_gain"] == pytest.approx(expected, abs=1e-3)
    assert metrics["thought_gain_low"] > 10
    assert metrics["thought_gain_hard_low"] > 10
    assert metrics["thought_gain_shuffled_hard_high"] < 0, "the gain was in the content"
    assert metrics["thought_over_shuffled_hard_low"] > 10
    assert metrics["thought_gain_pause_hard_high"] < -20, "this control was made to harm"
    assert metrics["thought_over_pause_hard_low"] > 30
    for end in ("", "_low", "_high"):
        assert metrics[f"thought_over_random_reward_hard{end}"] == 0, "this control is the same thinker"
    names = [arm.name for arm in helpful.arms]
    assert names == ["thoughts", "shuffled", "pause", "random reward"]
    assert metrics["mean_thought_tokens"] == LENGTH
    assert metrics["thought_leaks"] == 0
    assert metrics["undecodable_thoughts"] == 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_gating_pays_for_what_it_thinks(helpful: ThoughtAssessment) -> None:
    rules = {rule.name: rule for rule in helpful.gating}
    assert set(rules) == {"everywhere", "difficulty", "surprise", "random"}
    everywhere = rules["everywhere"]
    assert everywhere.share == 1
    assert everywhere.gain.value == helpful.metrics["thought_gain"]
    assert rules["surprise"].share == 0, "there is no memory that could be surprised"
    assert rules["surprise"].gain.value == rules["surprise"].bits_per_gflop == 0
    some = rules["difficulty"]
    assert 0 < some.share < 1
    assert some.gflop_per_token == pytest.approx(some.share * everywhere.gflop_per_token)
    assert everywhere.bits_per_gflop == pytest.approx(everywhere.gain.value / everywhere.gflop_per_token)
    assert 0 <= some.gain.value < everywhere.gain.value


def test_thoughts_that_harm_are_found_to_harm(tasks: list[Task], tokenizer: Tokenizer) -> None:
    found = assessed(planted(-2.0), {"pause": planted(2.0)}, tasks, tokenizer)
    assert found.metrics["thought_gain_high"] < -20
    assert found.metrics["thought_gain_hard_high"] < -20
    assert found.metrics["thought_over_pause_hard_high"] < -30
    windows, parent = cycling_text(), planted(2.0).cognate
    injector = calibrated(planted(2.0))
    verdicts = [helps(planted(worth), parent, injector, windows, 3, 0) for worth in (2.0, -2.0, 0.0)]
    assert verdicts == [True, False, False], "no gain is not a gain"
    never = ThoughtInjector(InjectionConfig(difficulty_threshold=1.0))
    assert not helps(planted(2.0), parent, never, windows, 3, 0), "what never thinks does not help"


def test_given_answers_gain_and_lose_it_when_shuffled() -> None:
    thinker, windows = planted(2.0, copies=True), cycling_text()
    sample = choose_positions(thinker.cognate, windows, 3, 0)
    answers = true_thoughts(windows, sample.window, sample.position)
    gain = gain_per_token(sample, measure_thoughts(thinker, windows, sample, 3, 0, answers).gain())
    lost = gain_per_token(sample, measure_thoughts(thinker, windows, sample, 3, 0, shuffled(answers, 0)).gain())
    assert gain.low > 10
    assert lost.high < 0


class Leaky(Thinker):
    """Starts its thoughts one position too late."""

    def think(
        self, trace: Trace, positions_BP: Tensor, generator: torch.Generator | None, given: Tensor | None = None
    ) -> Thoughts:
        return super().think(trace, (positions_BP + 1).clamp_max(trace.y.shape[1] - 1), generator, given)


class Confused(Thinker):
    """Sees to it that a thought's tokens depend on the last token of the text."""

    def _action_logits(self, answer: Tensor, *, may_end: bool) -> Tensor:
        return super()._action_logits(answer, may_end=may_end).roll(self.shift, dims=-1)

    def think(
        self, trace: Trace, positions_BP: Tensor, generator: torch.Generator | None, given: Tensor | None = None
    ) -> Thoughts:
        self.shift = int(trace.y[0, -1].abs().sum() * 100) % 97
        return super().think(trace, positions_BP, generator, given)


@pytest.mark.parametrize("kind", [Leaky, Confused])
def test_leaks_are_counted(kind: type[Thinker]) -> None:
    honest = mix_at_random(make_thinker())
    tokens = random_windows().inputs[:1]
    assert leaks(honest, tokens, seed=0) == 0
    leaky = kind(honest.cognate, honest.config)
    leaky.load_state_dict(honest.state_dict())
    assert leaks(mix_at_random(leaky), tokens, seed=0) > 0


def test_undecodable_thoughts_are_counted(tokenizer: Tokenizer) -> None:
    good = [[70, 71, ENDED], [ENDED] * 3, [5, 6, 7]]
    bad = [[70, 0, ENDED], [70, ENDED, 71], [70, 320, ENDED], [70, -2, 71]]
    assert undecodable(torch.tensor([good]), tokenizer) == 0
    assert undecodable(torch.tensor([good[:1] * 2, bad[:2], bad[2:]]), tokenizer) == 4


def test_tasks_that_do_not_fit_are_an_error(tasks: list[Task], tokenizer: Tokenizer) -> None:
    thinker = planted(2.0)
    config = thinker.cognate.config.model_copy(update={"max_seq_len": 8})
    thinker.cognate = Cognate(config)
    with pytest.raises(ValueError, match="tasks fits max_seq_len = 8: put shorter tasks"):
        assessed(thinker, {}, tasks, tokenizer)


@pytest.mark.parametrize("text", ["The river 12", "żółw 漢字 🦀 naïve", "🦀🦀", "a\ufffdb", "a<|endoftext|>b", ""])
def test_pieces_together_are_the_text(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text).ids
    shown = pieces(ids, tokenizer)
    assert len(shown) == len(ids)
    assert "".join(shown) == text
    assert pieces([0, *ids], tokenizer)[0] == "¶"
    assert not any("\ufffd" in piece for piece in shown) or "\ufffd" in text


def test_pieces_of_a_cut_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🦀").ids
    assert len(ids) == 5
    shown = pieces(ids[:3], tokenizer)
    assert "".join(shown) == tokenizer.decode(ids[:3])
    assert shown[0] == "a"
