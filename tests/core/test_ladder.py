"""Every question of the ladder is right, has one answer, can be made again, and keeps to its split."""

from __future__ import annotations

import ast
import contextlib
import io
import operator
import re
import string
import zlib
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from training_core.data import task_bank as tasks
from training_core.data.task_bank import reasoning_gym
from training_core.tasks.questions import gym_items, ladder
from training_core.tasks.questions.gym_items import GENERATORS, UnclearItemError, gym_dataset
from training_core.tasks.questions.ladder import (
    Cell,
    cell_of,
    cells,
    content_of,
    in_new_wording,
    is_right,
    make,
    split_of,
    variant,
)
from training_core.tasks.questions.primitives import PRIMITIVES, canonical
from training_core.tasks.questions.question import LEVELS, Provenance, Question, normalise_answer
from training_core.tasks.questions.tools import MAX_OUTPUT_CHARS, calculate, segments

CELLS = [cell for level in LEVELS for cell in cells(level)]
GYM_CELLS = [cell for cell in CELLS if cell.task in GENERATORS]
OWN_CELLS = [cell for cell in CELLS if cell.task in PRIMITIVES]
SEEDS = range(40)
CALCULATION = re.compile(r"<<(.+?)=([^=<>]+)>>")
PROGRAM = re.compile(r"<py>(.+?)</py><out>(.*?)</out>", re.DOTALL)


def named(cell: Cell) -> str:
    return f"{cell.level}-{cell.name}"


def entry(cell: Cell, seed: int) -> dict[str, Any]:
    """The item of reasoning-gym behind a question: of the seed, or of the next one with one right answer."""
    dataset = gym_dataset(cell.name, GENERATORS[cell.task].name, cell.settings)
    while True:
        item: dict[str, Any] = dataset[seed]
        with contextlib.suppress(UnclearItemError):
            GENERATORS[cell.task].read(item)
            return item
        seed += ladder._STRIDE


def exact(node: ast.expr) -> Fraction:
    """The value of an expression in exact fractions, by the grammar of Python."""
    match node:
        case ast.Constant(value=value):
            return Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -exact(operand)
        case ast.BinOp(left=left, op=op, right=right):
            apply = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
            result: Fraction = apply[type(op)](exact(left), exact(right))
            return result
    raise AssertionError(ast.dump(node))


