"""A verdict is earned: no candidate passes by ending, patching, lying or printing, in either sandbox."""

from __future__ import annotations

import secrets

import pytest

from forge_resources.sandbox.abuses import ADD, EARLY_ENDS, FIVE, FORGERS, LIARS, PATCHABLE_TESTS, PATCHES, looking
from training_core.tasks.sandbox import Limits, ProgramVerdict, Sandbox

LIMITS = Limits(seconds=4.0, memory_bytes=64 << 20)
BRIEF = Limits(seconds=1.5, memory_bytes=64 << 20)
TESTS = "assert add(2, 2) == 4\nassert add(-1, 1) == 0\n"


def judged(sandbox: Sandbox, candidate: str, tests: str) -> tuple[str, int]:
    verdict = sandbox.check(candidate, tests, LIMITS)
    return verdict.status, verdict.calls


def test_a_right_candidate_passes(sandbox: Sandbox) -> None:
    verdict = sandbox.check(ADD, TESTS, LIMITS)
    assert (verdict.status, verdict.detail, verdict.calls, verdict.passed) == ("passed", "", 2, True)
    humaneval = (
        "def check(candidate):\n    assert candidate(2, b=3) == 5\n    assert abs(candidate(.1, .2) - .3) < 1e-9\n"
    )
    assert judged(sandbox, ADD, humaneval + "check(add)") == ("passed", 2)
    assert judged(
        sandbox, f"print('noise', flush=True)\n{ADD.replace('return', 'print(a, flush=True); return')}", TESTS
    ) == ("passed", 2)
    assert judged(sandbox, "LIMIT = (1, 2)", "assert LIMIT == (1, 2)")[0] == "passed"


def test_a_wrong_candidate_is_wrong(sandbox: Sandbox) -> None:
    verdict = sandbox.check("def add(a, b):\n    return a - b\n", TESTS, LIMITS)
    assert (verdict.status, verdict.calls, verdict.passed) == ("wrong", 1, False)
    assert verdict.detail.startswith("AssertionError")


def test_errors_are_told_apart(sandbox: Sandbox) -> None:
    assert sandbox.check("def add(a, b):\n    return a / 0\n", TESTS, LIMITS).detail.startswith("ZeroDivisionError")
    assert judged(sandbox, "1/0", TESTS) == ("error", 0)
    assert judged(sandbox, "def other(): pass", TESTS)[0] == "error"
    assert judged(sandbox, "def add(:", TESTS)[0] == "error"
    expected = "try:\n    add(1, 'x')\nexcept TypeError:\n    pass\nelse:\n    assert False"
    assert judged(sandbox, ADD, expected) == ("passed", 1)


def test_tests_that_never_use_the_candidate_do_not_pass(sandbox: Sandbox) -> None:
    assert judged(sandbox, ADD, "assert True")[0] == "error"
    assert judged(sandbox, ADD, "def check(candidate):\n    assert candidate(1, 1) == 3")[0] == "error"


def test_data_crosses_unchanged_and_with_its_type(sandbox: Sandbox) -> None:
    tests = """
values = [None, True, -(2**70), 0.1, float('-inf'), '', 'ü\\n', b'\\xff\\x00', [1, [2, (3,)]], (1, 2), (),
          {1: 'a', (2, 3): {4}}, {1, 2}, frozenset({3}), [1, 1.0, True]]
for there in values:
    back = same(there)
    assert back == there, back
    assert type(back) is type(there), type(back)
    assert repr(back) == repr(there) or isinstance(there, (set, frozenset, dict)), repr(back)
"""
    assert judged(sandbox, "def same(x):\n    return x\n", tests) == ("passed", 15)


@pytest.mark.parametrize("ending", EARLY_ENDS)
def test_to_end_early_is_not_to_pass(sandbox: Sandbox, ending: str) -> None:
    verdict = sandbox.check(EARLY_ENDS[ending], TESTS, LIMITS)
    assert not verdict.passed
    assert verdict.status in ("error", "unsupported")


@pytest.mark.parametrize("patch", PATCHES)
def test_to_patch_the_checker_is_not_to_pass(sandbox: Sandbox, patch: str) -> None:
    for tests in (TESTS, PATCHABLE_TESTS):
        assert not sandbox.check(PATCHES[patch] + FIVE, tests, LIMITS).passed


