"""The chance level of repairs: the resolution rate of a patcher that makes one uniformly random edit to one line.

The space of edits is the inverse of the faults': one operator, constant or name of a line is replaced by another of its
kind, or two names of the line are swapped. Every edit is run against all hidden tests, so the level is exact, not
sampled: the share of edits that resolve an instance. Scores must be read against it (an instance that half of all edits
repair is no task).

Names on `def` lines are left alone: no fault is there, and including them would lower the chance level.
"""

from __future__ import annotations

import io
import keyword
import math
import tokenize
from collections.abc import Sequence
from itertools import combinations

from training_core.tasks.repair.edits import Edit, PatchError, apply_edit
from training_core.tasks.repair.grading import LIMITS
from training_core.tasks.repair.instances import Instance
from training_core.tasks.sandbox import Sandbox

ARITHMETIC = ("+", "-", "*", "//", "%")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
ASSIGNMENTS = ("+=", "-=", "*=")
LOGIC = ("and", "or")
FUNCTIONS = ("abs", "len", "max", "min", "sum", "sorted")
_GROUPS = (ARITHMETIC, COMPARISONS, ASSIGNMENTS, LOGIC)
_UNTOUCHED = ("range", "True", "False", "None")


def single_changes(source: str) -> list[Edit]:
    """Return all edits of the space without repetition, ordered by line."""
    lines = source.rstrip("\n").split("\n")
    words = {name for line in lines for _, name in _names(line)}
    called = {line.split()[1].split("(")[0] for line in lines if line.startswith("def ")}
    variables = sorted(words - called - set(FUNCTIONS))
    edits = [
        Edit(number, text)
        for number, line in enumerate(lines, 1)
        for text in dict.fromkeys(_changed(line, variables, (*FUNCTIONS, *sorted(called))))
    ]
    return [edit for edit in edits if _applies(source, edit)]


def chance_level(instances: Sequence[Instance], sandbox: Sandbox) -> float:
    """Return the expected share of instances resolved by one random edit each.

    Raises:
        ValueError: for no instances.
        SandboxUnavailableError: when the isolation fails.
    """
    if not instances:
        raise ValueError("a chance level is a mean over instances, got none: give at least one")
    return math.fsum(chance_shares(instances, sandbox)) / len(instances)


def chance_shares(instances: Sequence[Instance], sandbox: Sandbox) -> tuple[float, ...]:
    """Return, for each instance, the share of single edits that resolve it, in [0, 1], by running every one.

    Raises:
        SandboxUnavailableError: when the isolation fails.
    """
    shares = []
    for instance in instances:
        tests = "\n".join(instance.hidden_tests.values())
        edits = single_changes(instance.source)
        passed = [sandbox.check(apply_edit(instance.source, edit), tests, LIMITS).passed for edit in edits]
        shares.append(sum(passed) / len(passed))
    return tuple(shares)


def _changed(line: str, variables: Sequence[str], functions: Sequence[str]) -> list[str]:
    """All variants of a line that differ from it by one edit."""
    variants = []
    tokens = _tokens(line)
    for place, (kind, text) in tokens:
        for other in _others(kind, text, variables, functions):
            variants.append(line[:place] + other + line[place + len(text) :])
    fixed = line.startswith("def ")
    names = [] if fixed else [(place, name) for place, name in _names(line) if name in variables]
    for (first, one), (second, other) in combinations(names, 2):
        variants.append(line[:first] + other + line[first + len(one) : second] + one + line[second + len(other) :])
    return [text.strip(" ") for text in variants]


def _others(kind: int, text: str, variables: Sequence[str], functions: Sequence[str]) -> list[str]:
    if kind == tokenize.NUMBER:
        number = int(text)
        return [str(number + 1), str(number - 1)]
    groups = [*_GROUPS, variables, functions]
    return [other for group in groups if text in group for other in group if other != text]


def _tokens(line: str) -> list[tuple[int, tuple[int, str]]]:
    """The editable tokens of a line as (column, (kind, text)); on a `def` line only numbers are editable."""
    editable = []
    for token in tokenize.generate_tokens(io.StringIO(line.strip(" ")).readline):
        place = len(line) - len(line.lstrip(" ")) + token.start[1]
        if token.type == tokenize.NUMBER or (
            token.type in (tokenize.NAME, tokenize.OP) and not line.startswith("def ")
        ):
            editable.append((place, (token.type, token.string)))
    return editable


def _names(line: str) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(line.strip(" ")).readline)
    indent = len(line) - len(line.lstrip(" "))
    return [
        (indent + token.start[1], token.string)
        for token in tokens
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string) and token.string not in _UNTOUCHED
    ]


def _applies(source: str, edit: Edit) -> bool:
    try:
        apply_edit(source, edit)
    except PatchError:
        return False
    return True
