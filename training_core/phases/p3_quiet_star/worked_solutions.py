"""Chains of thought for tasks of the bank (Wei et al., 2022, arXiv:2201.11903).

    the world    "... Where is the ball?"             -> "Tom had the ball. Tom was in the hall."   carried by the task
    arithmetic   "4 - 2 + 7 ="                        -> "4 - 2 = 2. 2 + 7 = 9."          the running sums
    needle       "... Ann likes tea. ... Who likes tea?" -> "Ann likes tea."              the statement that answers
    logic                                             -> None

The world's are the facts that the answer follows from; the others are derived here by rule, and checked. Thoughts are
about the world's questions of two and three hops, where the bank has them.

Logic has no worked solution: the generator's answer key accepts some conclusions that do not follow from the premises
("All A are B. Some B are not C." gives "Some A are not C": Yes), so that no valid derivation reaches every answer.

A worked text is `prompt + " " + solution + " The answer is " + answer`. A paraphrase asks the same question in another
form; a model that has learned only the form does worse on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from training_core.data.task_bank import ANSWER_CUE, FAMILIES, GYM_FAMILIES, WORLD_FAMILIES, Task
from training_core.world.parse import sentences
from training_core.world.tasks import reworded

MATERIAL = ("two_hops", "three_hops")  # one hop needs no steps, and few models of this size answer four
SEPARATOR = "\n\n"
HEAD, TAIL = "Question: ", "\nAnswer:"
ARITHMETIC = re.compile(r"(-?\d+(?: [+-] -?\d+)+) =")
NEEDLE = re.compile(r"(.+)\. ?\nWho (.+)\?")
LOGIC = re.compile(r"1\. (.+)\n2\. (.+)\n\nDoes it logically follow that:\n(.+)\?")


def material(tasks: Iterable[Task]) -> list[Task]:
    """Return the tasks that thoughts are trained and measured on: those of `MATERIAL`, else those of reasoning-gym."""
    tasks = list(tasks)
    about_world = [task for task in tasks if task.family in MATERIAL]
    return about_world or [task for task in tasks if task.family in GYM_FAMILIES]


def worked_solution(task: Task) -> str | None:
    """Return the derivation of the task's answer, one sentence per step, or None if there is no faithful one.

    There is none for logic, nor for a needle question that several statements answer.

    Raises:
        ValueError: when the question does not have the bank's form, or the derivation does not end in `task.answer`.
    """
    if task.solution:
        return task.solution
    if task.family == "arithmetic":
        steps, result = _running_sums(_match(ARITHMETIC, task)[1])
        solution = " ".join(steps)
    elif task.family == "needle":
        needles = [(name, statement) for name, statement in _statements(task) if statement == f"{name} {_asked(task)}"]
        if len(needles) > 1:
            return None
        result, solution = (needles[0][0], f"{needles[0][1]}.") if needles else ("nobody", "")
    else:
        _check_family(task)
        return None
    if result != task.answer:
        raise ValueError(
            f"the derivation of {task.prompt!r} ends in {result}, but the task's answer is {task.answer}: the task is "
            "wrong, make the bank again"
        )
    return solution


def worked_text(task: Task) -> str:
    """Return `prompt + " " + solution + ANSWER_CUE + answer`.

    Raises:
        ValueError: as `worked_solution`, and when the task has no worked solution.
    """
    solution = worked_solution(task)
    if solution is None:
        raise ValueError(
            f"this {task.family} task has no worked solution ({task.prompt!r}): leave out the tasks for which "
            "worked_solution is None"
        )
    return f"{task.prompt} {solution}{ANSWER_CUE}{task.answer}"


def cot_prompt(tasks: Iterable[Task], count: int) -> str:
    """Return a few-shot prompt: the first `count` worked texts, each followed by a blank line. A question is appended.

    Raises:
        ValueError: when `count` is below 1 or fewer tasks have a worked solution.
    """
    if count < 1:
        raise ValueError(f"count = {count} worked examples make no prompt: ask for at least one")
    texts: list[str] = []
    for task in tasks:
        if len(texts) == count:
            break
        if worked_solution(task) is not None:
            texts.append(worked_text(task))
    if len(texts) < count:
        raise ValueError(
            f"only {len(texts)} of the tasks have a worked solution, not {count}: give more tasks, of other families "
            "than logic, or lower count"
        )
    return "".join(text + SEPARATOR for text in texts)


def paraphrase(task: Task) -> Task | None:
    """Return the same question in another wording and layout, with the same facts, options and answer.

    A question about the world keeps its story, and is asked in a wording that no training text has. The result is None
    when the task does not have the bank's form (a paraphrase does not).

    Raises:
        ValueError: for an unknown family.
    """
    _check_family(task)
    if task.family in WORLD_FAMILIES:
        *story, asked = sentences(_question(task))
        again = reworded(asked)
        return None if again in (None, asked) else replace(task, prompt=f"{HEAD}{' '.join([*story, again])}{TAIL}")
    pattern = {"arithmetic": ARITHMETIC, "needle": NEEDLE, "logic": LOGIC}[task.family]
    match = pattern.fullmatch(_question(task))
    if match is None:
        return None
    if task.family == "arithmetic":
        question = f"What do you get for {match[1]}?"
    elif task.family == "needle":
        facts = "".join(f"- {statement}\n" for _, statement in _statements(task))
        question = f"Here are some facts:\n{facts}Name the one who {match[2]}."
    else:
        conclusion = match[3][0].lower() + match[3][1:]
        question = f"Suppose this is true:\n- {match[1]}\n- {match[2]}\nCan one conclude that {conclusion}?"
    return replace(task, prompt=question + TAIL)


def _running_sums(expression: str) -> tuple[list[str], str]:
    """Return the steps and the result: 4 - 2 + 7 gives ["4 - 2 = 2.", "2 + 7 = 9."] and "9"."""
    first, *rest = expression.split(" ")
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        following = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total} {sign} {term} = {following}.")
        total = following
    return steps, str(total)


def _statements(task: Task) -> list[tuple[str, str]]:
    """Return (name, "name predicate") for every statement of a needle task; a name is a single word."""
    statements = _match(NEEDLE, task)[1].split(". ")
    return [(statement.split(" ")[0], statement) for statement in statements]


def _asked(task: Task) -> str:
    return _match(NEEDLE, task)[2]


def _question(task: Task) -> str:
    return task.prompt.removeprefix(HEAD).removesuffix(TAIL)


def _match(pattern: re.Pattern[str], task: Task) -> re.Match[str]:
    match = pattern.fullmatch(_question(task))
    if match is None:
        raise ValueError(
            f"{task.prompt!r} is not {task.family} in the form of the task bank ({pattern.pattern!r}): only the bank's "
            "own questions can be worked out"
        )
    return match


def _check_family(task: Task) -> None:
    if task.family not in FAMILIES:
        raise ValueError(f"unknown family {task.family!r}: the bank has {', '.join(FAMILIES)}")
