"""Likelihoods of worked completions against a naive loop, exactness against greedy attempts, drops by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from forge_resources.sandbox import open_sandbox
from tests.core.small_cycles import parent
from tests.core.test_character_council import question
from training_core.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from training_core.evaluation.intervals import wilson
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig
from training_core.tasks.questions import likelihood
from training_core.tasks.questions.attempts import Answerer
from training_core.tasks.questions.likelihood import Likelihoods, example_of, family_drops, measure_likelihoods
from training_core.tasks.questions.question import Question
from training_core.tasks.questions.sft_objective import LessonObjective
from training_core.tasks.questions.tools import ToolBox

CALCULATED = replace(question("17+25", "42", 2), solution="It is <<17+25=42>>42.")
PROGRAMMED = replace(question("9*9", "81", 3), solution="<py>print(9*9)</py><out>81</out>")
ASKED = [question(), CALCULATED, question("How many legs has a dog?", "four", 4, "facts"), PROGRAMMED, question("7-5")]
PREAMBLE = "Think.\n"


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def learned(tokenizer: Tokenizer) -> Cognate:
    """A model that learned the first three by heart, and the others not."""
    model = parent().train()
    objective = LessonObjective([example_of(q, tokenizer) for q in ASKED[:3]])
    optimizer = MuGrokfast(model, OptimizerConfig(muon_lr=0.02, adamw_lr=0.02))
    for _ in range(60):
        objective(model, torch.arange(3), None, torch.Generator()).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
    return model.eval()


@pytest.fixture(scope="module")
def tools() -> Iterator[ToolBox]:
    with open_sandbox("embedded") as sandbox:
        yield ToolBox(sandbox)


def pieces(asked: Question) -> list[tuple[str, bool]]:
    """A completion in pieces, and whether the model writes them; divided by hand."""
    if asked is CALCULATED:
        return [(" It is <<17+25=", True), ("42>>", False), ("42. The answer is 42", True)]
    if asked is PROGRAMMED:
        return [(" <py>print(9*9)</py>", True), ("<out>81</out>", False), (" The answer is 81", True)]
    return [(f" {asked.answer}", True)]


def naive(model: Cognate, tokenizer: Tokenizer, asked: Question, preamble: str) -> tuple[float, int, bool]:
    """One question alone: the softmax by hand, in double precision, a forward pass for each token that counts."""
    ids = [END_OF_TEXT_ID, *tokenizer.encode(f"{preamble}Question: {asked.prompt}\nAnswer:").ids]
    total, count, likeliest = 0.0, 0, True
    for text, own in [*pieces(asked), ("", True)]:
        for token in tokenizer.encode(text).ids if text else [END_OF_TEXT_ID]:
            if own:
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
                total += logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
                count += 1
                likeliest &= int(logits.argmax()) == token
            ids.append(token)
    return total, count, likeliest


@pytest.mark.parametrize("preamble", ["", PREAMBLE])
def test_a_naive_loop_finds_the_same(learned: Cognate, tokenizer: Tokenizer, preamble: str) -> None:
    """Padded rows of several lengths in one pass, and float32 logits: hence 1e-4 nats."""
    found = measure_likelihoods(learned, tokenizer, ASKED, preamble)
    expected = [naive(inference_copy(learned), tokenizer, asked, preamble) for asked in ASKED]
    assert found.log_prob_Q.dtype == torch.float64
    assert found.log_prob_Q.tolist() == pytest.approx([total for total, _, _ in expected], abs=1e-4)
    assert found.tokens_Q.tolist() == [count for _, count, _ in expected]
    assert found.exact_Q.tolist() == [float(likeliest) for _, _, likeliest in expected]


def test_a_preamble_counts_and_its_tokens_do_not(learned: Cognate, tokenizer: Tokenizer) -> None:
    without, behind = (measure_likelihoods(learned, tokenizer, ASKED, text) for text in ("", PREAMBLE))
    assert torch.equal(without.tokens_Q, behind.tokens_Q)
    assert (without.log_prob_Q - behind.log_prob_Q)[3:].abs().min() > 0.01, "not known by heart; rounding is 1e-4"


def test_what_a_tool_puts_in_is_read_and_not_counted(learned: Cognate, tokenizer: Tokenizer) -> None:
    """Another result of the calculator: as many tokens count, and those behind it are read differently."""
    example = example_of(CALCULATED, tokenizer)
    put_in = tokenizer.encode("42>>").ids
    hidden = [token for token, own in zip(example.completion, example.learned, strict=True) if not own]
    assert hidden == put_in
    other = replace(CALCULATED, solution="It is <<17+25=96>>42.")
    counted = [
        [t for t, own in zip(e.completion, e.learned, strict=True) if own]
        for e in (example, example_of(other, tokenizer))
    ]
    assert counted[0] == counted[1]
    one, another = (measure_likelihoods(learned, tokenizer, [q]) for q in (CALCULATED, other))
    assert torch.equal(one.tokens_Q, another.tokens_Q)
    assert abs(float(one.log_prob_Q - another.log_prob_Q)) > 1e-3


@pytest.mark.parametrize("preamble", ["", PREAMBLE])
def test_exact_is_what_a_greedy_attempt_writes(
    learned: Cognate, tokenizer: Tokenizer, tools: ToolBox, preamble: str
) -> None:
    found = measure_likelihoods(learned, tokenizer, ASKED, preamble)
    answerer = Answerer(inference_copy(learned), tokenizer, tools, 60)
    attempts = answerer.attempt(ASKED, torch.Generator(), preamble=preamble)
    written = [attempt.completion_ids == example_of(attempt.question, tokenizer).completion for attempt in attempts]
    assert found.exact_Q.tolist() == [float(same) for same in written]
    if not preamble:
        assert written == [True, True, True, False, False], "both happen, one of them with a tool"
        assert [call.output for call in attempts[1].calls] == ["42"]


def test_expected_is_how_often_a_drawn_attempt_writes_the_completion(
    learned: Cognate, tokenizer: Tokenizer, tools: ToolBox
) -> None:
    """600 drawn attempts at the calculation, with the tool's own replies: within 3 standard errors."""
    found = measure_likelihoods(learned, tokenizer, ASKED)
    assert found.expected_Q().tolist() == pytest.approx([math.exp(x) for x in found.log_prob_Q.tolist()], rel=1e-12)
    p = float(found.expected_Q()[1])
    assert 0.05 < p < 0.95
    answerer = Answerer(inference_copy(learned), tokenizer, tools, 60)
    drawn = answerer.attempt([CALCULATED] * 600, torch.Generator().manual_seed(0), temperature=1.0)
    completion = example_of(CALCULATED, tokenizer).completion
    share = sum(attempt.completion_ids == completion for attempt in drawn) / 600
    assert share == pytest.approx(p, abs=3 * math.sqrt(p * (1 - p) / 600))


