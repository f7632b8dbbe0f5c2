"""Questions about a state of the world, and their answers: each with the facts that support it, in order.

A query is an `Event` of `grammar.QUESTIONS`. Its answer is a bare word (or words), a short sentence, the numbers of the
supporting events, and the other answers that somebody who reads the story without understanding might give.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from training_core.world.grammar import QUESTIONS
from training_core.world.lexicon import FEELINGS, MOODS, NUMBERS, is_woman, property_class
from training_core.world.realise import clause, counted, plain
from training_core.world.stage import pick
from training_core.world.state import Event, Known, State, Support, merged

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "where": ("where", "where_thing", "place_of"),
    "who": ("who_has",),
    "like": ("color", "size", "material", "color_held", "color_in"),
    "how_many": ("how_many",),
    "before_after": ("before", "after", "had_before", "had_after"),
    "why": ("why", "why_go"),
    "bigger": ("bigger", "smaller"),
    "yes_no": ("is_at", "is_place", "has", "is_like"),
    "list": ("what_has", "who_at", "what_in"),
    "path": ("between",),
}
FAMILY_OF: Mapping[str, str] = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
YES_NO = ("yes", "no")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a query. word: bare. sentence: in full. support: numbers of the events that it follows from.

    candidates: answers of the same kind that the story offers, the right one among them.
    """

    query: Event
    word: str
    sentence: str
    support: Support
    candidates: tuple[str, ...]

    @property
    def family(self) -> str:
        """The family of the question."""
        return FAMILY_OF[self.query.kind]

    @property
    def hops(self) -> int:
        """Number of told events that the answer follows from."""
        return len(self.support)


def answer(state: State, query: Event) -> Answer | None:
    """Return the answer to a query, None if the story does not tell it, or tells more than one.

    Raises:
        ValueError: when there is no such query.
    """
    solver = _SOLVERS.get(query.kind)
    if solver is None:
        raise ValueError(f"unknown question {query.kind!r}: the kinds are {', '.join(_SOLVERS)}")
    found = solver(state, *query.args)
    if found is None:
        return None
    word, sentence, support, candidates = found
    return Answer(query, word, sentence, support, tuple(dict.fromkeys((*candidates, word))))


def propose(rng: random.Random, state: State, family: str) -> Event:
    """Draw a query of a family about what the story mentions; it may have no answer.

    Raises:
        ValueError: when there is no such family.
    """
    kinds = FAMILIES.get(family)
    if kinds is None:
        raise ValueError(f"unknown family {family!r}: the families are {', '.join(FAMILIES)}")
    kind = pick(rng, kinds)
    words: list[str] = []
    for role in QUESTIONS[kind][0].split():
        source: Sequence[str] = FEELINGS if role == "f" else state.mentioned(_CATEGORY_OF_ROLE[role])
        left = [word for word in source if word not in words]
        words.append(pick(rng, left) if left else "")
    if family == "bigger" and state.larger:
        words = rng.sample([pick(rng, list(state.larger)), pick(rng, state.mentioned("thing"))], 2)
    query = Event(kind, tuple(words))
    return _balanced(rng, state, query) if family == "yes_no" else query


def solution(events: Sequence[Event], found: Answer) -> str:
    """Return the worked solution: the supporting facts as plain sentences in order, and the steps of a calculation."""
    facts = [plain(events[number]) for number in found.support]
    if found.query.kind == "how_many":
        facts += _calculation([events[number] for number in found.support], found.query.args[0])
    return " ".join(facts)


_CATEGORY_OF_ROLE = {
    "p": "person", "t": "thing", "u": "thing", "c": "thing", "x": "place", "y": "place", "k": "food", "d": "property",
}  # fmt: skip
_GAINS, _LOSSES = ("find_some", "take_some"), ("lose_some", "give_some", "eat")
Found = tuple[str, str, Support, Iterable[str]] | None


def _balanced(rng: random.Random, state: State, query: Event) -> Event:
    """A query whose answer is "yes" half of the time, where the story tells what would be right."""
    if rng.random() < 0.5:
        return query
    first = query.args[0]
    if query.kind == "is_at" and (at := state.at.get(first)):
        return Event(query.kind, (first, at.value))
    if query.kind == "is_place" and (place := state.place_of(first)):
        return Event(query.kind, (first, place.value))
    if query.kind == "has" and (holder := state.holder_of(query.args[1])):
        return Event(query.kind, (holder.value, query.args[1]))
    if query.kind == "is_like" and (looks := state.looks.get((first, "color"))):
        return Event(query.kind, (first, looks.value))
    return query


