"""Text from events: sentences of the grammar, with pronouns, joined predicates, leads and times of day.

A pronoun stands for the only person (of that gender) or thing in the sentence before, or, after "and", in the clause
before; so a text that is parsed gives back the events that it was made from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from training_core.world.grammar import BOTH, LEADS, TIMES, Wording, wordings
from training_core.world.lexicon import FOODS, category, is_woman
from training_core.world.state import Event

_PREFIXES = {phase: prefix for prefix, phase in TIMES.items()}
Binding = Mapping[str, str]  # role -> word


@dataclass(frozen=True, slots=True)
class Style:
    """How varied a text is. All are in [0, 1].

    variety: share of each kind's wordings in use; 0 uses the first only. joins: how often two events of one person
    share a sentence. leads: how often a sentence opens with "then" or the like. pronouns: how often a name or thing
    that can be a pronoun is one. held_out: how often a held-out wording is taken where there is one.
    """

    variety: float = 0.5
    joins: float = 0.3
    leads: float = 0.2
    pronouns: float = 0.5
    held_out: float = 0.0


class Focus(NamedTuple):
    """Persons and things in the sentence (or clause) before: what a pronoun can stand for."""

    people: tuple[str, ...] = ()
    things: tuple[str, ...] = ()

    def person(self, woman: bool) -> str | None:
        """Return the only person of a gender, None if there is none or more than one."""
        found = [name for name in self.people if is_woman(name) == woman]
        return found[0] if len(found) == 1 else None

    def thing(self) -> str | None:
        """Return the only thing, None if there is none or more than one."""
        return self.things[0] if len(self.things) == 1 else None


NO_FOCUS = Focus()


@dataclass(frozen=True, slots=True)
class Telling:
    """A story in sentences; `events[i]` are the numbers of the events that sentence i tells."""

    sentences: tuple[str, ...]
    events: tuple[tuple[int, ...], ...]

    @property
    def text(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(self.sentences)


def realise(events: Sequence[Event], rng: random.Random, style: Style) -> Telling:
    """Return a text that tells the events in order; which wording is drawn depends on `rng` alone.

    Raises:
        ValueError: when the grammar has no wording for an event.
    """
    sentences: list[str] = []
    told: list[tuple[int, ...]] = []
    focus = NO_FOCUS
    place = 0
    while place < len(events):
        text, number = _sentence(events, place, focus, rng, style)
        sentences.append(_as_sentence(text, "."))
        told.append(tuple(range(place, place + number)))
        focus = focus_of(events[place : place + number])
        place += number
    return Telling(tuple(sentences), tuple(told))


def plain(event: Event) -> str:
    """Return the sentence of an event in its first wording, without pronouns for people and things."""
    return _as_sentence(_worded(wordings(event.kind)[0], event, NO_FOCUS, 0.0, None), ".")


def clause(reason: Event) -> str:
    """Return a reason as a clause: "he lost the ball"."""
    return _worded(wordings(reason.kind)[0], reason, NO_FOCUS, 0.0, None)


def question(query: Event, wording: Wording) -> str:
    """Return a question in a given wording."""
    return _as_sentence(_worded(wording, query, NO_FOCUS, 0.0, None), "?")


def choose(kind: str, rng: random.Random, style: Style) -> Wording:
    """Draw a wording of a kind.

    Raises:
        ValueError: when there is no such kind.
    """
    usual, held = _usable(kind, style.variety)
    if held and style.held_out and rng.random() < style.held_out:
        return held[int(rng.random() * len(held))]
    return usual[0] if len(usual) == 1 else usual[int(rng.random() * len(usual))]


def focus_of(events: Sequence[Event]) -> Focus:
    """Return the persons and things that these events mention."""
    words = dict.fromkeys(word for event in events for word in event.args)
    people = tuple(word for word in words if category(word) == "person")
    return Focus(people, tuple(word for word in words if category(word) == "thing"))


def article(word: str) -> str:
    """Return the word with "a" or "an" before it."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def counted(number: str, food: str) -> str:
    """Return a number with its food: "one apple", "three apples"."""
    return f"{number} {food if number == 'one' else FOODS[food]}"


@cache
def _usable(kind: str, variety: float) -> tuple[tuple[Wording, ...], tuple[Wording, ...]]:
    every = wordings(kind)
    usual = tuple(wording for wording in every if not wording.held_out)
    return usual[: 1 + round(variety * (len(usual) - 1))], tuple(wording for wording in every if wording.held_out)


