"""Attempts of a model that has learned one question by heart: hints, a tool's answer in the text, what is learned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer

from forge_resources.sandbox import open_sandbox
from tests.core.small_data import SHAPE
from training_core.data.batches import TrainingData
from training_core.data.tokenizer import load_tokenizer
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig
from training_core.phases.p5_curriculum.practice import examples_of
from training_core.tasks.questions.attempts import (
    Answerer,
    answer_in,
    completion_text,
    encode_completion,
    question_text,
)
from training_core.tasks.questions.question import Provenance, Question
from training_core.tasks.questions.sft_objective import Example, LessonObjective
from training_core.tasks.questions.tools import ToolBox


def question(prompt: str, answer: str, solution: str = "") -> Question:
    return Question(
        1, "arithmetic", prompt, answer, Provenance("generator", "by hand", 1, "0" * 64), "exact", "", solution
    )


WORKED = question("17 + 25 = ?", "42", "<<17+25=42>>")
PLAIN = question("Copy: a b", "a b")
CODED = question("How many a in banana?", "3", '<py>print("banana".count("a"))</py><out>3</out>')


@pytest.fixture(scope="module")
def tools() -> Iterator[ToolBox]:
    with open_sandbox("embedded") as sandbox:
        yield ToolBox(sandbox)


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, object]) -> Tokenizer:
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])  # type: ignore[arg-type]
    return load_tokenizer(data.tokenizer_json)


@pytest.fixture(scope="module")
def learned(tokenizer: Tokenizer) -> Cognate:
    """A model that was trained on the three questions until it knows them by heart."""
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=tokenizer.get_vocab_size(), **SHAPE | {"max_seq_len": 160, "window": 96}))  # type: ignore[arg-type]
    examples = []
    for each in (WORKED, PLAIN, CODED):
        ids, roles = encode_completion(tokenizer, each)
        prompt = tuple(tokenizer.encode(question_text(each)).ids)
        examples.append(Example(prompt, tuple(ids), tuple(role != "tool" for role in roles)))
    objective, optimizer = LessonObjective(examples), MuGrokfast(model, OptimizerConfig(muon_lr=0.02, adamw_lr=0.01))
    for _ in range(120):
        result = objective(model, torch.arange(3), None, torch.Generator())
        result.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
    assert result.loss.item() < 0.2
    return model.eval()


def test_tools_answer_inside_the_text(learned: Cognate, tokenizer: Tokenizer, tools: ToolBox) -> None:
    """The tools' tokens were never learned, so that the right text shows that they were put in, and read."""
    answerer = Answerer(learned, tokenizer, tools, max_tokens=80)
    worked, plain, coded = answerer.attempt([WORKED, PLAIN, CODED], torch.Generator())
    for attempt in (worked, plain, coded):
        assert attempt.text == completion_text(attempt.question)
        assert attempt.right
        assert attempt.answer == attempt.question.answer
        assert attempt.completion_ids[-1] == 0
        assert attempt.num_tokens == len(attempt.prompt_ids) + len(attempt.completion_ids)
    assert [(c.tool, c.input, c.output, c.status) for c in worked.calls] == [("calculator", "17+25", "42", "ok")]
    assert [(c.tool, c.output) for c in coded.calls] == [("python", "3")]
    assert not plain.calls
    put_in = [i for i, role in zip(worked.completion_ids, worked.roles, strict=True) if role == "tool"]
    assert tokenizer.decode(put_in) == "42>>"
    assert set(worked.roles) == {"own", "tool"}
    assert all((p < 0) == (r == "own") for p, r in zip(worked.log_probs, worked.roles, strict=True))
    (example,) = examples_of([worked])
    assert example.learned == tuple(role != "tool" for role in worked.roles)


def test_log_probs_are_those_of_the_parallel_form(learned: Cognate, tokenizer: Tokenizer, tools: ToolBox) -> None:
    answerer = Answerer(learned.double(), tokenizer, tools, max_tokens=20)
    (attempt,) = answerer.attempt([WORKED], torch.Generator().manual_seed(1), temperature=1.0)
    row = torch.tensor([[0, *attempt.prompt_ids, *attempt.completion_ids]])
    with torch.no_grad():
        log_p = learned(row[:, :-1]).logits[0].log_softmax(-1)
    start = len(attempt.prompt_ids)
    for place, (token, role) in enumerate(zip(attempt.completion_ids, attempt.roles, strict=True)):
        if role == "own":
            assert attempt.log_probs[place] == pytest.approx(float(log_p[start + place, token]), abs=1e-9)
    learned.float()


