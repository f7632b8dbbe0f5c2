"""The easiest tasks of the ladder, with generators of our own: copying, lists, counting, sorting, one-digit sums.

Existing generator libraries start at a difficulty suited to models of a hundred million parameters. A model of one
million needs shorter tasks: a prompt of a dozen tokens, one operation, an answer of one to three tokens.

A primitive draws an `Item`: the slots of a wording, the answer, and the content, which is what is asked independent of
wording. Two items with the same content are the same question, however they are worded.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Setting = int | str | tuple[str, ...]
Settings = Mapping[str, Setting]

_WORD_LIST = """
air ant arm art bag ball bank bear bed bell bird boat body bone book box boy bread bus cake camp car card cat cup day
desk dog door duck ear earth egg eye face farm fish flag food foot fox game gate girl gold hair hall hand hat head hen
hill home horse house ice iron jar key king lake lamp land leaf leg lion map meal milk mind moon mouse mouth neck nest
night nose oil pan park path pen pig pipe plate pond pot queen rain ring river road rock roof room root rope rose sand
sea seat seed sheep ship shoe shop silk sky snow soap song star steel stone sun table tail tea tent time tooth town
toy train tree wall water wave wheel wind wing wolf wood wool word yard year
"""
WORDS = tuple(_WORD_LIST.split())


@dataclass(frozen=True, slots=True)
class Item:
    """A question before it is worded.

    parts: values for the placeholders of a wording. answer: the only right one. content: what is asked, independent of
    wording. solution: worked steps that lead to the answer; may be empty.
    """

    parts: Mapping[str, str]
    answer: str
    content: str
    solution: str = ""


@dataclass(frozen=True, slots=True)
class Primitive:
    """A task: the function that draws an item, and the wordings that the item can have."""

    draw: Callable[[random.Random, Settings], Item]
    wordings: tuple[str, ...]


def canonical(expression: str) -> str:
    """Return the canonical form of a calculation or text: lower case, no spaces, no trailing "=", "?" or ".", and the
    two terms of a sum or product sorted, so that "4 + 3 = ?" and "3+4" are equal."""
    bare = "".join(expression.casefold().split()).rstrip("=?.")
    for sign in "+*":
        terms = bare.split(sign)
        if len(terms) == 2 and all(term.isdecimal() for term in terms):
            return sign.join(sorted(terms, key=int))
    return bare


def running_sum(terms: list[int]) -> str:
    """Return the partial sums, one step per term: "3+4=7 7+2=9"; empty for two terms, whose only step is the answer."""
    total, steps = terms[0], []
    for term in terms[1:]:
        steps.append(f"{total}+{term}={total + term}")
        total += term
    return " ".join(steps) if len(terms) > 2 else ""


def _letters(draw: random.Random, count: int) -> list[str]:
    return draw.sample(string.ascii_lowercase, count)


def _whole(settings: Settings, name: str) -> int:
    return int(str(settings[name]))


def _count(draw: random.Random, settings: Settings) -> int:
    return draw.randint(_whole(settings, "least"), _whole(settings, "most"))


def _copy_letters(draw: random.Random, settings: Settings) -> Item:
    text = " ".join(_letters(draw, _count(draw, settings)))
    return Item({"x": text}, text, f"copy {text}")


def _copy_words(draw: random.Random, settings: Settings) -> Item:
    text = " ".join(draw.sample(WORDS, _count(draw, settings)))
    return Item({"x": text}, text, f"copy {text}")


def _end_of_list(draw: random.Random, settings: Settings) -> Item:
    """The first or last element of a list of letters or words."""
    source = WORDS if settings["of"] == "words" else tuple(string.ascii_lowercase)
    things = draw.sample(source, _count(draw, settings))
    first = settings["end"] == "first"
    return Item({"x": " ".join(things)}, things[0 if first else -1], f"{settings['end']} {' '.join(things)}")


def _sort(draw: random.Random, settings: Settings) -> Item:
    source = string.digits if settings["of"] == "digits" else string.ascii_lowercase
    things = draw.sample(source, _count(draw, settings))
    return Item({"x": " ".join(things)}, " ".join(sorted(things)), f"sort {' '.join(things)}")


def _tally(draw: random.Random, settings: Settings) -> Item:
    """The number of times, at least one, that a letter occurs in a row of two or three different letters."""
    kinds = _letters(draw, draw.randint(2, 3))
    row = [kinds[0], *(draw.choice(kinds) for _ in range(_count(draw, settings) - 1))]
    draw.shuffle(row)
    parts = {"c": kinds[0], "x": " ".join(row)}
    return Item(parts, str(row.count(kinds[0])), f"tally {kinds[0]} in {parts['x']}")


def _length(draw: random.Random, settings: Settings) -> Item:
    row = _letters(draw, _count(draw, settings))
    return Item({"x": " ".join(row)}, str(len(row)), f"length {' '.join(row)}")


def _reverse(draw: random.Random, settings: Settings) -> Item:
    row = _letters(draw, _count(draw, settings))
    return Item({"x": " ".join(row)}, " ".join(row[::-1]), f"reverse {' '.join(row)}")


def _neighbour(draw: random.Random, settings: Settings) -> Item:
    number, step = _count(draw, settings), 1 if settings["way"] == "after" else -1
    return Item({"n": str(number)}, str(number + step), f"{settings['way']} {number}")


def _larger(draw: random.Random, settings: Settings) -> Item:
    least, most = _whole(settings, "least"), _whole(settings, "most")
    a, b = draw.sample(range(least, most + 1), 2)
    return Item({"a": str(a), "b": str(b)}, str(max(a, b)), f"larger {min(a, b)} {max(a, b)}")


def _digit_sum(draw: random.Random, settings: Settings) -> Item:
    """A sum of one-digit numbers; with `first` = "two digits" the first term has two digits."""
    terms = [draw.randint(0, 9) for _ in range(_whole(settings, "terms"))]
    if settings.get("first") == "two digits":
        terms[0] = draw.randint(10, 99)
    text = " + ".join(map(str, terms))
    return Item({"x": text}, str(sum(terms)), canonical(text), running_sum(terms))


def _missing(draw: random.Random, settings: Settings) -> Item:
    """The missing summand: what must be added to a one-digit number."""
    a, b = draw.randint(0, 9), draw.randint(0, 9)
    return Item({"a": str(a), "c": str(a + b)}, str(b), f"from {a} to {a + b}")


def _count_on(draw: random.Random, settings: Settings) -> Item:
    """The next element of an arithmetic sequence whose step is given."""
    start, step = draw.randint(1, 60), draw.randint(2, 9)
    row = [start + step * k for k in range(4)]
    parts = {"x": " ".join(map(str, row[:3])), "s": str(step)}
    return Item(parts, str(row[3]), f"by {step}: {parts['x']}", f"<<{row[2]}+{step}={row[3]}>>")


def _equation(draw: random.Random, settings: Settings) -> Item:
    """a x + b = c or a x - b = c with integer x; with `factor` = 1, x + b = c or x - b = c."""
    most = _whole(settings, "most")
    factor = 1 if settings["factor"] == 1 else draw.randint(2, _whole(settings, "factor"))
    x, b, name, sign = draw.randint(1, most), draw.randint(1, most), draw.choice("knptxyz"), draw.choice("+-")
    c = factor * x + b if sign == "+" else factor * x - b
    left = f"{factor} {name}" if factor > 1 else name
    undone = f"{c}-{b}" if sign == "+" else f"{c}+{b}"
    steps = f"<<{undone}={factor * x}>>" + (f" <<{factor * x}/{factor}={x}>>" if factor > 1 else "")
    return Item({"e": f"{left} {sign} {b} = {c}", "v": name}, str(x), f"{factor}x{sign}{b}={c}", steps)


_ADD = ("{x} = ?", "What is {x}?", "Add: {x}", "The sum {x} is?")
PRIMITIVES: Mapping[str, Primitive] = {
    "copy_letters": Primitive(_copy_letters, ("Copy: {x}", "Write {x} again.", "Repeat this: {x}")),
    "copy_words": Primitive(_copy_words, ("Copy: {x}", "Write {x} again.", "Repeat this: {x}")),
    "first": Primitive(_end_of_list, ("First of: {x}", "Which comes first in {x}?", "{x}. The first one?")),
    "last": Primitive(_end_of_list, ("Last of: {x}", "Which comes last in {x}?", "{x}. The last one?")),
    "sort": Primitive(_sort, ("Sort: {x}", "Put {x} in order.", "{x} in order?")),
    "tally": Primitive(_tally, ("How many {c} in {x}?", "Count {c} in: {x}", "{x}. How often {c}?")),
    "length": Primitive(_length, ("How many letters: {x}?", "Count: {x}", "{x}. How many are there?")),
    "reverse": Primitive(_reverse, ("Reverse: {x}", "Write {x} backwards.", "{x} from end to start?")),
    "after": Primitive(_neighbour, ("What comes after {n}?", "Next after {n}:", "Count on from {n}.")),
    "before": Primitive(_neighbour, ("What comes before {n}?", "One less than {n}:", "Count back from {n}.")),
    "larger": Primitive(_larger, ("Larger: {a} or {b}?", "Which is more, {a} or {b}?", "Biggest of {a}, {b}:")),
    "digit_sum": Primitive(_digit_sum, _ADD),
    "missing": Primitive(_missing, ("{a} + ? = {c}", "{a} and how many are {c}?", "From {a} to {c}: how many?")),
    "count_on": Primitive(_count_on, ("Go on by {s}: {x}", "{x}, add {s}. Next?", "In steps of {s}: {x} ?")),
    "equation": Primitive(_equation, ("Solve {e}.", "{e}. What is {v}?", "Find {v}: {e}")),
}