def _sentence(events: Sequence[Event], place: int, focus: Focus, rng: random.Random, style: Style) -> tuple[str, int]:
    """The text of the sentence that starts with an event, and the number of events that it tells."""
    first, number, opening = events[place], 1, ""
    following = events[place + 1] if place + 1 < len(events) else None
    if first.kind == "time" and following and rng.random() < style.joins:
        wording = choose(following.kind, rng, style)
        if wording.predicate or wording.led:
            opening, number, first = f"{_PREFIXES[first.args[0]]} ", 2, following
            following = events[place + 2] if place + 2 < len(events) else None
        else:
            wording = choose(first.kind, rng, style)
    else:
        wording = choose(first.kind, rng, style)
        if place and wording.led and style.leads and rng.random() < style.leads:
            opening = f"{LEADS[int(rng.random() * (1 + round(style.variety * (len(LEADS) - 1))))]} "
    if following and style.joins:
        if _is_both(first, following) and rng.random() < 0.5 + style.joins / 2:
            pair = Event("both", (first.args[0], following.args[0], first.args[1]))
            return opening + _worded(BOTH, pair, NO_FOCUS, 0.0, None), number + 1
        if wording.predicate and following.args[0] == first.args[0] and rng.random() < style.joins:
            second = choose(following.kind, rng, style)
            if second.predicate:
                text = _worded(wording, first, focus, style.pronouns, rng)
                again = _worded(second, following, focus_of([first]), style.pronouns, rng, subject=False)
                return f"{opening}{text} and{again}", number + 1
    return opening + _worded(wording, first, focus, style.pronouns, rng), number


def _is_both(first: Event, second: Event) -> bool:
    return first.kind == second.kind == "go" and first.args[1] == second.args[1] and first.args[0] != second.args[0]


def _worded(
    wording: Wording, event: Event, focus: Focus, pronouns: float, rng: random.Random | None, *, subject: bool = True
) -> str:
    """The text of a wording; without its subject if it follows "and"."""
    binding = dict(zip(wording.roles, event.args, strict=True))
    parts: list[str] = []
    for literal, slot in _compiled(wording.text):
        parts.append(literal)
        if slot:
            parts.append(_PRONOUN[slot](binding, focus, pronouns, rng) if slot in _PRONOUN else _FIXED[slot](binding))
    return "".join(parts if subject else parts[2:])


@cache
def _compiled(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of literal text and the slot that follows it."""
    pairs: list[tuple[str, str]] = []
    for part in text.split("{"):
        slot, brace, rest = part.partition("}")
        if brace:
            pairs[-1] = (pairs[-1][0], slot)
            pairs.append((rest, ""))
        else:
            pairs.append((slot, ""))
    return tuple(pairs)


def _subject(b: Binding, focus: Focus, pronouns: float, rng: random.Random | None) -> str:
    name = b["p"]
    if rng is not None and focus.people and focus.person(is_woman(name)) == name and rng.random() < pronouns:
        return "she" if is_woman(name) else "he"
    return name


def _object(b: Binding, focus: Focus, pronouns: float, rng: random.Random | None) -> str:
    name = b["q"]
    if rng is not None and focus.people and focus.person(is_woman(name)) == name and rng.random() < pronouns:
        return "her" if is_woman(name) else "him"
    return name


def _thing(b: Binding, focus: Focus, pronouns: float, rng: random.Random | None) -> str:
    if rng is not None and focus.thing() == b["t"] and rng.random() < pronouns:
        return "it"
    return f"the {b['t']}"


_PRONOUN: Mapping[str, Callable[[Binding, Focus, float, random.Random | None], str]] = {
    "p": _subject,
    "q": _object,
    "t": _thing,
}
_FIXED: Mapping[str, Callable[[Binding], str]] = {
    "P": lambda b: b["p"],
    "Q": lambda b: b["q"],
    "T": lambda b: f"the {b['t']}",
    "U": lambda b: f"the {b['u']}",
    "c": lambda b: f"the {b['c']}",
    "x": lambda b: f"the {b['x']}",
    "y": lambda b: f"the {b['y']}",
    "d": lambda b: b["d"],
    "w": lambda b: b["w"],
    "f": lambda b: b["f"],
    "m": lambda b: b["m"],
    "k": lambda b: FOODS[b["k"]],
    "he": lambda b: "she" if is_woman(b["p"]) else "he",
    "him": lambda b: "her" if is_woman(b["p"]) else "him",
    "himself": lambda b: "herself" if is_woman(b["p"]) else "himself",
    "a_d_t": lambda b: f"{article(b['d'])} {b['t']}",
    "a_k": lambda b: article(b["k"]),
    "n_k": lambda b: counted(b["n"], b["k"]),
    "were_n": lambda b: "was" if b["n"] == "one" else "were",
}


def _as_sentence(text: str, mark: str) -> str:
    if text[0] == '"':
        return f'"{text[1].upper()}{text[2:]}{mark}'
    return f"{text[0].upper()}{text[1:]}{mark}"
