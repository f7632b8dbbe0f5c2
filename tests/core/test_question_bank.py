"""The bank holds exactly what was asked for: distinct, split by content, without what the task bank holds out."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training_core.data.task_bank import HOPS, TaskBankConfig, make_task_bank, read_tasks, world_tasks
from training_core.data.task_bank import document_of as document_of_task
from training_core.reporting import SilentReporter
from training_core.tasks.questions import bank as bank_module
from training_core.tasks.questions import ladder
from training_core.tasks.questions.attempts import completion_text, question_text
from training_core.tasks.questions.bank import (
    Collected,
    QuestionBank,
    QuestionBankConfig,
    make_question_bank,
    open_bank,
    without_frame,
)
from training_core.tasks.questions.ladder import (
    NEW_WORDINGS,
    cell_of,
    cells,
    content_of,
    in_new_wording,
    make,
    split_of,
    variant,
)
from training_core.tasks.questions.primitives import canonical
from training_core.tasks.questions.question import LEVELS, Provenance, Question, deduplicate, normalise_prompt
from training_core.world.config import WorldConfig, size_of
from training_core.world.holdout import split_of as split_of_world
from training_core.world.scenes import families
from training_core.world.tasks import document_of, is_about_world

SMALL = {"train_per_level": 40, "held_out_per_level": 20}
FILES = {"train.jsonl", "validation.jsonl", "test.jsonl", "bank.json", "avoided.json"}


def build(out: Path, frontier: tuple[Question, ...] = (), collected: Collected | None = None, **changes: Any) -> Any:
    """Metadata, bank and summary."""
    avoid = changes.pop("avoid", ())
    out.mkdir(exist_ok=True)
    config = QuestionBankConfig(**SMALL | changes)
    metadata = make_question_bank(config, out, SilentReporter(), avoid, frontier, collected)
    return metadata, open_bank(out), json.loads((out / "bank.json").read_text())


def everything(bank: QuestionBank) -> list[Question]:
    return [*bank.test, *bank.validation, *bank.train]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, QuestionBank, Any]:
    made: tuple[Any, QuestionBank, Any] = build(tmp_path_factory.mktemp("bank"))
    return made


def bought(level: int, number: int, prompt: str = "A shop sold {} books and then {} more. How many?") -> Question:
    asked = Provenance("frontier", "lab/one", number, "a" * 64, ("lab/two", "lab/three"), 0.001)
    text = prompt.format(100 * level + number, level)
    return Question(level, "arithmetic", text, str(101 * level + number), asked, "agreement")


def test_exact_numbers_and_levels(small: tuple[Any, QuestionBank, Any]) -> None:
    metadata, bank, summary = small
    for split, size in (("train", 40), ("validation", 20), ("test", 20)):
        questions = getattr(bank, split)
        assert Counter(question.level for question in questions) == dict.fromkeys(LEVELS, size)
        assert metadata[f"questions_{split}"] == 10 * size
        for level in LEVELS:
            families = Counter(question.family for question in questions if question.level == level)
            assert summary["levels"][split][str(level)] == families
    for level in LEVELS:
        assert {cell.name for cell in cells(level)} == {q.provenance.name for q in bank.train if q.level == level}
    assert summary["sources"] == {"generator": 400}
    assert (summary["spent_usd"], summary["note"], bank.spent_usd, bank.note) == (0.0, "", 0.0, "")
    assert metadata["note"] == "all questions come from generators"


def test_splits_share_no_content_and_hold_no_duplicate(small: tuple[Any, QuestionBank, Any]) -> None:
    _, bank, _ = small
    contents = {split: [content_of(q) for q in getattr(bank, split)] for split in ("train", "validation", "test")}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(contents[one]) & set(contents[other])
    for split in ("validation", "test"):
        assert len(set(contents[split])) == len(contents[split])
        assert all(split_of(question) == split for question in getattr(bank, split))
    whole = everything(bank)
    assert deduplicate(whole).kept == tuple(whole)


def test_every_question_can_be_made_again(small: tuple[Any, QuestionBank, Any]) -> None:
    _, bank, _ = small
    by_name = {(cell.level, cell.name): cell for level in LEVELS for cell in cells(level)}
    for question in everything(bank):
        assert make(by_name[question.level, question.provenance.name], question.provenance.seed) == question


def test_the_same_bytes_again_and_others_from_another_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 17), ("b", 17), ("c", 18)):
        build(tmp_path / name, seed=seed)
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "train.jsonl").read_bytes() != (tmp_path / "c" / "train.jsonl").read_bytes()


def test_what_the_task_bank_holds_out_does_not_come(tmp_path: Path) -> None:
    make_task_bank(TaskBankConfig(train_per_family=20), tmp_path, SilentReporter())
    avoid = [task.prompt for split in ("validation", "test") for task in read_tasks(tmp_path, split)]
    sums = {canonical(without_frame(prompt)) for prompt in avoid if re.match(r"Question: \d+ [+-]", prompt)}
    assert len(sums) > 300
    free, held = (build(tmp_path / name, avoid=texts)[1] for name, texts in (("free", ()), ("held", avoid)))
    assert len({content_of(question) for question in everything(free)} & sums) >= 5
    assert not {content_of(question) for question in everything(held)} & sums
    assert sums <= held.avoided
    assert not free.avoided
    two_digits = next(cell for cell in cells(5) if cell.task == "sum")
    near = [q for seed in range(2000) if content_of(q := make(two_digits, seed)) in sums]
    assert near
    base = next(q for q in held.train if q.provenance.name == two_digits.name)
    fresh = [content_of(variant(base, seed, held.avoided)) for seed in range(600)]
    assert not set(fresh) & sums
    assert set(content_of(variant(base, seed)) for seed in range(600)) & sums


def test_small_contents_are_worded_again_for_training_alone(tmp_path: Path) -> None:
    """There are 55 sums of two digits: many are trained on in several wordings, and none of those is held out."""
    _, bank, _ = build(tmp_path, train_per_level=150)
    sums = [question for question in bank.train if question.provenance.name == "digit_sum-2"]
    contents = Counter(content_of(question) for question in sums)
    assert len(contents) <= 45
    assert max(contents.values()) >= 2
    assert len({question.prompt for question in sums}) == len(sums)
    assert max(Counter(content_of(question) for question in bank.test).values()) == 1


def test_frontier_questions_take_the_place_of_generated_ones(tmp_path: Path) -> None:
    frontier = tuple(bought(level, number) for level in (1, 4) for number in range(50 if level == 4 else 3))
    collected = Collected(0.25, "$0.25 of $5", "the cap is reached", {"no program": 2}, {"lab/two": (5, 4)})
    metadata, bank, summary = build(tmp_path, frontier, collected, source="both")
    sources = Counter((q.level, q.provenance.source) for q in bank.train)
    assert (sources[1, "frontier"], sources[1, "generator"]) == (3, 37)
    assert (sources[4, "frontier"], sources[4, "generator"]) == (40, 0)
    assert [q for q in bank.train if q.provenance.source == "frontier"] == [*frontier[:43]]
    assert {q.provenance.source for q in (*bank.validation, *bank.test)} == {"generator"}
    assert (summary["note"], summary["spent_usd"], summary["account"]) == ("the cap is reached", 0.25, "$0.25 of $5")
    assert summary["rejected"]["no program"] == 2
    assert summary["judged"] == {"lab/two": [5, 4]}
    assert metadata["frontier_questions"] == 43
    assert metadata["note"] == "the cap is reached"
    assert (bank.spent_usd, bank.note) == (0.25, "the cap is reached")


def test_frontier_alone(tmp_path: Path) -> None:
    settings = {"source": "frontier", "frontier_per_level": 12}
    frontier = tuple(bought(level, number) for level in LEVELS for number in range(12))
    _, bank, _ = build(tmp_path / "whole", frontier, **settings)
    assert Counter(q.level for q in bank.train) == dict.fromkeys(LEVELS, 12)
    assert {q.provenance.source for q in bank.train} == {"frontier"}
    assert len(bank.test) == 200
    says = r"level 3 has 11 verified frontier questions, not 12 \(no credit\): ask for fewer \(frontier_per_level\)"
    with pytest.raises(ValueError, match=says):
        build(
            tmp_path / "part", tuple(q for q in frontier if q != bought(3, 5)), Collected(note="no credit"), **settings
        )
    assert not list((tmp_path / "part").iterdir())


def test_no_held_out_question_asks_for_the_sum_of_a_frontier_question(tmp_path: Path) -> None:
    _, plain, _ = build(tmp_path / "plain")
    sums = [q for q in plain.test if q.provenance.name.startswith("sum-2") or q.provenance.name == "digit_sum-3"]
    assert len(sums) >= 4
    frontier = tuple(
        bought(q.level, n, f"Ada has {found}, exactly so. What is that? {{}} {{}}")
        for n, q in enumerate(sums)
        for found in [re.findall(r"\d+(?: [+-] \d+)+", q.prompt)[0]]
    )
    _, bank, _ = build(tmp_path / "bought", frontier, source="both")
    assert {content_of(q) for q in sums} <= {content_of(q) for q in plain.test}
    assert not {content_of(q) for q in sums} & {content_of(q) for q in (*bank.test, *bank.validation)}


def test_a_level_with_too_few_contents_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {level: [c for c in cells(level) if c.name == "digit_sum-2"] or cells(level) for level in LEVELS}
    monkeypatch.setattr(bank_module, "cells", lambda level: only[level])
    with pytest.raises(
        ValueError, match=r"level 3 gives \d distinct test questions, not 20: ask for fewer \(train_per"
    ):
        build(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_earlier_bank_stays_when_the_next_one_fails(tmp_path: Path) -> None:
    build(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="frontier questions"):
        build(tmp_path, source="frontier")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_bank_names_the_line(tmp_path: Path) -> None:
    build(tmp_path)
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join([*lines[:3], lines[3][:40], *lines[4:]]))
    with pytest.raises(ValueError, match=r"test\.jsonl, line 4"):
        open_bank(tmp_path)


WORLD = WorldConfig(vocabulary=220, variety=0.25, pronouns=0.15)
MIXED = {"world": WORLD, "world_shares": [1.0] * 2 + [0.0] * 2 + [0.8] * 6}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, QuestionBank, Any]:
    made: tuple[Any, QuestionBank, Any] = build(tmp_path_factory.mktemp("mixed"), **MIXED)
    return made


def test_levels_have_their_share_of_the_world(mixed: tuple[Any, QuestionBank, Any]) -> None:
    metadata, bank, summary = mixed
    assert bank.world == WORLD
    assert metadata["world_questions"] == 80 * (2 + 0.8 * 6)
    for split, size in (("train", 40), ("validation", 20), ("test", 20)):
        questions = getattr(bank, split)
        assert Counter(q.level for q in questions) == dict.fromkeys(LEVELS, size)
        for level, share in zip(LEVELS, MIXED["world_shares"], strict=True):
            about_world = [q for q in questions if q.level == level and is_about_world(q)]
            assert len(about_world) == share * size
            kinds = set(families(size_of(level)))
            assert {q.family for q in about_world} <= kinds
            assert len({q.family for q in about_world}) >= (min(len(kinds), 4) if share else 0)
    first = [q for level in range(5, 11) for q in [q for q in bank.test if q.level == level][:10]]
    assert 0.6 < sum(map(is_about_world, first)) / len(first) < 0.95, "the first few are a sample of all"
    assert summary["rejected"].get("near", 0) < 20, "stories look alike and are no duplicates"


def test_the_world_s_questions_are_those_of_its_documents(mixed: tuple[Any, QuestionBank, Any]) -> None:
    """Prompt and completion are, to the letter, what training text has; a quarter has a worked solution (3 sigma)."""
    about_world = [q for q in everything(mixed[1]) if is_about_world(q)]
    for question in about_world:
        made = document_of(WORLD, question)
        (asked,) = made.questions
        assert made.text == question_text(question) + completion_text(question)
        assert (question.answer, question.family) == (asked.word, asked.family)
        assert size_of(question.level).hops == asked.hops
    solved, count = sum(bool(q.solution) for q in about_world), len(about_world)
    assert abs(solved / count - WORLD.solution_share) < 3 * (WORLD.solution_share * 0.75 / count) ** 0.5


def test_the_world_s_splits_share_no_content(mixed: tuple[Any, QuestionBank, Any]) -> None:
    """Not even with the stories that the suite asks about."""
    _, bank, _ = mixed
    contents = {
        split: [document_of(WORLD, q).fingerprint for q in getattr(bank, split) if is_about_world(q)]
        for split in ("train", "validation", "test")
    }
    asked = {
        document_of_task(task, WORLD).fingerprint
        for family in HOPS
        for task in world_tasks(TaskBankConfig(world=WORLD), family, 40, "test")
    }
    contents["suite"] = [*asked]
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"), ("train", "suite")):
        assert not set(contents[one]) & set(contents[other])
    for split, found in contents.items():
        fractions = {split_of_world(content, WORLD.validation_fraction, WORLD.test_fraction) for content in found}
        assert fractions == {"test" if split == "suite" else split}
    for split in ("validation", "test"):
        assert len(set(contents[split])) == len(contents[split])


@pytest.mark.parametrize("bank_of", ["small", "mixed"])
def test_some_wordings_are_held_out(bank_of: str, request: pytest.FixtureRequest) -> None:
    """About a fifth of the held-out questions is worded as no training question is; three sigma of 200 draws."""
    _, bank, summary = request.getfixturevalue(bank_of)
    assert not any(map(in_new_wording, bank.train))
    for split in ("validation", "test"):
        new = [q for q in getattr(bank, split) if in_new_wording(q)]
        assert abs(len(new) / 200 - NEW_WORDINGS) < 3 * (NEW_WORDINGS * (1 - NEW_WORDINGS) / 200) ** 0.5
        assert summary["new_wordings"][split] == len(new)
        assert len({q.level for q in new}) >= 8


def test_every_kind_comes_in_several_wordings(tmp_path: Path) -> None:
    """Kind and wording are drawn independently: each cell of a level has all of its training wordings."""
    _, bank, _ = build(tmp_path, train_per_level=200)
    found: dict[tuple[int, str], set[str]] = defaultdict(set)
    for question in bank.train:
        found[question.level, question.provenance.name].add(wording_of(question))
    for level in LEVELS:
        for cell in cells(level):
            assert found[level, cell.name] == set(cell.wordings[:-1]), cell.name


def wording_of(question: Question) -> str:
    """The wording that gives the prompt when the item of the seed is put in."""
    cell = cell_of(question)
    assert cell is not None
    parts = ladder._clear_item(cell, question.provenance.seed).parts
    (found,) = [wording for wording in cell.wordings if wording.format_map(parts) == question.prompt]
    return found


def test_variants_of_the_world_s_questions(mixed: tuple[Any, QuestionBank, Any]) -> None:
    _, bank, _ = mixed
    for question in [q for q in bank.train if is_about_world(q)][:40]:
        others = [variant(question, seed, bank.avoided, bank.world) for seed in range(5)]
        assert len({other.prompt for other in others if other} | {question.prompt}) == 6
        for other in others:
            assert other is not None
            assert (other.level, other.family) == (question.level, question.family)
            made = document_of(WORLD, other)
            assert split_of_world(made.fingerprint, WORLD.validation_fraction, WORLD.test_fraction) == "train"
            assert made.text == question_text(other) + completion_text(other)
    with pytest.raises(ValueError, match="not made by a world with these settings"):
        variant(question, 1)


def test_normal_prompts_differ(small: tuple[Any, QuestionBank, Any]) -> None:
    _, bank, _ = small
    prompts = [normalise_prompt(question.prompt) for question in everything(bank)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frontier_models": []}, "at least one model"),
        ({"frontier_models": ["a", "a"], "frontier_prices": [1.0] * 4}, "none twice"),
        ({"frontier_models": ["a", "b"]}, "two prices for each of the 2 frontier_models, .* got 6 numbers"),
        ({"held_out_per_level": 5}, "greater than or equal to 10"),
        ({"source": "web"}, "generators"),
        ({"world_shares": [0.5] * 9}, "at least 10 items"),
        ({"world_shares": [0.5] * 9 + [1.5]}, r"one share in \[0, 1\] for each of the ten levels, got 1.5"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        QuestionBankConfig(**changes)
