"""The harder tasks of the ladder: items of reasoning-gym (Stojanovski et al., 2025), stripped of their instructions.

Every item is reproducible from its seed alone. reasoning-gym draws item `i` of a data set with seed `s` from
`Random(s + i)`, so one data set per cell serves all seeds; a test checks this against data sets made for one seed.

Only tasks with a single right answer are used, so that exact match agrees with the library's own `score_answer`.
**Left out**, with the reason: yes-or-no tasks (a constant answer is right half of the time); fractions to simplify (the
unsimplified one is equal); `number_sequence` (several rules fit); `family_relationships` (version 0.1.25 answers the
inverse relation: for a son's wife and his father it says "father-in-law"); `basic_arithmetic` without parentheses (it
evaluates from left to right, ignoring precedence) and with division (its division rounds down).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from training_core.data.task_bank import reasoning_gym
from training_core.tasks.questions.primitives import Item, canonical

Entry = Mapping[str, Any]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"


class UnclearItemError(ValueError):
    """Raised when the item of a seed has several right answers."""


@dataclass(frozen=True, slots=True)
class Generator:
    """A reasoning-gym generator: its name there, the reader of its entries, and the wordings of its questions."""

    name: str
    read: Callable[[Entry], Item]
    wordings: tuple[str, ...]


@cache
def gym_dataset(cell: str, generator: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    """Return the data set of a cell, seeded by the cell's name; item `i` exists for every integer `i`.

    Raises:
        ValueError: when reasoning-gym is not installed.
    """
    gym, chosen = reasoning_gym(), dict(settings)
    if "transformation" in chosen:
        from reasoning_gym.algorithmic.word_sorting import TextTransformation

        chosen["transformation"] = TextTransformation(chosen["transformation"])
    return gym.create_dataset(generator, size=1, seed=zlib.crc32(cell.encode()), **chosen)


def _python(code: str, output: str) -> str:
    return f"<py>{code}</py><out>{output}</out>"


def _call(expression: str, value: str) -> str:
    return f"<<{''.join(expression.split())}={value}>>"


def _calculation(entry: Entry) -> Item:
    """A sum, a product or a parenthesised expression of integers or decimals, solved by one calculator call."""
    expression = str(entry["metadata"]["expression"]).replace("( ", "(").replace(" )", ")")
    answer = str(entry["answer"])
    if "." in answer:
        answer = answer.rstrip("0").rstrip(".")
    answer = "0" if answer == "-0" else answer
    return Item({"x": expression}, answer, canonical(expression), _call(expression, answer))


def _spell_backward(entry: Entry) -> Item:
    word = str(entry["metadata"]["word"]).lower()
    return Item({"w": word}, word[::-1], f"backward {word}", _python(f'print("{word}"[::-1])', word[::-1]))


def _letter_counting(entry: Entry) -> Item:
    letter, text = str(entry["metadata"]["target_letter"]), " ".join(entry["metadata"]["span"]).lower()
    answer = str(entry["answer"])
    steps = _python(f'print("{text}".count("{letter}"))', answer)
    return Item({"c": letter, "x": text}, answer, f"letters {letter} in {text}", steps)


def _word_sorting(entry: Entry) -> Item:
    words, answer = list(entry["metadata"]["transformed_words"]), str(entry["answer"])
    down = ",reverse=True" if entry["metadata"]["direction"] == "descending" else ""
    steps = _python(f'print(", ".join(sorted("{" ".join(words)}".split(){down})))', answer)
    parts = {"x": ", ".join(words), "o": "from z to a" if down else "from a to z"}
    return Item(parts, answer, f"sort {parts['o']} {parts['x']}", steps)


def _word_reversal(entry: Entry) -> Item:
    words = [str(word) for word in entry["metadata"]["words"]]
    answer = ", ".join(words[::-1])
    steps = _python(f'print(", ".join("{" ".join(words)}".split()[::-1]))', answer)
    return Item({"x": ", ".join(words)}, answer, f"words backward {' '.join(words)}", steps)


def _divisor(entry: Entry) -> Item:
    return _of_numbers(entry, "gcd")


def _multiple(entry: Entry) -> Item:
    return _of_numbers(entry, "lcm")


def _of_numbers(entry: Entry, function: str) -> Item:
    numbers, answer = [int(n) for n in entry["metadata"]["numbers"]], str(entry["answer"])
    steps = _python(f"import math;print(math.{function}({','.join(map(str, numbers))}))", answer)
    text = " and ".join(map(str, numbers))
    return Item({"x": text}, answer, f"{function} {' '.join(map(str, sorted(numbers)))}", steps)


def _base_conversion(entry: Entry) -> Item:
    about, answer = entry["metadata"], str(entry["answer"])
    digits, base, target = str(about["source_repr"]), int(about["source_base"]), int(about["target_base"])
    alphabet = "0123456789abcdef"[:target]
    code = f'n=int("{digits}",{base})\ns=""\nwhile n:s="{alphabet}"[n%{target}]+s;n//={target}\nprint(s)'
    if target == 10:
        code = f'print(int("{digits}",{base}))'
    parts = {"n": digits, "b": str(base), "t": str(target)}
    return Item(parts, answer, f"{digits} base {base} to {target}", _python(code, answer))


def _count_bits(entry: Entry) -> Item:
    number, answer = str(entry["metadata"]["number"]), str(entry["answer"])
    return Item({"n": number}, answer, f"bits {number}", _python(f'print(bin({number}).count("1"))', answer))


def _count_primes(entry: Entry) -> Item:
    start, end, answer = entry["metadata"]["start"], entry["metadata"]["end"], str(entry["answer"])
    code = f"print(sum(all(n%d for d in range(2,n))for n in range({max(start, 2)},{end + 1})))"
    return Item({"a": str(start), "b": str(end)}, answer, f"primes {start} {end}", _python(code, answer))


def _leg_counting(entry: Entry) -> Item:
    """Legs of a group of animals. The legs per animal appear only in the solution, e.g. "3*6+2*10"."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    animals: Mapping[str, int] = entry["metadata"]["animals"]
    answer = str(entry["answer"])
    text = ", ".join(f"{number} {_plural(name) if number > 1 else name}" for name, number in animals.items())
    steps = _call("+".join(f"{number}*{ANIMALS[name]}" for name, number in animals.items()), answer)
    return Item({"x": text}, answer, f"legs {' '.join(sorted(text.split(', ')))}", steps)


