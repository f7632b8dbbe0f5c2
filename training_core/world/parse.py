"""Events from text: the inverse of `realise`, by the same table of wordings.

A sentence parses if some wording, with its lead, time of day or joined predicate, gives exactly its words and marks. A
pronoun needs exactly one person or thing in the sentence (or clause) before that it can stand for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from training_core.world.grammar import BOTH, EVENTS, LEADS, QUESTIONS, TABLE, TIMES, Wording
from training_core.world.lexicon import (
    CONTAINERS,
    FEELINGS,
    FOODS,
    MATERIALS,
    NUMBERS,
    PHASES,
    category,
    is_woman,
    property_class,
)
from training_core.world.realise import NO_FOCUS, Focus, article, focus_of
from training_core.world.rules import OPPOSITES
from training_core.world.state import Event

_SENTENCE = re.compile(r'(?:"[^"]*"|[^".?!])+[.?!]')
_TOKEN = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")
_SINGULAR = {plural: food for food, plural in FOODS.items()}
_FELT = frozenset((*FEELINGS, *OPPOSITES))

Tokens = Sequence[str]
Bound = dict[str, str]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A sentence and the events that it tells; None if it is no sentence of the grammar."""

    sentence: str
    events: tuple[Event, ...] | None


@dataclass(slots=True)
class _Node:
    """Wordings that begin with the same pieces."""

    words: dict[str, _Node] = field(default_factory=dict)
    slots: dict[str, _Node] = field(default_factory=dict)
    complete: list[Wording] = field(default_factory=list)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text in order; what stands between or after them is one too, so nothing is lost."""
    found: list[str] = []
    end = 0
    for match in _SENTENCE.finditer(text):
        found += [text[end : match.start()], match[0]]
        end = match.end()
    return [part.strip() for part in (*found, text[end:]) if part.strip()]


def parse(text: str) -> list[Parsed]:
    """Return every sentence of a story with its events."""
    result: list[Parsed] = []
    focus = NO_FOCUS
    for sentence in sentences(text):
        events = next(readings(sentence, focus), None)
        result.append(Parsed(sentence, events))
        focus = NO_FOCUS if events is None else focus_of(events)
    return result


def parse_question(text: str) -> Event | None:
    """Return the query of a question, None if it is no question of the grammar."""
    tokens = _tokens(text, "?")
    if tokens is None:
        return None
    matches = _match(_root("?"), tokens, 0, {}, NO_FOCUS)
    return next((_event(wording, bound) for wording, bound, end in matches if end == len(tokens)), None)


def readings(sentence: str, focus: Focus) -> Iterator[tuple[Event, ...]]:
    """Yield every reading of a sentence; the grammar is made so that there is at most one.

    focus: persons and things of the sentence before.
    """
    tokens = _tokens(sentence, ".")
    if tokens is None:
        return
    for start, opening, timed in _openings(tokens):
        for wording, bound, end in _match(_root("."), tokens, start, {}, focus):
            if wording is BOTH:
                if end == len(tokens) and bound["p"] != bound["q"]:
                    yield (*opening, Event("go", (bound["p"], bound["x"])), Event("go", (bound["q"], bound["x"])))
                continue
            if start and not (wording.led or (timed and wording.predicate)):
                continue
            first = _event(wording, bound)
            if end == len(tokens):
                yield (*opening, first)
            elif wording.predicate and tokens[end] == "and":
                yield from (
                    (*opening, first, second) for second in _joined(tokens, end + 1, bound["p"], focus_of([first]))
                )


def _tokens(sentence: str, mark: str) -> list[str] | None:
    """Words and marks without the final one; the first word in lower case, unless it is a name or "I"."""
    tokens = _TOKEN.findall(sentence[:-1])
    if f"{_spaced(tokens)}{mark}" != sentence:
        return None
    first = 1 if tokens[:1] == ['"'] else 0
    if len(tokens) <= first or not tokens[first][0].isupper():
        return None
    if category(tokens[first]) != "person" and tokens[first] != "I":
        tokens[first] = tokens[first].lower()
    return tokens


def _spaced(tokens: Tokens) -> str:
    """The tokens with the spaces that the grammar writes: none inside of quotation marks, none before a mark."""
    text, quoted, opened = "", False, True  # opened: a quotation mark that opens, or nothing, stands before the token
    for token in tokens:
        quote = token == '"'
        glued = opened or (quoted if quote else not token.isalpha())
        text += token if glued else f" {token}"
        opened = quote and not quoted
        quoted = quoted != quote
    return text


def _openings(tokens: Tokens) -> Iterator[tuple[int, tuple[Event, ...], bool]]:
    """Where the clause can begin, with the event that a time of day before it tells."""
    yield 0, (), False
    for lead in LEADS:
        words = lead.split()
        if list(tokens[: len(words)]) == words:
            yield len(words), (), False
    for prefix, phase in TIMES.items():
        words = prefix.split()
        if list(tokens[: len(words)]) == words:
            yield len(words), (Event("time", (phase,)),), True


def _joined(tokens: Tokens, start: int, subject: str, focus: Focus) -> Iterator[Event]:
    """The predicates after "and", up to the end."""
    node = _root(".").slots["p"]
    for wording, bound, end in _match(node, tokens, start, {"p": subject}, focus):
        if wording.predicate and end == len(tokens):
            yield _event(wording, bound)


def _event(wording: Wording, bound: Mapping[str, str]) -> Event:
    return Event(wording.kind, tuple(bound[role] for role in wording.roles))


@cache
def _root(mark: str) -> _Node:
    """The wordings as a tree by pieces: of events for ".", of questions for "?"."""
    root = _Node()
    kinds = EVENTS if mark == "." else [f"?{kind}" for kind in QUESTIONS]
    for wording in [*(wording for kind in kinds for wording in TABLE[kind]), *([BOTH] if mark == "." else [])]:
        node = root
        for piece in wording.pieces:
            if piece.startswith("{"):
                node = node.slots.setdefault(piece[1:-1], _Node())
            else:
                node = node.words.setdefault(piece, _Node())
        node.complete.append(wording)
    return root


def _match(node: _Node, tokens: Tokens, place: int, bound: Bound, focus: Focus) -> Iterator[tuple[Wording, Bound, int]]:
    """Yield each wording below a node that the tokens from a place on begin with, the roles' words, and the end."""
    for wording in node.complete:
        yield wording, bound, place
    if place >= len(tokens):
        return
    if (following := node.words.get(tokens[place])) is not None:
        yield from _match(following, tokens, place + 1, bound, focus)
    for slot, following in node.slots.items():
        found = _READERS[slot](tokens, place, bound, focus)
        if found is not None:
            words, end = found
            if all(bound.get(role, word) == word for role, word in words.items()):
                yield from _match(following, tokens, end, {**bound, **words}, focus)


