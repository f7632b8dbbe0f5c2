"""Line edits, and the truth table of grading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_core.tasks.repair.edits import Edit, PatchError, apply_edit, edit_between, last_fix, parse_fix
from training_core.tasks.repair.grading import Grade, grade, validate
from training_core.tasks.repair.instances import Instance, InstanceError

SOURCE = "def f(a, b):\n  if a:\n\treturn a - b\n  return b\n"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Edit(1, "def f(a, b=1):"), "def f(a, b=1):\n  if a:\n\treturn a - b\n  return b\n"),
        (Edit(2, "  if b: "), "def f(a, b):\n  if b:\n\treturn a - b\n  return b\n"),
        (Edit(3, "return a + b"), "def f(a, b):\n  if a:\n\treturn a + b\n  return b\n"),
        (Edit(4, "return a"), "def f(a, b):\n  if a:\n\treturn a - b\n  return a\n"),
    ],
)
def test_a_line_is_written_anew_and_keeps_its_indentation(edit: Edit, expected: str) -> None:
    assert apply_edit(SOURCE, edit) == expected


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Edit(0, "x"), "line 0 is not in the file: its lines are 1 to 4"),
        (Edit(5, "x"), "line 5 is not in the file: its lines are 1 to 4"),
        (Edit(-1, "x"), "line -1 is not"),
        (Edit(4, "return b"), "reads 'return b' already"),
        (Edit(4, " return b "), "reads 'return b' already"),
        (Edit(4, ""), "writes one line, got ''"),
        (Edit(4, "return a\nimport os"), "writes one line"),
        (Edit(4, "return a\rimport os"), "writes one line"),
    ],
)
def test_what_does_not_apply_is_refused(edit: Edit, why: str) -> None:
    with pytest.raises(PatchError, match=why.replace("'", ".")):
        apply_edit(SOURCE, edit)


def test_a_file_without_a_last_line_end_keeps_it_so() -> None:
    assert apply_edit("a = 1\nb = 2", Edit(2, "b = 3")) == "a = 1\nb = 3"
    with pytest.raises(PatchError):
        apply_edit("a = 1\nb = 2", Edit(3, "b = 3"))


@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n\r\v\f\x1c\x1d\x1e"), max_size=8), min_size=1),
    st.integers(1, 9),
    st.text(st.characters(codec="ascii", exclude_characters="\n\r\v\f\x1c\x1d\x1e"), min_size=1, max_size=8),
)
def test_an_edit_is_found_again_and_changes_one_line(lines: list[str], line: int, text: str) -> None:
    source = "\n".join(lines) + "\n"
    try:
        edited = apply_edit(source, Edit(line, text))
    except PatchError:
        return
    before, after = source.split("\n"), edited.split("\n")
    assert [n for n, (old, new) in enumerate(zip(before, after, strict=True), 1) if old != new] == [line]
    try:
        found = edit_between(source, edited)
    except PatchError:  # what came in has an indentation of its own beyond the line's
        assert after[line - 1] != after[line - 1].strip()
        return
    assert apply_edit(source, found) == edited


def test_no_edit_between_sources_that_differ_otherwise() -> None:
    for other in ("a\nb\n", "a\nb\nc\nd\n", "x\ny\nc\n", "a\nb\nc\n", "a\n b\nc\n"):
        with pytest.raises(PatchError):
            edit_between("a\nb\nc\n", other)
    assert edit_between("a\n b\nc\n", "a\n x\nc\n") == Edit(2, "x")


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("<fix>2 return a</fix>", "2 return a"),
        ("<fix>1 x</fix><out>fail</out><fix>2 y</fix>", "2 y"),
        ("<fix>1 x <fix>2 y</fix>", "2 y"),
        ("<fix>2 return a < b > c</fix>", "2 return a < b > c"),
        ("<fix>2 x</fix> ", None),
        ("<fix>2 x", None),
        ("2 x</fix>", None),
        ("<fix>2 x</fix><out>ok</out>", None),
    ],
)
def test_the_fix_with_which_a_text_ends(text: str, fix: str | None) -> None:
    assert last_fix(text) == fix


@pytest.mark.parametrize(
    ("written", "edit"),
    [("2 return a", Edit(2, "return a")), (" 12  x", Edit(12, " x")), ("3", Edit(3, "")), ("3 ", Edit(3, ""))],
)
def test_a_fix_is_a_line_and_its_text(written: str, edit: Edit) -> None:
    assert parse_fix(written) == edit


@pytest.mark.parametrize("written", ["", "return a", "x2 return", "-1 x", "2return a", "1234567 x", "\u0662 x"])
def test_what_is_no_fix_is_refused(written: str) -> None:
    with pytest.raises(PatchError, match="LINE CODE"):
        parse_fix(written)


def make_instance() -> Instance:
    return Instance(
        name="two",
        files={"m.py": "wrong"},
        issue="it is wrong",
        visible_test="",
        fail_to_pass={"f1": "test f1", "f2": "test f2"},
        pass_to_pass={"p1": "test p1", "p2": "test p2"},
        gold_files={"m.py": "right"},
        kind="operator",
    )


class TableRunner:
    """Statuses by the text of the file; a test that the table does not name passes."""

    def __init__(self, **statuses: Mapping[str, str]) -> None:
        self.statuses = statuses

    def run(self, files: Mapping[str, str], tests: Mapping[str, str]) -> dict[str, str]:
        return {name: self.statuses[files["m.py"]].get(name, "passed") for name in tests}


@pytest.mark.parametrize("f1", ["passed", "wrong", "timeout"])
@pytest.mark.parametrize("f2", ["passed", "error"])
@pytest.mark.parametrize("p1", ["passed", "unsupported"])
@pytest.mark.parametrize("p2", ["passed", "wrong"])
def test_resolved_means_that_all_of_both_sets_pass(f1: str, f2: str, p1: str, p2: str) -> None:
    """SWE-bench's rule over all 24 combinations."""
    statuses = {"f1": f1, "f2": f2, "p1": p1, "p2": p2}
    found = grade(make_instance(), {"m.py": "tried"}, TableRunner(tried=statuses))
    assert found.resolved == (set(statuses.values()) == {"passed"})
    assert found.status == ("resolved" if found.resolved else "unresolved")
    assert dict(found.still_failing) == {n: s for n, s in statuses.items() if n[0] == "f" and s != "passed"}
    assert dict(found.broken) == {n: s for n, s in statuses.items() if n[0] == "p" and s != "passed"}