def _plural(animal: str) -> str:
    if animal in ("jellyfish", "starfish", "deer", "sheep", "shrimp"):
        return animal
    if animal.endswith(("fly", "louse")):
        return animal.replace("fly", "flies").replace("louse", "lice")
    return f"{animal}es" if animal.endswith(("ch", "s")) else f"{animal}s"


def _angle(entry: Entry) -> Item:
    about, answer = entry["metadata"], str(entry["answer"])
    angles = [str(int(angle)) for angle in about["known_angles"]]
    steps = _call("-".join([str(about["total_interior_sum"]), *angles]), answer)
    sides = str(about["n_sides"])
    return Item({"n": sides, "x": ", ".join(angles)}, answer, f"angle {sides} {' '.join(sorted(angles))}", steps)


def _needle(entry: Entry) -> Item:
    """A needle in a haystack of statements: the solution repeats the one that answers the question."""
    statements, asked = str(entry["question"]).split(" Reply only with")[0].split("\n")
    name = str(entry["answer"])
    predicate = asked.removeprefix("Who ").removesuffix("?")
    if sum(statement.endswith(f" {predicate}") for statement in statements.strip().removesuffix(".").split(". ")) != 1:
        raise UnclearItemError(f"several statements answer {asked!r}: draw another seed")
    parts = {"x": statements.strip(), "t": predicate}
    return Item(parts, name, canonical(f"{statements.strip()}{asked}"), f"{name} {predicate}.")


def _weekday(entry: Entry) -> Item:
    about, answer = entry["metadata"], str(entry["answer"])
    today, offset = date.fromisoformat(about["start_date"]).weekday(), int(about["offset_days"])
    code = f'print("{DAYS}".split()[({today}{offset:+})%7])'
    name = DAYS.split()[today]
    when = f"in {offset} days" if offset > 0 else f"{-offset} days ago"
    return Item({"d": name, "w": when}, answer, f"{name} {offset:+}", _python(code, answer))


_COMPUTE = ("{x} = ?", "What is {x}?", "Compute {x}.", "Find the value of {x}.")
_SORT_WORDS = ("Sort {o}: {x}", "Put in order, {o}: {x}", "{x}. In order {o}?")
_NEEDLE = ("{x} Who {t}?", "Who {t}? {x}", "{x} Name the one who {t}.")
GENERATORS: Mapping[str, Generator] = {
    "sum": Generator("chain_sum", _calculation, _COMPUTE),
    "decimal_sum": Generator("decimal_chain_sum", _calculation, _COMPUTE),
    "product": Generator("products", _calculation, (*_COMPUTE, "Multiply: {x}")),
    "expression": Generator("basic_arithmetic", _calculation, _COMPUTE),
    "spell_backward": Generator(
        "spell_backward", _spell_backward, ("Spell {w} backward.", "{w} backward?", "Write {w} from end to start.")
    ),
    "letter_counting": Generator(
        "letter_counting",
        _letter_counting,
        ('How many letters {c} in "{x}"?', 'Count the letter {c} in "{x}".', '"{x}": how often {c}?'),
    ),
    "word_sorting": Generator("word_sorting", _word_sorting, _SORT_WORDS),
    "word_reversal": Generator(
        "word_sequence_reversal",
        _word_reversal,
        ("Reverse the list: {x}", "{x}. From last to first?", "Write these from last to first: {x}"),
    ),
    "gcd": Generator(
        "gcd", _divisor, ("gcd of {x}?", "What is the greatest common divisor of {x}?", "Find the gcd: {x}")
    ),
    "lcm": Generator(
        "lcm", _multiple, ("lcm of {x}?", "What is the least common multiple of {x}?", "Find the lcm: {x}")
    ),
    "base_conversion": Generator(
        "base_conversion",
        _base_conversion,
        ("Write {n} of base {b} in base {t}.", "{n} (base {b}) in base {t}?", "From base {b} to base {t}: {n}"),
    ),
    "count_bits": Generator(
        "count_bits",
        _count_bits,
        ("How many 1 bits has {n}?", "Count the ones of {n} in binary.", "{n} in binary: how many ones?"),
    ),
    "count_primes": Generator(
        "count_primes",
        _count_primes,
        ("How many primes from {a} to {b}?", "Count the primes from {a} to {b}.", "Primes in {a} to {b}: how many?"),
    ),
    "leg_counting": Generator(
        "leg_counting", _leg_counting, ("How many legs have {x}?", "Count the legs: {x}", "{x}. Legs in all?")
    ),
    "angle": Generator(
        "simple_geometry",
        _angle,
        (
            "Angles of a polygon of {n} sides: {x} and?",
            "A {n}-gon has angles {x}. The last one?",
            "{n} sides, all angles but one: {x}. Find it.",
        ),
    ),
    "needle": Generator("needle_haystack", _needle, _NEEDLE),
    "weekday": Generator(
        "calendar_arithmetic",
        _weekday,
        ("Today is {d}. Which day {w}?", "If it is {d}, which weekday {w}?", "{d} now. {w}: which day?"),
    ),
}
