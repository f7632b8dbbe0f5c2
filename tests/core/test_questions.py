"""Questions: what may be one, what counts as the same answer, what counts as the same question."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_core.tasks.questions.question import (
    NEAR_DUPLICATE,
    Provenance,
    Question,
    deduplicate,
    jaccard,
    normalise_answer,
    normalise_prompt,
    read_questions,
    write_questions,
)

DIGEST = "0" * 64
GENERATED = Provenance("generator", "chain_sum", 3, DIGEST)
ASKED = Provenance("frontier", "lab/one", 3, DIGEST, ("lab/two", "lab/three"), 0.25)


def question(prompt: str = "What is 2 + 2?", answer: str = "4", **changes: Any) -> Question:
    fields: dict[str, Any] = {"level": 1, "family": "arithmetic", "provenance": GENERATED, "check": "exact"}
    return Question(prompt=prompt, answer=answer, **fields | changes)


def test_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    questions = [
        question("Größe \N{SNOWMAN}\nof 2?", "½"),
        question(provenance=ASKED, check="agreement", level=10),
        question(provenance=ASKED, check="program", program="print(2 + 2)\n"),
        question(solution='<<2+2=4>> <py>print("a"*2)\nprint(4)</py><out>4</out>'),
    ]
    assert write_questions(path, iter(questions)) == 4
    assert read_questions(path) == questions
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]


def test_a_question_without_a_solution_is_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    write_questions(path, [question()])
    record = json.loads(path.read_text())
    assert record.pop("solution") == ""
    path.write_text(json.dumps(record))
    assert read_questions(path) == [question()]


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    write_questions(path, [question()])
    with pytest.raises(ZeroDivisionError):
        write_questions(path, (question(level=1 // n) for n in (1, 0)))
    assert read_questions(path) == [question()]
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"level": "1"}, "level"),
        ({"level": 11}, r"level must lie in \[1, 10\], got 11"),
        ({"level": True}, "level"),
        ({"note": "x"}, "note"),
        ({"answer": " "}, "answer must not be empty"),
        ({"check": "guess"}, "check"),
        ({"provenance": {"source": "generator", "name": "x", "seed": 1, "settings": DIGEST, "more": 1}}, "more"),
        ({"provenance": {"source": "generator", "name": "x", "seed": 1}}, "settings"),
    ],
)
def test_what_is_read_is_checked(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "questions.jsonl"
    write_questions(path, [question()])
    sound = path.read_text()
    path.write_text(sound + json.dumps(json.loads(sound) | change) + "\n")
    with pytest.raises(ValueError, match=f"questions.jsonl, line 2: .*{says}"):
        read_questions(path)
    path.write_text(sound + sound[:30])
    with pytest.raises(ValueError, match="line 2"):
        read_questions(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"check": "program", "provenance": ASKED}, "a program belongs to the check 'program'"),
        ({"program": "print(4)"}, "a program belongs to the check 'program'"),
        ({"check": "exact", "provenance": ASKED}, "'exact' is what generators have"),
        ({"check": "agreement"}, "'exact' is what generators have"),
        ({"prompt": "bell \a"}, "control characters"),
        ({"answer": "\ud800"}, "control characters"),
        ({"family": ""}, "family must not be empty"),
        ({"solution": "2\x002"}, "solution must be text without control characters"),
        ({"check": "agreement", "provenance": Provenance("frontier", "a", 0, DIGEST, ("a", "b"))}, "two other models"),
    ],
)
def test_the_check_must_be_borne_out(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        question(**changes)


def test_provenance_is_checked() -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        Provenance("generator", "x", 0, "abc")
    with pytest.raises(ValueError, match="at least 0, got nan"):
        Provenance("frontier", "x", 0, DIGEST, (), float("nan"))
    with pytest.raises(ValueError, match="name the generator"):
        Provenance("generator", "", 0, DIGEST)


@pytest.mark.parametrize(
    ("spellings", "normal"),
    [
        (["4", " 4.", "4.0", "+4", "\uff14", "4.000", "8/2", "$4$", "\\boxed{4}", "$\\boxed{4}$", "**4**", '"4"'], "4"),
        (["-3", "\u22123", "-3.0", "-6/2"], "-3"),
        (["1,234.5", "1234.5", "2469/2", "+1,234.50"], "2469/2"),
        ([".5", "0.5", "1/2", "2/4"], "1/2"),
        (["Yes", "yes.", " YES! ", "'yes'"], "yes"),
        (["New  York", "new york", "\u201cNew York\u201d"], "new york"),
        (["2\u00b3"], "2\u00b3"),
        (["1\u00bd"], "1\u00bd"),
        (["1,23"], "1,23"),
        (["1e3"], "1e3"),
        (["1/0"], "1/0"),
        (["50%"], "50%"),
        (["12 apples"], "12 apples"),
        (["..."], "..."),
    ],
)
def test_answers_that_mean_the_same(spellings: list[str], normal: str) -> None:
    assert {normalise_answer(text) for text in spellings} == {normal}


@given(st.fractions(), st.text())
def test_normal_forms_are_fixed_points(value: Fraction, text: str) -> None:
    assert normalise_answer(str(value)) == str(value)
    assert normalise_answer(normalise_answer(text)) == normalise_answer(normalise_answer(normalise_answer(text)))
    assert normalise_prompt(normalise_prompt(text)) == normalise_prompt(normalise_prompt(normalise_prompt(text)))


@given(st.integers(), st.integers())
def test_different_numbers_stay_different(a: int, b: int) -> None:
    assert (normalise_answer(f"{a:,}") == normalise_answer(f"{b}.0")) == (a == b)


def test_jaccard_by_hand() -> None:
    # abcde bcdef | bcdef cdefg: one of three
    assert jaccard("abcdef", "BCDEFG") == pytest.approx(1 / 3)
    assert jaccard("same text", " Same  text") == 1.0
    assert jaccard("abc", "abd") == 0.0


def test_exact_repetition_contradiction_and_avoidance() -> None:
    first, second = question(), question(" what is  2 + 2?", "4.0")
    third, contrary = question("Is it so?", "yes"), question("is it so?", "no")
    held_out = question("What is 9 + 9?", "18")
    result = deduplicate([first, third, second, contrary, held_out], avoid=["what is 9 + 9?"])
    assert result.kept == (first,)
    assert (result.repeated, result.near, result.contradictory, result.avoided) == (1, 0, 2, 1)


def test_near_duplicates_have_the_same_numbers_signs_and_answer() -> None:
    story = "Ada buys {} apples and then she buys another {} {} for her friends. How many does she have in total?"
    one = question(story.format(3, 4, "apples"), "7")
    reworded = question(story.format(3, 4, "pears"), "7")
    numbers = question(story.format(3, 5, "apples"), "8")
    swapped = question(story.format(4, 3, "apples"), "7")
    answer = question(story.format(3, 4, "plums"), "3")
    assert jaccard(one.prompt, reworded.prompt) >= NEAR_DUPLICATE
    assert jaccard(one.prompt, numbers.prompt) >= NEAR_DUPLICATE
    result = deduplicate([one, reworded, numbers, swapped, answer])
    assert result.kept == (one, numbers, swapped, answer)
    assert result.near == 1
    signs = [question(f"Compute the following value please: 17 {sign} 5", "12") for sign in "+-*/"]
    assert deduplicate(signs).kept == tuple(signs)
    assert deduplicate([one, reworded], threshold=1.0).near == 0


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_the_prefix_filter_misses_no_pair(threshold: float) -> None:
    """Against all pairs compared one by one, on texts made to be similar."""
    draw = random.Random(5)
    words = ["red", "blue", "green", "amber", "stone", "river", "cloud", "maple"]
    texts = []
    for _ in range(120):
        base = draw.choice(texts).split() if texts and draw.random() < 0.6 else [draw.choice(words) for _ in range(9)]
        base[draw.randrange(len(base))] += draw.choice([" ", "s", " " + draw.choice(words)])
        texts.append(" ".join(base))
    texts = list(dict.fromkeys(texts))
    kept: list[str] = []
    for text in texts:
        if not any(jaccard(text, other) >= threshold for other in kept):
            kept.append(text)
    result = deduplicate([question(text, "same") for text in texts], threshold=threshold)
    assert [q.prompt for q in result.kept] == kept
    pairs = sum(jaccard(a, b) >= threshold for a, b in combinations(texts, 2))
    assert pairs > 0
    assert len(kept) < len(texts)


def test_a_threshold_is_a_similarity() -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 0"):
        deduplicate([], threshold=0.0)