def test_a_question_is_measured_alike_among_others_and_alone(
    learned: Cognate, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order given, whatever goes together in one pass."""
    together = measure_likelihoods(learned, tokenizer, ASKED)
    monkeypatch.setattr(likelihood, "ROWS_AT_ONCE", 2)
    for questions in (ASKED, ASKED[::-1]):
        found = measure_likelihoods(learned, tokenizer, questions)
        expected = together.log_prob_Q if questions is ASKED else together.log_prob_Q.flip(0)
        assert found.log_prob_Q.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_means_by_hand() -> None:
    told = Likelihoods(
        torch.tensor([math.log(0.25), math.log(0.027), 0.0], dtype=torch.float64),
        torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64),
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64),
    )
    assert told.per_token().tolist() == pytest.approx([0.5, 0.3, 1.0])
    assert told.mean_probability().value == pytest.approx(0.6)
    assert told.expected_Q().tolist() == pytest.approx([0.25, 0.027, 1.0])
    assert told.expected().value == pytest.approx((0.25 + 0.027 + 1.0) / 3)
    assert told.exact() == wilson(1, 3)


def likelihoods(probabilities: list[float]) -> Likelihoods:
    twos = torch.full((len(probabilities),), 2.0, dtype=torch.float64)
    return Likelihoods(torch.tensor(probabilities, dtype=torch.float64).log(), twos, twos)


def test_drops_of_families_by_hand() -> None:
    """Paired by question: a fall that is the same in each has an interval of no width, whatever the level."""
    questions = [question(family=family) for family in ("sums", "lists", "sums", "lists", "words")]
    before, after = likelihoods([0.9, 0.4, 0.3, 0.2, 0.5]), likelihoods([0.7, 0.3, 0.1, 0.4, 0.5])
    drops = family_drops(questions, before, after)
    assert list(drops) == ["lists", "sums", "words"]
    assert (drops["sums"].low, drops["sums"].value, drops["sums"].high) == pytest.approx((0.2, 0.2, 0.2))
    assert (drops["lists"].low, drops["lists"].value, drops["lists"].high) == pytest.approx((-0.2, -0.05, 0.1))
    assert (drops["words"].low, drops["words"].value, drops["words"].high) == (0, 0, 0)


def test_too_long_a_question_is_refused_and_one_that_just_fits_is_not(tokenizer: Tokenizer) -> None:
    """Tabs are a token each."""
    model, short = parent(), example_of(question("?"), tokenizer)
    room = model.config.max_seq_len - len(short.prompt) - len(short.completion)
    longest, longer = (question("?" + "\t" * tabs) for tabs in (room, room + 1))
    assert float(measure_likelihoods(model, tokenizer, [longest, question()]).tokens_Q[0]) == len(short.completion)
    with pytest.raises(ValueError, match=r"take 321 tokens, max_seq_len is 320 .*shorten the preamble"):
        measure_likelihoods(model, tokenizer, [longer, question()])
    with pytest.raises(ValueError, match="take 321 tokens"):
        measure_likelihoods(model, tokenizer, [question(), longest], "\n")


def test_no_questions_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no questions to be measured"):
        measure_likelihoods(parent(), tokenizer, [])
