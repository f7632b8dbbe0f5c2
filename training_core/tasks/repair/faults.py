"""Short functions and their possible faults: the table that micro-repositories are generated from.

Every form is given twice, as text for the model and as a function of ours with the same values, so a test's expected
value is known without running generated code. A test runs every form in the sandbox to check that the two agree.

    {f}, {g}: names of functions   {a}, {b}: names of arguments   {k}: a constant   {j}: k + 1   {i}: k - 1
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Value = int | bool | list[int]
Arguments = tuple[Value, ...]
Gives = Callable[..., Value]  # (k, *arguments) -> value
Draw = Callable[[random.Random], Arguments]

KINDS = ("operator", "comparison", "off by one", "constant", "default", "swapped", "name", "logic")


@dataclass(frozen=True, slots=True)
class Fault:
    """A faulty version of one line: its kind, its text, and the values of the resulting function."""

    kind: str
    line: str
    gives: Gives


@dataclass(frozen=True, slots=True)
class Form:
    """A correct program of one or two functions.

    name: unique. issue: the specification in words. lines: the source. line: the line that faults change, 1-based.
    gives: the values of {f}. faults: faulty versions of that line. draw: draws the arguments of a test. constants:
    values of {k}.
    """

    name: str
    issue: str
    lines: tuple[str, ...]
    line: int
    gives: Gives
    faults: tuple[Fault, ...]
    draw: Draw
    constants: tuple[int, ...] = (0,)


def _two(draw: random.Random) -> Arguments:
    return draw.randint(0, 6), draw.randint(0, 6)


def _two_but_zero(draw: random.Random) -> Arguments:
    return draw.randint(0, 9), draw.randint(1, 4)


def _one(draw: random.Random) -> Arguments:
    return (draw.randint(-3, 12),)


def _count(draw: random.Random) -> Arguments:
    return (draw.randint(0, 5),)


def _one_or_two(draw: random.Random) -> Arguments:
    return _two(draw)[: draw.randint(1, 2)]


def _truths(draw: random.Random) -> Arguments:
    return draw.random() < 0.5, draw.random() < 0.5


def _list(draw: random.Random) -> Arguments:
    return ([draw.randint(0, 3) for _ in range(draw.randint(3, 4))],)


def _any_list(draw: random.Random) -> Arguments:
    return ([draw.randint(0, 3) for _ in range(draw.randint(0, 4))],)


def _binary(
    name: str, issue: str, expression: str, gives: Gives, *faults: tuple[str, str, Gives], draw: Draw = _two
) -> Form:
    """The form "def f(a, b): return EXPRESSION"."""
    faulty = tuple(Fault(kind, f" return {text}", wrong) for kind, text, wrong in faults)
    return Form(name, issue, ("def {f}({a}, {b}):", f" return {expression}"), 2, gives, faulty, draw)


def _unary(
    name: str,
    issue: str,
    expression: str,
    gives: Gives,
    *faults: tuple[str, str, Gives],
    draw: Draw,
    constants: tuple[int, ...] = (0,),
) -> Form:
    """The form "def f(a): return EXPRESSION"."""
    faulty = tuple(Fault(kind, f" return {text}", wrong) for kind, text, wrong in faults)
    lines = ("def {f}({a}):", f" return {expression}")
    return Form(name, issue, lines, 2, gives, faulty, draw, constants)


_PAIRS = (
    _binary("sum", "the sum", "{a} + {b}", lambda k, a, b: a + b,
            ("operator", "{a} - {b}", lambda k, a, b: a - b), ("operator", "{a} * {b}", lambda k, a, b: a * b)),
    _binary("product", "the product", "{a} * {b}", lambda k, a, b: a * b,
            ("operator", "{a} + {b}", lambda k, a, b: a + b), ("operator", "{a} - {b}", lambda k, a, b: a - b)),
    _binary("less", "{a} less {b}", "{a} - {b}", lambda k, a, b: a - b,
            ("operator", "{a} + {b}", lambda k, a, b: a + b), ("swapped", "{b} - {a}", lambda k, a, b: b - a)),
    _binary("distance", "the distance", "abs({a} - {b})", lambda k, a, b: abs(a - b),
            ("operator", "abs({a} + {b})", lambda k, a, b: abs(a + b))),
    _binary("rest", "the rest of {a} by {b}", "{a} % {b}", lambda k, a, b: a % b,
            ("operator", "{a} // {b}", lambda k, a, b: a // b), draw=_two_but_zero),
    _binary("times in", "how many {b} in {a}", "{a} // {b}", lambda k, a, b: a // b,
            ("operator", "{a} % {b}", lambda k, a, b: a % b), ("operator", "{a} * {b}", lambda k, a, b: a * b),
            draw=_two_but_zero),
    _binary("larger", "the larger", "max({a}, {b})", lambda k, a, b: max(a, b),
            ("name", "min({a}, {b})", lambda k, a, b: min(a, b)),
            ("name", "max({a}, {a})", lambda k, a, b: a)),
    _binary("smaller", "the smaller", "min({a}, {b})", lambda k, a, b: min(a, b),
            ("name", "max({a}, {b})", lambda k, a, b: max(a, b)),
            ("name", "min({b}, {b})", lambda k, a, b: b)),
    _binary("above", "is {a} above {b}", "{a} > {b}", lambda k, a, b: a > b,
            ("comparison", "{a} >= {b}", lambda k, a, b: a >= b), ("swapped", "{b} > {a}", lambda k, a, b: b > a)),
    _binary("below", "is {a} below {b}", "{a} < {b}", lambda k, a, b: a < b,
            ("comparison", "{a} <= {b}", lambda k, a, b: a <= b), ("swapped", "{b} < {a}", lambda k, a, b: b < a)),
    _binary("at least", "is {a} at least {b}", "{a} >= {b}", lambda k, a, b: a >= b,
            ("comparison", "{a} > {b}", lambda k, a, b: a > b), ("comparison", "{a} == {b}", lambda k, a, b: a == b)),
    _binary("equal", "are they equal", "{a} == {b}", lambda k, a, b: a == b,
            ("comparison", "{a} <= {b}", lambda k, a, b: a <= b), ("comparison", "{a} >= {b}", lambda k, a, b: a >= b)),
    _binary("both", "are both true", "{a} and {b}", lambda k, a, b: a and b,
            ("logic", "{a} or {b}", lambda k, a, b: a or b), draw=_truths),
    _binary("either", "is one true", "{a} or {b}", lambda k, a, b: a or b,
            ("logic", "{a} and {b}", lambda k, a, b: a and b), draw=_truths),
)  # fmt: skip

_SINGLES = (
    _unary("times", "{k} times {a}", "{k} * {a}", lambda k, a: k * a,
           ("constant", "{j} * {a}", lambda k, a: (k + 1) * a), ("constant", "{i} * {a}", lambda k, a: (k - 1) * a),
           draw=_one, constants=(2, 3, 4, 5, 6, 7, 8, 9)),
    _unary("not below", "{a}, at least {k}", "max({a}, {k})", lambda k, a: max(a, k),
           ("constant", "max({a}, {j})", lambda k, a: max(a, k + 1)),
           ("name", "min({a}, {k})", lambda k, a: min(a, k)), draw=_one, constants=(0, 1, 2, 3)),
    _unary("above number", "is {a} above {k}", "{a} > {k}", lambda k, a: a > k,
           ("comparison", "{a} < {k}", lambda k, a: a < k), ("comparison", "{a} == {k}", lambda k, a: a == k),
           draw=_one, constants=(0, 1, 2, 3, 4)),
    _unary("sum to", "the sum up to {a}", "sum(range({a} + 1))", lambda k, a: sum(range(a + 1)),
           ("off by one", "sum(range({a} - 1))", lambda k, a: sum(range(a - 1))), draw=_count),
    _unary("first", "the first", "{a}[0]", lambda k, a: a[0], ("off by one", "{a}[1]", lambda k, a: a[1]),
           draw=_list),
    _unary("last", "the last", "{a}[-1]", lambda k, a: a[-1], ("off by one", "{a}[-2]", lambda k, a: a[-2]),
           draw=_list),
    _unary("second", "the second", "{a}[1]", lambda k, a: a[1], ("off by one", "{a}[2]", lambda k, a: a[2]),
           ("off by one", "{a}[0]", lambda k, a: a[0]), draw=_list),
    _unary("without first", "all but the first", "{a}[1:]", lambda k, a: a[1:],
           ("off by one", "{a}[2:]", lambda k, a: a[2:]), draw=_any_list),
    _unary("total", "the total", "sum({a})", lambda k, a: sum(a), ("name", "len({a})", lambda k, a: len(a)),
           draw=_any_list),
    _unary("length", "how many", "len({a})", lambda k, a: len(a), ("name", "sum({a})", lambda k, a: sum(a)),
           draw=_any_list),
    _unary("most", "the most", "max({a})", lambda k, a: max(a), ("name", "min({a})", lambda k, a: min(a)),
           draw=_list),
    _unary("least", "the least", "min({a})", lambda k, a: min(a), ("name", "max({a})", lambda k, a: max(a)),
           draw=_list),
)  # fmt: skip

_LONGER = (
    Form("default", "{b} is {k} if not given", ("def {f}({a}, {b}={k}):", " return {a} + {b}"), 1,
         lambda k, a, b=None: a + (k if b is None else b),
         (Fault("default", "def {f}({a}, {b}={j}):", lambda k, a, b=None: a + (k + 1 if b is None else b)),
          Fault("default", "def {f}({a}, {b}={i}):", lambda k, a, b=None: a + (k - 1 if b is None else b))),
         _one_or_two, (1, 2, 3, 4, 5, 6, 7, 8)),
    Form("choose larger", "the larger", ("def {f}({a}, {b}):", " if {a} > {b}:", "  return {a}", " return {b}"), 2,
         lambda k, a, b: max(a, b),
         (Fault("comparison", " if {a} < {b}:", lambda k, a, b: min(a, b)),
          Fault("comparison", " if {a} == {b}:", lambda k, a, b: b),
          Fault("comparison", " if {a} != {b}:", lambda k, a, b: a)), _two),
    Form("loop", "the total", ("def {f}({a}):", " {b} = 0", " for i in {a}:", "  {b} += i", " return {b}"), 4,
         lambda k, a: sum(a), (Fault("operator", "  {b} -= i", lambda k, a: -sum(a)),), _any_list),
    Form("called", "{g} of {a}, less {b}",
         ("def {g}({a}):", " return 2 * {a}", "def {f}({a}, {b}):", " return {g}({a}) - {b}"), 4,
         lambda k, a, b: 2 * a - b,
         (Fault("swapped", " return {g}({b}) - {a}", lambda k, a, b: 2 * b - a),
          Fault("operator", " return {g}({a}) + {b}", lambda k, a, b: 2 * a + b)), _two),
    Form("caller", "{g} is {k} times {a}",
         ("def {g}({a}):", " return {k} * {a}", "def {f}({a}):", " return {g}({a}) + 1"), 2,
         lambda k, a: k * a + 1,
         (Fault("constant", " return {j} * {a}", lambda k, a: (k + 1) * a + 1),), _one, (2, 3, 4, 5, 6, 7, 8, 9)),
)  # fmt: skip

FORMS = (*_PAIRS, *_SINGLES, *_LONGER)
