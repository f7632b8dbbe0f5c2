"""Worked solutions: hand-written examples, and two hundred real tasks a family against an independent evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from training_core.data.task_bank import FAMILIES, GYM_FAMILIES, Task, TaskBankConfig, make_task_bank, read_tasks
from training_core.phases.p3_quiet_star.worked_solutions import (
    MATERIAL,
    cot_prompt,
    material,
    paraphrase,
    worked_solution,
    worked_text,
)
from training_core.reporting import SilentReporter
from training_core.world.grammar import TABLE
from training_core.world.parse import parse, parse_question, sentences


def item(family: str, question: str, answer: str) -> Task:
    return Task(family, "by hand", 0, f"Question: {question}\nAnswer:", answer, (answer, "other"), 0)


SUM = item("arithmetic", "4 - 2 + 7 =", "9")
FACTS = "Al-Hassan likes tea. Bo is fond of the color navy. Bo dislikes tea. "
NEEDLE = item("needle", f"{FACTS}\nWho likes tea?", "Al-Hassan")
SYLLOGISM = "1. All ants are cats\n2. No cats are dogs\n\nDoes it logically follow that:\nNo ants are dogs?"
LOGIC = item("logic", SYLLOGISM, "Yes")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[Task]]:
    """Two hundred tasks a family, with sums of up to six terms of three digits, and forty of each about the world."""
    folder = tmp_path_factory.mktemp("bank")
    config = TaskBankConfig(
        train_per_family=200,
        held_out_per_family=10,
        arithmetic_max_terms=6,
        arithmetic_max_digits=3,
        world_train_per_family=40,
        story_sentences=16,
        story_questions=1,
    )
    make_task_bank(config, folder, SilentReporter())
    tasks = list(read_tasks(folder, "train"))
    return {family: [task for task in tasks if task.family == family] for family in FAMILIES}


def test_by_hand() -> None:
    assert worked_solution(SUM) == "4 - 2 = 2. 2 + 7 = 9."
    assert worked_solution(item("arithmetic", "3 - 9 - 4 + 60 =", "50")) == "3 - 9 = -6. -6 - 4 = -10. -10 + 60 = 50."
    assert worked_solution(item("arithmetic", "-3 + -4 =", "-7")) == "-3 + -4 = -7."
    assert worked_solution(NEEDLE) == "Al-Hassan likes tea."
    assert worked_solution(LOGIC) is None
    assert worked_text(SUM) == "Question: 4 - 2 + 7 =\nAnswer: 4 - 2 = 2. 2 + 7 = 9. The answer is 9"


def test_a_needle_that_two_statements_answer_has_no_solution() -> None:
    assert worked_solution(item("needle", "Al likes tea. Bo likes tea. \nWho likes tea?", "Al")) is None


def test_every_step_of_two_hundred_sums_is_true_and_chained(bank: Mapping[str, list[Task]]) -> None:
    assert len(bank["arithmetic"]) == 200
    lengths = set()
    for task in bank["arithmetic"]:
        solution = worked_solution(task)
        assert solution is not None
        steps = [re.fullmatch(r"(-?\d+) ([+-]) (\d+) = (-?\d+)", s) for s in solution.removesuffix(".").split(". ")]
        terms = re.findall(r"\d+", task.prompt)
        carried = terms[0]
        for step, term in zip(steps, terms[1:], strict=True):
            assert step is not None
            assert (step[1], step[3]) == (carried, term)
            assert {"+": int(step[1]) + int(step[3]), "-": int(step[1]) - int(step[3])}[step[2]] == int(step[4])
            carried = step[4]
        assert carried == task.answer
        lengths.add(len(steps))
    assert lengths == {1, 2, 3, 4, 5}


def test_two_hundred_needles_are_statements_of_their_own_text(bank: Mapping[str, list[Task]]) -> None:
    assert len(bank["needle"]) == 200
    for task in bank["needle"]:
        solution = worked_solution(task)
        assert solution is not None
        text, question = task.prompt.removeprefix("Question: ").removesuffix("\nAnswer:").split("\n")
        assert f" {solution} " in f" {text} "
        assert solution == question.replace("Who", task.answer).replace("?", ".")


def test_logic_has_no_solution(bank: Mapping[str, list[Task]]) -> None:
    assert [worked_solution(task) for task in bank["logic"]] == [None] * 200


@pytest.mark.parametrize("task", [replace(SUM, answer="10"), replace(NEEDLE, answer="Bo")], ids=["sum", "needle"])
def test_a_wrong_answer_is_found(task: Task) -> None:
    with pytest.raises(ValueError, match="the task is wrong"):
        worked_solution(task)


def test_a_needle_that_nobody_answers_is_found() -> None:
    with pytest.raises(ValueError, match="ends in nobody"):
        worked_solution(item("needle", "Al likes tea. Bo likes wine. \nWho likes beer?", "Al"))


def test_other_forms_and_families_are_errors() -> None:
    with pytest.raises(ValueError, match="form of the task bank"):
        worked_solution(item("arithmetic", "4 * 2 =", "8"))
    for function in (worked_solution, paraphrase):
        with pytest.raises(ValueError, match="unknown family 'algebra'"):
            function(item("algebra", "x", "1"))
    with pytest.raises(ValueError, match="this logic task has no worked solution"):
        worked_text(LOGIC)


def test_cot_prompt() -> None:
    assert cot_prompt([SUM, LOGIC, NEEDLE, SUM], 2) == f"{worked_text(SUM)}\n\n{worked_text(NEEDLE)}\n\n"
    with pytest.raises(ValueError, match="only 2 of the tasks"):
        cot_prompt([SUM, LOGIC, NEEDLE], 3)
    with pytest.raises(ValueError, match="at least one"):
        cot_prompt([SUM], 0)


def test_paraphrases_by_hand() -> None:
    prompts = [again.prompt for task in (SUM, NEEDLE, LOGIC) if (again := paraphrase(task)) is not None]
    assert prompts == [
        "What do you get for 4 - 2 + 7?\nAnswer:",
        "Here are some facts:\n- Al-Hassan likes tea\n- Bo is fond of the color navy\n- Bo dislikes tea\n"
        "Name the one who likes tea.\nAnswer:",
        "Suppose this is true:\n- All ants are cats\n- No cats are dogs\n"
        "Can one conclude that no ants are dogs?\nAnswer:",
    ]
    assert paraphrase(item("arithmetic", "4 * 2 =", "8")) is None


def test_the_world_gives_the_facts_that_the_answer_follows_from(bank: Mapping[str, list[Task]]) -> None:
    hops = {"one_hop": 1, "two_hops": 2, "three_hops": 3, "four_hops": 4, "long_story": 1}
    for family, number in hops.items():
        assert len(bank[family]) == 40
        for task in bank[family]:
            solution = worked_solution(task)
            assert solution == task.solution != ""
            assert sum(step.events is not None for step in parse(solution)) == number
            assert worked_text(task) == f"{task.prompt} {solution} The answer is {task.answer}"
            assert worked_text(task) == task.text(worked=True)


def test_thoughts_are_about_two_and_three_hops_where_there_are_any(bank: Mapping[str, list[Task]]) -> None:
    everything = [task for family in FAMILIES for task in bank[family]]
    assert material(everything) == [*bank["two_hops"], *bank["three_hops"]]
    assert material([*bank["arithmetic"], *bank["one_hop"], *bank["long_story"]]) == bank["arithmetic"]
    assert set(MATERIAL) <= set(FAMILIES)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in GYM_FAMILIES])
def test_a_question_about_the_world_is_asked_again_as_no_training_text_asks(
    family: str, bank: Mapping[str, list[Task]]
) -> None:
    for task in bank[family]:
        again = paraphrase(task)
        assert again is not None
        assert replace(again, prompt=task.prompt) == task
        *story, asked = sentences(task.prompt.removeprefix("Question: ").removesuffix("\nAnswer:"))
        assert again.prompt.startswith(f"Question: {' '.join(story)} ")
        reworded = again.prompt.removesuffix("\nAnswer:").removeprefix(f"Question: {' '.join(story)} ")
        query = parse_question(asked)
        assert parse_question(reworded) == query is not None
        openings = {wording.held_out: wording.text.split("{")[0].strip() for wording in TABLE[f"?{query.kind}"]}
        assert reworded.lower().startswith(openings[True].lower())
        assert paraphrase(again) is None
    statement = replace(bank[family][0], prompt="Question: Tom was in the hall.\nAnswer:")
    assert paraphrase(statement) is None


@pytest.mark.parametrize("family", GYM_FAMILIES)
def test_paraphrases_keep_the_facts_and_change_the_form(family: str, bank: Mapping[str, list[Task]]) -> None:
    """Numbers with their signs in order for sums; every word of every statement, in order, for the others."""
    form = {"Question", "Who", "Does", "it", "logically", "follow", "that", "1", "2"}
    new_words = "here are some facts name the one who suppose this is true can one conclude that"
    for task in bank[family]:
        again = paraphrase(task)
        assert again is not None
        assert again.prompt != task.prompt
        assert replace(again, prompt=task.prompt) == task
        if family == "arithmetic":
            assert re.findall(r"[+-]|\d+", again.prompt) == re.findall(r"[+-]|\d+", task.prompt)
            continue
        before = [w.lower() for w in re.findall(r"[^\s.?:]+", task.prompt) if w not in form]
        after = [w.lower() for w in re.findall(r"[^\s.?:]+", again.prompt) if w != "-"]
        kept = iter(after)
        assert all(word in kept for word in before), "the old words are a subsequence of the new ones"
        assert set(after) - set(before) <= set(new_words.split())
        assert paraphrase(again) is None