@pytest.mark.parametrize(
    ("patch", "tests"),
    [
        ("callable = lambda x: True", "assert callable(add(2, 2))"),
        ("class math:\n    def isclose(self, b):\n        return True", "assert math.isclose(add(2, 2), 4)"),
    ],
)
def test_names_of_builtins_and_modules_are_not_taken_from_the_candidate(
    sandbox: Sandbox, patch: str, tests: str
) -> None:
    verdict = sandbox.check(f"{patch}\ndef add(a, b):\n    return 5\n", tests, LIMITS)
    assert verdict.status in ("wrong", "unsupported"), verdict


@pytest.mark.parametrize("liar", LIARS)
def test_an_object_that_lies_about_itself_does_not_pass(sandbox: Sandbox, liar: str) -> None:
    for tests in (TESTS, "assert [4] == [add(2, 2)]", "assert add(2, 2) in (4, [4])"):
        verdict = sandbox.check(LIARS[liar], tests, LIMITS)
        assert verdict.status in ("wrong", "unsupported"), (tests, verdict)


@pytest.mark.parametrize("forger", FORGERS)
def test_a_printed_verdict_is_not_a_verdict(sandbox: Sandbox, forger: str) -> None:
    for tests in (TESTS, f"{TESTS}assert add(3, 9) == 12"):
        assert not sandbox.check(FORGERS[forger], tests, LIMITS).passed


def test_the_tests_cannot_be_read(sandbox: Sandbox) -> None:
    """The candidate gives back everything that it can see; a word of the tests is not in it."""
    word = secrets.token_hex(8)
    look, tests = looking(word)
    verdict = sandbox.check(look, tests, Limits(seconds=10, memory_bytes=256 << 20))
    if sandbox.name.startswith("embedded"):  # it has no globals(), no frames and no gc
        assert verdict.status == "unsupported"
        plain = "def look(x):\n    return 'look here' + repr(x)"
        verdict = sandbox.check(plain, tests, LIMITS)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("candidate", "tests", "status"),
    [
        ("def add(a, b):\n    while True:\n        pass", TESTS, "timeout"),
        ("while True:\n    pass", TESTS, "timeout"),
        (ADD, "while True:\n    add(1, 1)", "timeout"),
        ("def add(a, b):\n    return 'a' * 10**9", TESTS, "memory"),
        (ADD, "add(1, 1)\nx = 'a' * 10**9", "memory"),
    ],
)
def test_limits_hold_for_both_sides(sandbox: Sandbox, candidate: str, tests: str, status: str) -> None:
    verdict = sandbox.check(candidate, tests, BRIEF)
    if status == "memory" and verdict.status == "error":  # the interpreter raised before the kernel had to
        assert "MemoryError" in verdict.detail
    else:
        assert verdict.status == status, verdict
    assert verdict.seconds < 3 * BRIEF.seconds + 2


def test_the_container_judges_what_the_embedded_interpreter_cannot(embedded: Sandbox, container: Sandbox) -> None:
    """A missing feature is no wrong answer; and the same pair is decided where the feature exists."""
    box = "class Box:\n    def __init__(self):\n        self.held = []\n"
    box += "    def put(self, x):\n        self.held.append(x)\n        return self\n"
    pairs = {
        "def add(a, b):\n    yield a + b": "assert list(add(2, 2)) == [4]",
        "import heapq\ndef add(a, b):\n    return heapq.nsmallest(1, [a + b])[0]": TESTS,
        box: "box = Box().put(1)\nassert box.put((2, 3)).held == [1, (2, 3)]",
        "import math\ndef add(a, b):\n    return a + b": "assert math.isclose(add(.1, .2), .3)",
        "def add(f, x):\n    return f(x)\ndef inc(x):\n    return x + 1": "assert add(inc, 3) == 4",
    }
    for candidate, tests in pairs.items():
        assert embedded.check(candidate, tests, LIMITS).status == "unsupported", candidate
        verdict = container.check(candidate, tests, LIMITS)
        assert isinstance(verdict, ProgramVerdict)
        assert verdict.passed, (candidate, verdict)