def _calculation(events: Sequence[Event], person: str) -> list[str]:
    """ "five minus two is three." for every change of an amount."""
    steps: list[str] = []
    total = 0
    for number, event in enumerate(events):
        by = 1 if event.kind == "eat" else NUMBERS.index(next(word for word in event.args if word in NUMBERS))
        gain = event.kind not in _LOSSES or event.args[0] != person
        if number:
            result = total + by if gain else total - by
            sign = "plus" if gain else "minus"
            steps.append(f"{NUMBERS[total].capitalize()} {sign} {NUMBERS[by]} is {NUMBERS[result]}.")
            total = result
        else:
            total = by
    return steps


def _joined(words: Sequence[str], before: str = "") -> str:
    named = [f"{before}{word}" for word in words]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _place(state: State, subject: str, known: Known | None) -> Found:
    if known is None:
        return None
    return known.value, f"{subject} is in the {known.value}.", known.support, state.mentioned("place")


def _where(s: State, p: str) -> Found:
    return _place(s, p, s.at.get(p))


def _where_thing(s: State, t: str) -> Found:
    spot = s.spots.get(t)
    return None if spot is None or spot.relation == "in" else _place(s, f"The {t}", s.place_of(t))


def _place_of(s: State, t: str) -> Found:
    return _place(s, f"The {t}", s.place_of(t))


def _who_has(s: State, t: str) -> Found:
    holder = s.holder_of(t)
    if holder is None:
        return None
    return holder.value, f"{holder.value} has the {t}.", holder.support, s.mentioned("person")


def _property(kind: str) -> Callable[[State, str], Found]:
    def solve(s: State, t: str) -> Found:
        looks = s.looks.get((t, kind))
        if looks is None:
            return None
        others = [word for word in s.mentioned("property") if property_class(word) == kind]
        is_like = "is made of" if kind == "material" else "is"
        return looks.value, f"The {t} {is_like} {looks.value}.", looks.support, others

    return solve


def _color_held(s: State, p: str) -> Found:
    held = s.held_by(p)
    return _color_through(s, held[0]) if len(held) == 1 else None


def _color_in(s: State, c: str) -> Found:
    inside = [Known(t, spot.support) for t, spot in s.spots.items() if spot.relation == "in" and spot.where == c]
    return _color_through(s, inside[0]) if len(inside) == 1 else None


def _color_through(s: State, thing: Known) -> Found:
    found = _property("color")(s, thing.value)
    return None if found is None else (found[0], found[1], merged(found[2], thing.support), found[3])


def _how_many(s: State, p: str, k: str) -> Found:
    amount = s.amounts.get((p, k))
    if amount is None or not 0 <= amount.value < len(NUMBERS):  # a text of a model may count beyond the words
        return None
    word = NUMBERS[amount.value]
    return word, f"{p} has {counted(word, k)}.", amount.support, s.mentioned("number")


def _step(row: Sequence[Known], value: str, by: int) -> tuple[Known, Support] | None:
    """What comes before or after a value in a row that has it once, with the support of both."""
    places = [number for number, known in enumerate(row) if known.value == value]
    if len(places) != 1 or not 0 <= places[0] + by < len(row):
        return None
    other = row[places[0] + by]
    return other, merged(row[places[0]].support, other.support)


def _trail(by: int) -> Callable[[State, str, str], Found]:
    def solve(s: State, p: str, x: str) -> Found:
        found = _step(s.trails.get(p, ()), x, by)
        if found is None:
            return None
        known, support = found
        when = f"was in the {known.value} before the {x}" if by < 0 else f"went to the {known.value} after the {x}"
        return known.value, f"{p} {when}.", support, [place for place in s.mentioned("place") if place != x]

    return solve


def _owners(by: int) -> Callable[[State, str, str], Found]:
    def solve(s: State, t: str, p: str) -> Found:
        found = _step(s.owners.get(t, ()), p, by)
        if found is None:
            return None
        known, support = found
        sentence = f"{known.value} had the {t} {'before' if by < 0 else 'after'} {p}."
        return known.value, sentence, support, [name for name in s.mentioned("person") if name != p]

    return solve


def _why(s: State, p: str, f: str) -> Found:
    cause = s.moods.get(p) if f in MOODS else s.why_dirty.get(p) if f == "dirty" else None
    if cause is None or cause.feeling != f:
        return None
    return clause(cause.reason), f"{p} is {f} because {clause(cause.reason)}.", cause.support, _reasons(s, p)


def _why_go(s: State, p: str, x: str) -> Found:
    cause = s.reasons.get((p, x))
    if cause is None:
        return None
    told = clause(cause.reason)
    return told, f"{p} went to the {x} because {told}.", cause.support, _reasons(s, p)


def _reasons(s: State, p: str) -> list[str]:
    """Reasons that a person of this story could have, about the things that it mentions."""
    he = "she" if is_woman(p) else "he"
    things = [f"{he} {verb} the {thing}" for thing in s.mentioned("thing") for verb in ("lost", "found", "wanted")]
    return [*things, f"{he} fell in the mud", f"{he} was hungry"]


