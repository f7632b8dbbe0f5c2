"""Micro-repositories: programs of a few lines with one fault, drawn by a seed without repetition.

The *content* of a program is its issue and the line that repairs it, including argument names and constants but not
function names. The split is a hash of the content, so all programs of one content, whatever their fault, are in the
same split. Hence no line that repairs a held-out program repairs a training program with the same issue, and no program
is in two splits. An instance depends on its program and fault only; the seed merely selects instances.

Expected values are computed by functions of ours (`faults`), so no generated code is run here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, zip_longest

from training_core.data.documents import SPLITS
from training_core.tasks.questions.ladder import split_of_content
from training_core.tasks.repair.edits import Edit, edit_between
from training_core.tasks.repair.faults import FORMS, Arguments, Fault, Form, Value
from training_core.tasks.repair.instances import Instance, InstanceError

PATH = "repair.py"
FUNCTIONS = ("f", "g", "h", "r")
ARGUMENTS = "abcdkmnpqtuvwxyz"
_OFFSETS = (1, 3, 5)  # distances in ARGUMENTS between the two argument names of a program
_DRAWS = 600  # enough to include the rare arguments at which a fault does not show
_FAIL, _PASS = 4, 3  # most hidden tests of each set, before those added to distinguish other faults


@dataclass(frozen=True, slots=True)
class _Program:
    """A form with names and a constant, and one of its faults."""

    form: Form
    fault: Fault
    function: str
    a: str
    b: str
    k: int

    @property
    def names(self) -> str:
        """The argument names, concatenated."""
        return self.a + self.b if _has_two(self.form) else self.a

    def write(self, text: str) -> str:
        other = FUNCTIONS[(FUNCTIONS.index(self.function) + 1) % len(FUNCTIONS)]
        return text.format(f=self.function, g=other, a=self.a, b=self.b, k=self.k, j=self.k + 1, i=self.k - 1)

    def source(self, faulty: bool) -> str:
        lines = list(self.form.lines)
        if faulty:
            lines[self.form.line - 1] = self.fault.line
        return self.write("\n".join(lines)) + "\n"

    @property
    def issue(self) -> str:
        return self.write(self.form.issue)

    @property
    def content(self) -> str:
        unnamed = replace(self, function=FUNCTIONS[0])
        return f"{unnamed.issue}\n{unnamed.write(self.form.lines[self.form.line - 1])}"


def make_instances(
    split: str, number: int, seed: int, *, most_lines: int = 6, num_names: int = len(ARGUMENTS)
) -> list[Instance]:
    """Draw `number` distinct instances of a split, balanced over faults as far as enough programs exist.

    most_lines: longest program. num_names: size of the pool of argument names. Lowering either makes the task easier: a
    small model has to learn to copy every single name.

    Raises:
        ValueError: for a split other than train, validation and test, or more instances than exist.
    """
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
    names = set(ARGUMENTS[:num_names])
    allowed = [
        [p for p in group if len(p.form.lines) <= most_lines and names.issuperset(p.names)]
        for group in _programs()[split]
    ]
    groups = [group for group in allowed if group]
    available = sum(map(len, groups))
    if not 0 < number <= available:
        raise ValueError(
            f"{split} has {available} instances of at most {most_lines} lines with {len(names)} names, and at least 1 "
            f"is made, got number = {number}: ask for fewer, or raise most_lines or num_names"
        )
    draw = random.Random(f"{split}/{seed}")
    shuffled = [draw.sample(group, len(group)) for group in groups]
    chosen: list[_Program] = []
    while len(chosen) < number:
        turns = [group for group in shuffled if group]
        draw.shuffle(turns)
        chosen += [group.pop() for group in turns[: number - len(chosen)]]
    return [_instance(program) for program in chosen]


def instance_text(instance: Instance) -> str:
    """Return the prompt that a model is given: the issue, and the program with its lines numbered.

    Raises:
        InstanceError: when the instance has several files.
    """
    lines = instance.source.rstrip("\n").split("\n")
    numbered = "\n".join(f"{number} {line}" for number, line in enumerate(lines, 1))
    return f"Issue: {instance.issue}\n{numbered}\nFix:"


def gold_edit(instance: Instance) -> Edit:
    """Return the gold patch as an edit.

    Raises:
        PatchError: when it changes more than one line.
    """
    return edit_between(instance.source, instance.gold_files[instance.path])


def gold_text(instance: Instance) -> str:
    """Return the target completion. Raises PatchError as `gold_edit` does."""
    return str(gold_edit(instance))


def _instance(program: _Program) -> Instance:
    """The instance of a program. Its tests are seeded by its identity, independently of the seed of the draw."""
    identity = hashlib.sha256(f"{program.source(True)}{program.source(False)}{program.issue}".encode()).hexdigest()[:12]
    visible, failing, passing = _tests(program, random.Random(identity))
    form, fault = program.form, program.fault
    return Instance(
        name=f"{form.name}, {fault.kind} {identity}".replace(" ", "-").replace(",", ""),
        files={PATH: program.source(faulty=True)},
        issue=program.issue,
        visible_test=_test(program, visible),
        fail_to_pass={f"wrong_{place}": _test(program, each) for place, each in enumerate(failing, 1)},
        pass_to_pass={f"right_{place}": _test(program, each) for place, each in enumerate(passing, 1)},
        gold_files={PATH: program.source(faulty=False)},
        kind=fault.kind,
    )


def _tests(program: _Program, draw: random.Random) -> tuple[Arguments, list[Arguments], list[Arguments]]:
    """Arguments of the visible test, of the failing and of the passing hidden tests.

    They cover as many sorts as there are, and every other fault of the form fails at least one of the hidden ones.
    """
    form, k = program.form, program.k
    show, hide = _pools(form, program.fault, k)
    shows, hides = (_sorts_in_turn(form, k, draw.sample(each, len(each))) for each in (show, hide))
    # With only two arguments that show the fault, the visible one has to be among the hidden ones as well.
    visible, hidden = shows[0], shows[1:] if len(shows) > 2 else shows
    failing, passing = hidden[:_FAIL], hides[:_PASS]
    for other in form.faults:
        if not any(_differ(form, other, k, each) for each in (*failing, *passing)):
            telling = next(each for each in (*hidden, *hides) if _differ(form, other, k, each))
            (failing if telling in shows else passing).append(telling)
    return visible, failing, passing


def _sorts_in_turn(form: Form, k: int, drawn: list[Arguments]) -> list[Arguments]:
    """The same arguments in round-robin order over sorts: the expected truth value, and which argument is larger."""
    sorts: dict[str, list[Arguments]] = {}
    for each in drawn:
        expected, numbers = form.gives(k, *each), [int(value) for value in each if not isinstance(value, list)]
        sort = [expected if isinstance(expected, bool) else None, *((n > m) - (n < m) for n, m in pairwise(numbers))]
        sorts.setdefault(repr(sort), []).append(each)
    turns = zip_longest(*sorts.values())
    return [each for turn in turns for each in turn if each is not None]


@cache
def _pools(form: Form, fault: Fault, k: int) -> tuple[tuple[Arguments, ...], tuple[Arguments, ...]]:
    """Distinct arguments at which a fault shows, and at which it does not.

    Raises:
        InstanceError: when there are fewer than two, or none.
    """
    draw = random.Random(f"{form.name}/{fault.line}/{k}")
    drawn = {repr(each): each for each in (form.draw(draw) for _ in range(_DRAWS))}.values()
    shows = tuple(each for each in drawn if _differ(form, fault, k, each))
    hides = tuple(each for each in drawn if not _differ(form, fault, k, each))
    if len(shows) < 2 or not hides:
        raise InstanceError(
            f"{form.name}, {fault.line!r}: {len(shows)} arguments show the fault and {len(hides)} hide it; it takes 2 "
            "and 1: change what the form draws"
        )
    return shows, hides


def _differ(form: Form, fault: Fault, k: int, arguments: Arguments) -> bool:
    return bool(form.gives(k, *arguments) != fault.gives(k, *arguments))


def _test(program: _Program, arguments: Arguments) -> str:
    expected: Value = program.form.gives(program.k, *arguments)
    return f"assert {program.function}({', '.join(map(repr, arguments))}) == {expected!r}"


@cache
def _programs() -> dict[str, tuple[tuple[_Program, ...], ...]]:
    """The programs by split, grouped by form and fault."""
    by_split: dict[str, dict[tuple[str, str], list[_Program]]] = {split: {} for split in SPLITS}
    for program in _all_programs():
        groups = by_split[split_of_content(program.content)]
        groups.setdefault((program.form.name, program.fault.line), []).append(program)
    return {split: tuple(tuple(group) for group in groups.values()) for split, groups in by_split.items()}


def _all_programs() -> Iterator[_Program]:
    for form in FORMS:
        for a, b in _argument_names(_has_two(form)):
            for k in form.constants:
                for fault in form.faults:
                    for function in FUNCTIONS:
                        yield _Program(form, fault, function, a, b, k)


def _has_two(form: Form) -> bool:
    return "{b}" in "".join(form.lines)


def _argument_names(two: bool) -> Iterator[tuple[str, str]]:
    for place, first in enumerate(ARGUMENTS):
        for offset in _OFFSETS if two else _OFFSETS[:1]:
            yield first, ARGUMENTS[(place + offset) % len(ARGUMENTS)]