def test_hints_show_more_and_more_and_are_never_in_the_prompt(
    learned: Cognate, tokenizer: Tokenizer, tools: ToolBox
) -> None:
    answerer = Answerer(learned, tokenizer, tools, max_tokens=80)
    attempts = answerer.attempt([CODED] * 4, torch.Generator(), hints=[0, 1, 2, 3])
    given = [attempt.given for attempt in attempts]
    assert given[0] == ""
    assert all(later.startswith(earlier) and len(later) > len(earlier) for earlier, later in pairwise(given))
    assert given[3] == completion_text(CODED)
    assert len({attempt.prompt_ids for attempt in attempts}) == 1
    assert all(attempt.right and attempt.text == completion_text(CODED) for attempt in attempts)
    assert attempts[3].roles.count("own") == 0
    assert [attempt.hint for attempt in attempts] == [0, 1, 2, 3]


def test_hints_are_thirds_rounded_up(learned: Cognate, tokenizer: Tokenizer, tools: ToolBox) -> None:
    """Of the tokens before the end; the last of them is left to write, and a tool call is shown with its answer."""
    answerer = Answerer(learned, tokenizer, tools, max_tokens=1)
    shown: dict[int, list[int]] = {}
    for length in (3, 4, 5, 6):  # tokens of " ab", a letter each, and no end
        letters = question("Copy", "@#%^&"[: length - 1])
        ids, roles = encode_completion(tokenizer, letters)
        assert (len(ids), set(roles)) == (length + 1, {"hint"})
        attempts = answerer.attempt([letters] * 4, torch.Generator(), hints=[0, 1, 2, 3])
        shown[length] = [attempt.roles.count("hint") for attempt in attempts]
    assert shown == {3: [0, 1, 2, 4], 4: [0, 2, 3, 5], 5: [0, 2, 4, 6], 6: [0, 2, 4, 7]}


def test_every_hint_on_a_single_token_is_a_demonstration(
    learned: Cognate, tokenizer: Tokenizer, tools: ToolBox
) -> None:
    answerer = Answerer(learned, tokenizer, tools, max_tokens=1)
    letter = next(token[1:] for token in sorted(tokenizer.get_vocab()) if token[0] == "\u0120" and token[1:].isalpha())
    short = question("Copy", letter)
    assert len(encode_completion(tokenizer, short)[0]) == 2
    attempts = answerer.attempt([short] * 4, torch.Generator(), hints=[0, 1, 2, 3])
    assert [attempt.hint for attempt in attempts] == [0, 3, 3, 3]
    assert all(attempt.right for attempt in attempts[1:])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 42", "42"),
        (" <<1+1=2>> The answer is 2", "2"),
        (" The answer is 3. No, The answer is 4", "4"),
        (" <<17+25=42>> 42", "42"),
        (" <py>print(1)</py><out>1</out> 1", "1"),
        (" <<1+1=", "<<1+1="),
        ("", ""),
    ],
)
def test_the_answer_in_a_completion(text: str, answer: str) -> None:
    assert answer_in(text) == answer


def test_an_unlearned_model_is_wrong_and_bad_input_is_refused(tokenizer: Tokenizer, tools: ToolBox) -> None:
    torch.manual_seed(1)
    model = Cognate(CognateConfig(vocab_size=tokenizer.get_vocab_size(), **SHAPE)).eval()  # type: ignore[arg-type]
    answerer = Answerer(model, tokenizer, tools, max_tokens=8)
    assert not any(attempt.right for attempt in answerer.attempt([PLAIN] * 3, torch.Generator(), temperature=1.0))
    with pytest.raises(ValueError, match="a hint is one of 0, 1, 2, 3, got 4"):
        answerer.attempt([PLAIN], torch.Generator(), hints=[4])
    with pytest.raises(ValueError, match="exceed max_seq_len = 64"):
        answerer.attempt([CODED], torch.Generator(), preamble="Think of the others first. " * 4)