def _larger(first: bool) -> Callable[[State, str, str], Found]:
    def solve(s: State, t: str, u: str) -> Found:
        support = s.larger_by(t, u)
        large, small = (t, u) if support is not None else (u, t)
        support = support if support is not None else s.larger_by(u, t)
        if support is None:
            return None
        if first:
            return large, f"The {large} is bigger than the {small}.", support, (t, u)
        return small, f"The {small} is smaller than the {large}.", support, (t, u)

    return solve


def _yes_no(right: bool, subject: str, verb: str, rest: str, support: Support) -> Found:
    if right:
        return "yes", f"Yes, {subject} {verb} {rest}.", support, YES_NO
    negated = "does not have" if verb == "has" else f"{verb} not"
    return "no", f"No, {subject} {negated} {rest}.", support, YES_NO


def _is_at(s: State, p: str, x: str) -> Found:
    at = s.at.get(p)
    if at is not None:
        return _yes_no(at.value == x, p, "is", f"in the {x}", at.support)
    absent = s.absent.get((p, x))
    return None if absent is None else _yes_no(False, p, "is", f"in the {x}", (absent,))


def _is_place(s: State, t: str, x: str) -> Found:
    place = s.place_of(t)
    return None if place is None else _yes_no(place.value == x, f"the {t}", "is", f"in the {x}", place.support)


def _does_have(s: State, p: str, t: str) -> Found:
    holder = s.holder_of(t)
    if holder is not None:
        return _yes_no(holder.value == p, p, "has", f"the {t}", holder.support)
    if (absent := s.absent.get((p, t))) is not None:
        return _yes_no(False, p, "has", f"the {t}", (absent,))
    spot = s.spots.get(t)
    return _yes_no(False, p, "has", f"the {t}", spot.support) if spot is not None and spot.relation == "at" else None


def _is_like(s: State, t: str, d: str) -> Found:
    if not d or property_class(d) == "material":
        return None
    looks = s.looks.get((t, property_class(d)))
    if looks is not None:
        return _yes_no(looks.value == d, f"the {t}", "is", d, looks.support)
    absent = s.absent.get((t, d))
    return None if absent is None else _yes_no(False, f"the {t}", "is", d, (absent,))


def _list(s: State, found: Sequence[Known], those: Sequence[str], sentence: str, the: str) -> Found:
    """The found words in the order in which it became so; other answers are as many others of `those`."""
    if not found:
        return None
    words = [known.value for known in sorted(found, key=lambda known: (known.support, known.value))]
    others = [_joined(group) for group in combinations(those, len(words)) if set(group) != set(words)]
    support = merged(*(known.support for known in found))
    be = "is" if len(words) == 1 else "are"
    return _joined(words), sentence.format(_joined(words, the), be), support, others


def _what_has(s: State, p: str) -> Found:
    if any(amount.value for (owner, _), amount in s.amounts.items() if owner == p):
        return None
    return _list(s, s.held_by(p), s.mentioned("thing"), f"{p} has {{0}}.", "the ")


def _who_at(s: State, x: str) -> Found:
    found = [Known(p, at.support) for p, at in s.at.items() if at.value == x]
    return _list(s, found, s.mentioned("person"), f"{{0}} {{1}} in the {x}.", "")


def _what_in(s: State, c: str) -> Found:
    found = [Known(t, spot.support) for t, spot in s.spots.items() if spot.relation == "in" and spot.where == c]
    others = [thing for thing in s.mentioned("thing") if thing != c]
    result = _list(s, found, others, f"{{0}} {{1}} in the {c}.", "the ")
    return None if result is None else (result[0], result[1][0].upper() + result[1][1:], result[2], result[3])


def _between(s: State, x: str, y: str) -> Found:
    common = [place for place in s.near.get(x, {}) if place in s.near.get(y, {})]
    if x == y or len(common) != 1:
        return None
    support = merged((s.near[x][common[0]], s.near[y][common[0]]))
    return common[0], f"The {common[0]} is between the {x} and the {y}.", support, s.mentioned("place")


_SOLVERS: Mapping[str, Callable[..., Found]] = {
    "where": _where, "where_thing": _where_thing, "place_of": _place_of, "who_has": _who_has,
    "color": _property("color"), "size": _property("size"), "material": _property("material"),
    "color_held": _color_held, "color_in": _color_in, "how_many": _how_many, "before": _trail(-1), "after": _trail(1),
    "had_before": _owners(-1), "had_after": _owners(1), "why": _why, "why_go": _why_go, "bigger": _larger(True),
    "smaller": _larger(False), "is_at": _is_at, "is_place": _is_place, "has": _does_have, "is_like": _is_like,
    "what_has": _what_has, "who_at": _who_at, "what_in": _what_in, "between": _between,
}  # fmt: skip
