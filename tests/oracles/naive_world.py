"""Answers read from plain sentences with string operations, written from the definitions of the questions.

It reads every event in its first wording and without pronouns, keeps no state between questions, and knows where, who
has, how many, what color, and which is bigger.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CONTAINERS = {"box", "bag", "basket", "chest", "bucket", "pot", "sack", "jar", "crate", "case"}


def place_of_person(told: Sequence[str], name: str) -> str | None:
    """The place of the last sentence that brings the person somewhere."""
    for sentence in reversed(told):
        if match := re.fullmatch(rf"{name} (?:was in|went to) the (\w+)(?: because .*)?\.", sentence):
            return match[1]
    return None


def place_of_thing(told: Sequence[str], thing: str) -> str | None:
    """Follow the last sentence about the thing: to a person, a container or a place."""
    for number in range(len(told) - 1, -1, -1):
        sentence = told[number]
        if match := re.fullmatch(rf"(\w+) (?:had|took) the {thing}\.", sentence):
            return place_of_person(told, match[1])
        if match := re.fullmatch(rf"(\w+) put down the {thing}\.", sentence):
            return place_of_person(told[:number], match[1])
        if match := re.fullmatch(rf"The {thing} was in the (\w+)\.", sentence):
            return place_of_thing(told, match[1]) if match[1] in CONTAINERS else match[1]
    return None


def owner(told: Sequence[str], thing: str) -> str | None:
    """The person at the end of the same chain."""
    for sentence in reversed(told):
        if match := re.fullmatch(rf"(\w+) (?:had|took) the {thing}\.", sentence):
            return match[1]
        if re.fullmatch(rf"\w+ put down the {thing}\.", sentence):
            return None
        if match := re.fullmatch(rf"The {thing} was in the (\w+)\.", sentence):
            return owner(told, match[1]) if match[1] in CONTAINERS else None
    return None


def amount(told: Sequence[str], name: str, foods: Sequence[str]) -> int:
    """The sum of what a person had, found and lost; `foods` are the singular and the plural."""
    total = 0
    for sentence in told:
        if match := re.fullmatch(rf"{name} (had|found|lost) (\w+) ({'|'.join(foods)})\.", sentence):
            total += NUMBERS.index(match[2]) * (-1 if match[1] == "lost" else 1)
    return total


def color(told: Sequence[str], thing: str, colors: Sequence[str]) -> str | None:
    """The color of the sentence about the thing."""
    for sentence in told:
        if (match := re.fullmatch(rf"The {thing} was (\w+)\.", sentence)) and match[1] in colors:
            return match[1]
    return None


def is_bigger(told: Sequence[str], thing: str, other: str) -> bool:
    """Whether the stated comparisons lead from one thing to the other."""
    pairs = [m.groups() for s in told if (m := re.fullmatch(r"The (\w+) was bigger than the (\w+)\.", s))]
    reached = {thing}
    for _ in pairs:
        reached |= {small for large, small in pairs if large in reached}
    return other in reached