Found = tuple[Bound, int] | None
Reader = Callable[[Tokens, int, Bound, Focus], Found]


def _name(role: str) -> Reader:
    def read(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
        return ({role: tokens[i]}, i + 1) if category(tokens[i]) == "person" else None

    return read


def _name_or(role: str, his: str, hers: str) -> Reader:
    def read(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
        word = tokens[i]
        if word in (his, hers):
            word = focus.person(word == hers) or ""
        return ({role: word}, i + 1) if category(word) == "person" else None

    return read


def _the(role: str, accepts: Callable[[str], bool]) -> Reader:
    def read(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
        if tokens[i] == "the" and i + 1 < len(tokens) and accepts(tokens[i + 1]):
            return {role: tokens[i + 1]}, i + 2
        return None

    return read


def _is_thing(word: str) -> bool:
    return category(word) == "thing"


def _thing_or_it(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
    if tokens[i] == "it":
        thing = focus.thing()
        return None if thing is None else ({"t": thing}, i + 1)
    return _the("t", _is_thing)(tokens, i, bound, focus)


def _word(role: str, accepts: Callable[[str], bool]) -> Reader:
    def read(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
        return ({role: tokens[i]}, i + 1) if accepts(tokens[i]) else None

    return read


def _form(his: str, hers: str) -> Reader:
    """A form of the pronoun for p, who has been read before."""

    def read(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
        return ({}, i + 1) if "p" in bound and tokens[i] == (hers if is_woman(bound["p"]) else his) else None

    return read


def _looks(word: str) -> bool:
    return category(word) == "property" and property_class(word) != "material"


def _such_thing(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
    row = tokens[i : i + 3]
    if len(row) == 3 and _looks(row[1]) and article(row[1]) == f"{row[0]} {row[1]}" and _is_thing(row[2]):
        return {"d": row[1], "t": row[2]}, i + 3
    return None


def _one_food(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
    row = tokens[i : i + 2]
    if len(row) == 2 and row[1] in FOODS and article(row[1]) == f"{row[0]} {row[1]}":
        return {"k": row[1]}, i + 2
    return None


def _some_food(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
    row = tokens[i : i + 2]
    if len(row) < 2 or row[0] not in NUMBERS:
        return None
    food = row[1] if row[0] == "one" else _SINGULAR.get(row[1], "")
    return ({"n": row[0], "k": food}, i + 2) if food in FOODS else None


def _were(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
    """ "was" binds the number one, where it stands before the number."""
    if tokens[i] not in ("was", "were"):
        return None
    if "n" in bound:
        return ({}, i + 1) if (bound["n"] == "one") == (tokens[i] == "was") else None
    number = tokens[i + 1] if i + 1 < len(tokens) else ""
    return ({}, i + 1) if number in NUMBERS and (number == "one") == (tokens[i] == "was") else None


def _foods(tokens: Tokens, i: int, bound: Bound, focus: Focus) -> Found:
    food = _SINGULAR.get(tokens[i])
    return ({"k": food}, i + 1) if food else None


_READERS: Mapping[str, Reader] = {
    "p": _name_or("p", "he", "she"),
    "q": _name_or("q", "him", "her"),
    "P": _name("p"),
    "Q": _name("q"),
    "t": _thing_or_it,
    "T": _the("t", _is_thing),
    "U": _the("u", _is_thing),
    "c": _the("c", lambda word: word in CONTAINERS),
    "x": _the("x", lambda word: category(word) == "place"),
    "y": _the("y", lambda word: category(word) == "place"),
    "d": _word("d", _looks),
    "w": _word("w", lambda word: word in MATERIALS),
    "f": _word("f", lambda word: word in _FELT),
    "m": _word("m", lambda word: word in PHASES),
    "k": _foods,
    "he": _form("he", "she"),
    "him": _form("him", "her"),
    "himself": _form("himself", "herself"),
    "a_d_t": _such_thing,
    "a_k": _one_food,
    "n_k": _some_food,
    "were_n": _were,
}