def test_no_repair_and_one_that_does_not_apply_are_never_resolved() -> None:
    instance = make_instance()
    assert grade(instance, None, TableRunner()) == Grade("does_not_apply", (("f1", "not run"), ("f2", "not run")), ())
    failing = {"f1": "wrong", "f2": "wrong"}
    empty = grade(instance, {"m.py": "wrong"}, TableRunner(wrong=failing))
    assert empty == Grade("empty", (("f1", "wrong"), ("f2", "wrong")), ())
    assert grade(instance, {"m.py": "wrong"}, TableRunner(wrong={})) == Grade("empty", (), ())


def test_a_test_of_which_nothing_is_heard_did_not_pass() -> None:
    class SilentRunner:
        def run(self, files: Mapping[str, str], tests: Mapping[str, str]) -> dict[str, str]:
            return {"f1": "passed"}

    found = grade(make_instance(), {"m.py": "tried"}, SilentRunner())
    assert found == Grade("unresolved", (("f2", "not run"),), (("p1", "not run"), ("p2", "not run")))


FAILING = {"f1": "wrong", "f2": "error"}


def test_an_instance_is_one_that_the_true_repair_resolves_and_nothing_else() -> None:
    validate(make_instance(), TableRunner(wrong=FAILING, right={}))


@pytest.mark.parametrize(
    ("wrong", "right", "why"),
    [
        (FAILING, {"f2": "wrong"}, "f2 must pass after the true repair, got 'wrong'"),
        (FAILING, {"p1": "timeout"}, "p1 must pass after the true repair, got 'timeout'"),
        ({"f1": "wrong"}, {}, "f2 is in FAIL_TO_PASS and must fail before it, but passes"),
        ({**FAILING, "p2": "error"}, {}, "p2 is in PASS_TO_PASS and must pass before it, got 'error'"),
    ],
)
def test_an_instance_that_is_none_is_refused(wrong: dict[str, str], right: dict[str, str], why: str) -> None:
    with pytest.raises(InstanceError, match=why):
        validate(make_instance(), TableRunner(wrong=wrong, right=right))


def test_what_an_instance_must_hold() -> None:
    instance = make_instance()
    with pytest.raises(InstanceError, match="FAIL_TO_PASS is empty"):
        replace(instance, fail_to_pass={})
    with pytest.raises(InstanceError, match="PASS_TO_PASS is empty"):
        replace(instance, pass_to_pass={})
    with pytest.raises(InstanceError, match="f1 is in FAIL_TO_PASS and in PASS_TO_PASS"):
        replace(instance, pass_to_pass={"f1": ""})
    with pytest.raises(InstanceError, match="changes nothing"):
        replace(instance, gold_files=dict(instance.files))
    with pytest.raises(InstanceError, match="has 2 files"):
        replace(instance, files={"a": "", "b": ""}).source  # noqa: B018