def printed(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return out.getvalue().strip()


def test_ten_levels_of_several_cells_with_several_wordings() -> None:
    assert len({(cell.level, cell.name) for cell in CELLS}) == len(CELLS)
    for level in LEVELS:
        kinds = cells(level)
        assert len(kinds) >= 3
        assert {cell.level for cell in kinds} == {level}
        assert all(len(set(cell.wordings)) >= 3 for cell in kinds)
    tools = Counter(tool for cell in CELLS for tool in ("<<", "<py>") if tool in make(cell, 1).solution)
    assert tools["<<"] >= 10
    assert tools["<py>"] >= 10
    assert not any("<" in make(cell, seed).solution for level in range(1, 5) for cell in cells(level) for seed in SEEDS)
    for level in (0, 11):
        with pytest.raises(ValueError, match=rf"levels lie in \[1, 10\], got {level}"):
            cells(level)


def test_the_first_levels_are_short_and_wide() -> None:
    for level in (1, 2, 3):
        made = [make(cell, seed) for cell in cells(level) for seed in range(400)]
        assert max(len(question.prompt) for question in made) <= 45
        assert max(len(question.answer) for question in made) <= 12
        assert len({content_of(question) for question in made}) >= 500


def test_a_task_gets_harder_from_level_to_level() -> None:
    """The same task comes back with settings of which none is lower and one is higher."""
    by_task: dict[str, list[Cell]] = defaultdict(list)
    for cell in CELLS:
        by_task[cell.task].append(cell)
    compared = 0
    for kinds in by_task.values():
        for easier, harder in pairwise(sorted(kinds, key=lambda cell: cell.level)):
            low, high = dict(easier.settings), dict(harder.settings)
            numbers = [(low[name], high[name]) for name in low.keys() & high.keys() if isinstance(low[name], int)]
            if harder.level > easier.level:
                assert all(a <= b for a, b in numbers), (easier, harder)
                assert any(a < b for a, b in numbers) or low.get("of") != high.get("of"), (easier, harder)
                compared += 1
    assert compared >= 12


@pytest.mark.parametrize("cell", CELLS, ids=named)
def test_made_again_from_its_seed(cell: Cell) -> None:
    for seed in (0, 7, 17_000_001):
        question = make(cell, seed)
        assert make(cell, seed) == question
        assert (question.level, question.family, question.check) == (cell.level, cell.family, "exact")
        assert (question.provenance.name, question.provenance.seed) == (cell.name, seed)
        assert cell_of(question) == cell
        again = replace(question, provenance=replace(question.provenance, settings="0" * 64))
        assert cell_of(again) is None
    assert len({make(cell, seed).prompt for seed in range(60)}) > 25


@pytest.mark.parametrize("cell", GYM_CELLS, ids=named)
def test_one_data_set_serves_every_seed(cell: Cell) -> None:
    """Item i of the data set of a cell is the first item of a data set that is made for that seed."""
    gym, settings = reasoning_gym(), dict(cell.settings)
    if "transformation" in settings:
        settings["transformation"] = gym_dataset(cell.name, "word_sorting", cell.settings).config.transformation
    for seed in (0, 3, 12_345):
        own = gym.create_dataset(
            GENERATORS[cell.task].name, size=1, seed=zlib.crc32(cell.name.encode()) + seed, **settings
        )[0]
        assert own["question"] == entry(cell, seed)["question"]
        assert own["answer"] == entry(cell, seed)["answer"]


ORACLES = {
    "copy_letters": lambda x, **_: x,
    "copy_words": lambda x, **_: x,
    "first": lambda x, **_: x.split()[0],
    "last": lambda x, **_: x.rsplit(" ", 1)[-1],
    "sort": lambda x, **_: " ".join(sorted(x.split())),
    "tally": lambda x, c, **_: str(sum(letter == c for letter in x.split())),
    "length": lambda x, **_: str(len(x.split())),
    "reverse": lambda x, **_: x[::-1],
    "after": lambda n, **_: str(int(n) + 1),
    "before": lambda n, **_: str(int(n) - 1),
    "larger": lambda a, b, **_: a if int(a) > int(b) else b,
    "digit_sum": lambda x, **_: str(sum(map(int, x.split(" + ")))),
    "missing": lambda a, c: str(int(c) - int(a)),
    "count_on": lambda x, s, **_: str(int(x.split()[-1]) + int(s)),
    "equation": lambda e, v, **_: str(next(x for x in range(1, 100) if _holds(e, v, x))),
}


def _holds(equation: str, name: str, value: int) -> bool:
    left, right = re.sub(rf"^(\d+) {name}", rf"\1*{name}", equation).replace(name, str(value)).split(" = ")
    return exact(ast.parse(left, mode="eval").body) == Fraction(right)


@pytest.mark.parametrize("cell", OWN_CELLS, ids=named)
def test_answers_of_our_own_tasks(cell: Cell) -> None:
    """Against the answer that the parts of the wording alone imply; and every part stands in the prompt."""
    for seed in SEEDS:
        item, question = cell.item(seed), make(cell, seed)
        assert question.answer == ORACLES[cell.task](**item.parts)
        assert all(part in question.prompt for part in item.parts.values() if len(part) > 1)


def test_running_sums_by_hand() -> None:
    cell = next(cell for cell in CELLS if cell.name == "digit_sum-3")
    for seed in SEEDS:
        question = make(cell, seed)
        a, b, c = map(int, re.findall(r"\d+", cell.item(seed).parts["x"]))
        assert question.solution == f"{a}+{b}={a + b} {a + b}+{c}={a + b + c}"


@pytest.mark.parametrize("cell", CELLS, ids=named)
def test_every_tool_call_gives_what_stands_behind_it(cell: Cell) -> None:
    for seed in SEEDS:
        question = make(cell, seed)
        calls = [(question.solution.index(m[0]), m) for m in CALCULATION.finditer(question.solution)]
        programs = [(question.solution.index(m[0]), m) for m in PROGRAM.finditer(question.solution)]
        for _, match in calls:
            assert exact(ast.parse(match[1], mode="eval").body) == Fraction(match[2])
            assert calculate(match[1]) == match[2]
        for _, match in programs:
            assert printed(match[1]) == match[2]
            assert len(match[2]) <= MAX_OUTPUT_CHARS
        called = sorted([*calls, *programs], key=lambda pair: pair[0])
        assert bool(called) == ("<" in question.solution)
        if called:
            assert called[-1][1][2] == question.answer
            put_in = [piece for piece, tool in segments(question.solution) if tool]
            assert put_in == [
                f"{m[2]}>>" if m.re is CALCULATION else f"<out>{m[2]}</out>" for _, m in called
            ]  # what training masks


def changed(answer: str) -> list[str]:
    """Answers that are wrong: one character replaced, taken away or added, in front and behind."""
    other = {c: ("7" if c == "3" else "3") if c.isdigit() else "q" if c != "q" else "z" for c in answer}
    replaced = [answer[:i] + other[c] + answer[i + 1 :] for i, c in enumerate(answer) if c.isalnum()]
    return [*replaced, answer[:-1], answer[1:], f"{answer}1", f"1{answer}", f"{answer} or so", f"-{answer}", ""]


@pytest.mark.parametrize("cell", GYM_CELLS, ids=named)
def test_agrees_with_the_score_of_reasoning_gym(cell: Cell) -> None:
    """On right, wrong and slightly wrong answers; other spellings of the right one are compared elsewhere."""
    dataset = gym_dataset(cell.name, GENERATORS[cell.task].name, cell.settings)
    questions = [make(cell, seed) for seed in range(20)]
    rejected = 0
    for seed, question in enumerate(questions):
        item = entry(cell, seed)
        assert is_right(question, str(item["answer"]))
        others = [other.answer for other in questions]
        for answer in [question.answer, *changed(question.answer), *others]:
            ours, theirs = is_right(question, answer), dataset.score_answer(answer, item) == 1.0
            if normalise_answer(answer) == normalise_answer(question.answer) and answer != question.answer:
                assert ours  # the same number, written otherwise: "-0"
                continue
            assert ours == theirs, (question, answer)
            rejected += not ours
    assert rejected > 100


def test_right_however_it_is_spelt() -> None:
    question = make(next(cell for cell in CELLS if cell.task == "sum"), 3)
    for answer in (question.answer, f" {question.answer}.", f"{question.answer}.0", f'"{question.answer}"'):
        assert is_right(question, answer)
    for answer in ("", " ", ".", f"{question.answer} {question.answer}", f"The answer is {question.answer}"):
        assert not is_right(question, answer)


def wording_of(cell: Cell, question: Question) -> str:
    """The wording that gives the prompt when the item of the seed is put in."""
    item = ladder._clear_item(cell, question.provenance.seed)
    (found,) = [wording for wording in cell.wordings if wording.format_map(item.parts) == question.prompt]
    return found


@pytest.mark.parametrize("cell", CELLS, ids=named)
def test_kind_and_wording_do_not_go_together(cell: Cell) -> None:
    """A level asks its kinds in turn, so every seed of a cell is the same modulo their number."""
    kinds = cells(cell.level)
    seeds = range(kinds.index(cell), 60 * len(kinds), len(kinds))
    made = [make(cell, seed) for seed in seeds]
    train = [question for question in made if split_of(question) == "train"]
    assert {wording_of(cell, question) for question in train} == set(cell.wordings[:-1])
    held_out = [wording_of(cell, question) == cell.wordings[-1] for question in made if question not in train]
    assert held_out == [in_new_wording(question) for question in made if question not in train]
    assert not any(map(in_new_wording, train))


@pytest.mark.parametrize("cell", CELLS, ids=named)
def test_variants(cell: Cell) -> None:
    question = make(cell, 5)
    variants = [variant(question, seed) for seed in range(30)]
    for other in variants:
        assert other is not None
        assert content_of(other) != content_of(question)
        assert split_of(other) == split_of(question)
        assert cell_of(other) == cell
        assert wording_of(cell, other) != wording_of(cell, question)
        assert make(cell, other.provenance.seed) == other
    contents = {content_of(other) for other in variants if other}
    assert len(contents) >= (8 if cell.name in ("digit_sum-2", "missing") else 15)
    assert variant(question, 11) == variants[11]
    avoid = frozenset(list(contents)[:5])
    assert all(content_of(other) not in avoid for s in range(30) if (other := variant(question, s, avoid)))


def test_no_variant_where_no_content_is_left() -> None:
    class Everything:
        def __contains__(self, content: object) -> bool:
            return True

    assert variant(make(CELLS[0], 5), 1, Everything()) is None
    asked = Provenance("frontier", "lab/one", 3, "0" * 64, ("lab/two", "lab/three"))
    bought = Question(1, "arithmetic", "What is 17 + 25?", "42", asked, "agreement")
    assert variant(bought, 1) is None
    assert content_of(bought) == "whatis17+25"


def test_a_content_is_in_one_split_in_every_wording() -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    wordings: dict[str, set[str]] = defaultdict(set)
    cell = next(cell for cell in CELLS if cell.name == "digit_sum-2")
    for seed in range(3000):
        question = make(cell, seed)
        key = "+".join(sorted(re.findall(r"\d+", question.prompt)))
        splits[key].add(split_of(question))
        wordings[key].add(question.prompt)
    assert len(splits) == 55  # 4 + 3 and 3 + 4 are one
    assert all(len(found) == 1 for found in splits.values())
    assert min(len(found) for found in wordings.values()) >= 3
    assert {"train", "validation", "test"} == {split for found in splits.values() for split in found}


def test_shares_of_the_splits() -> None:
    contents = {f"copy {a} {b} {c}" for a in string.ascii_lowercase for b in "abcdefgh" for c in "stuvwxyz"}
    counts = Counter(ladder.split_of_content(content) for content in contents)
    total = len(contents)
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        sigma = (share * (1 - share) / total) ** 0.5
        assert abs(counts[split] / total - share) < 4 * sigma


def test_canonical_by_hand() -> None:
    assert canonical("13 + 4 = ?") == canonical("4+13") == "4+13"
    assert canonical("7 * 12") == "7*12"
    assert canonical("9 - 4 =") == "9-4"
    assert canonical("4 - 9 =") == "4-9"
    assert canonical("1 + 2 + 3") == "1+2+3"
    assert canonical("Who likes Tea?") == "wholikestea"


def test_several_who_fit_are_unclear() -> None:
    told = {"question": "Ann likes tea. Bob likes tea. \nWho likes tea? Reply only with a name.", "answer": "Ann"}
    with pytest.raises(UnclearItemError, match="several statements answer 'Who likes tea"):
        gym_items._needle(told)
    one = gym_items._needle(told | {"question": str(told["question"]).replace("Bob likes", "Bob dislikes")})
    assert (one.answer, one.solution) == ("Ann", "Ann likes tea.")


def test_legs_and_plurals() -> None:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    plurals = {gym_items._plural(animal) for animal in ANIMALS}
    assert {
        "butterflies",
        "fireflies",
        "woodlice",
        "leeches",
        "praying mantises",
        "sheep",
        "dogs",
        "cockroaches",
    } <= plurals
    assert "flysnakes" not in plurals
    question = next(make(cell, 2) for cell in CELLS if cell.task == "leg_counting")
    counts = re.findall(r"(\d+) ", question.prompt)
    assert all(f"{count}*" in question.solution for count in counts)


@pytest.mark.parametrize("task", ["needle", "sum"])
def test_contents_are_those_of_the_task_bank(task: str) -> None:
    """What the task bank asks, canonically spelt, is the content of the question about the same item."""
    cell = next(cell for cell in CELLS if cell.task == task)
    family = "needle" if task == "needle" else "arithmetic"
    for seed in SEEDS:
        assert canonical(tasks._question(family, entry(cell, seed))) == content_of(make(cell, seed))
