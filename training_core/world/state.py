"""The state of the world: what is known after some events, each fact with the events that support it.

An event is a kind and its arguments, for example `Event("give", ("Tom", "ball", "Anna"))`; the grammar lists the kinds.
Events are numbered in the order in which they are told. A *support* is the sorted tuple of the numbers of all events
from which a fact follows, so its length is the number of hops from the text to the fact.

The state holds only what was told or follows from it. Whatever was not told is unknown (None), neither true nor false.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from training_core.world.lexicon import category

Support = tuple[int, ...]

_DEEPEST = 8  # containers in containers; the rules allow no circle, so this is only a bound


class Event(NamedTuple):
    """Something told: an event or a stated fact. args: words in the order of the kind's roles."""

    kind: str
    args: tuple[str, ...]


class Known(NamedTuple):
    """A known value (a word) and the events from which it follows."""

    value: str
    support: Support


class Spot(NamedTuple):
    """Whereabouts of a thing: "at" a place, "in" a container, or "by" the person who has it."""

    relation: str
    where: str
    support: Support


class Amount(NamedTuple):
    """A number of foods and the events from which it follows."""

    value: int
    support: Support


class Cause(NamedTuple):
    """Why somebody feels something or went somewhere, as an event of `grammar.REASONS`, with its support."""

    feeling: str
    reason: Event
    support: Support


def merged(*supports: Iterable[int]) -> Support:
    """Return the union of supports, sorted."""
    return tuple(sorted({number for support in supports for number in support}))


@dataclass(slots=True)
class State:
    """What is known. Keys and values are words; `effects.apply` is the only function that changes it.

    at: person -> place. spots: thing -> whereabouts. amounts: (person or place, food) -> number.
    looks: (thing, property class) -> property. larger: thing -> smaller things, with the event that said so.
    near: place -> neighbouring places, with the event that said so. locked: container -> "yes" or "no".
    wants: person -> thing. needs: (person, need) -> "yes" or "no". moods: person -> cause of the last mood.
    why_dirty: person -> cause. reasons: (person, place) -> cause of going there.
    trails: person -> places in order. owners: thing -> persons in order. lost: thing -> who lost it.
    gifts: (giver, receiver). absent: (person, place), (person, thing) or (thing, property)
    stated not to go together, with the event.
    seen: every content word told so far, in order of first mention.
    """

    at: dict[str, Known] = field(default_factory=dict)
    spots: dict[str, Spot] = field(default_factory=dict)
    amounts: dict[tuple[str, str], Amount] = field(default_factory=dict)
    looks: dict[tuple[str, str], Known] = field(default_factory=dict)
    larger: dict[str, dict[str, int]] = field(default_factory=dict)
    near: dict[str, dict[str, int]] = field(default_factory=dict)
    locked: dict[str, str] = field(default_factory=dict)
    wants: dict[str, Known] = field(default_factory=dict)
    needs: dict[tuple[str, str], Known] = field(default_factory=dict)
    moods: dict[str, Cause] = field(default_factory=dict)
    why_dirty: dict[str, Cause] = field(default_factory=dict)
    reasons: dict[tuple[str, str], Cause] = field(default_factory=dict)
    trails: dict[str, list[Known]] = field(default_factory=dict)
    owners: dict[str, list[Known]] = field(default_factory=dict)
    lost: dict[str, Known] = field(default_factory=dict)
    gifts: set[tuple[str, str]] = field(default_factory=set)
    absent: dict[tuple[str, str], int] = field(default_factory=dict)
    asleep: set[str] = field(default_factory=set)
    phase: str = ""
    seen: dict[str, None] = field(default_factory=dict)
    length: int = 0

    def place_of(self, thing: str) -> Known | None:
        """Return the place of a thing, through containers and the person who has them."""
        support: Support = ()
        for _ in range(_DEEPEST):
            spot = self.spots.get(thing)
            if spot is None:
                return None
            support += spot.support
            if spot.relation == "at":
                return Known(spot.where, merged(support))
            if spot.relation == "by":
                at = self.at.get(spot.where)
                return None if at is None else Known(at.value, merged(support, at.support))
            thing = spot.where
        return None

    def holder_of(self, thing: str) -> Known | None:
        """Return the person who has a thing, also inside of a container; None if nobody is known to have it."""
        support: Support = ()
        for _ in range(_DEEPEST):
            spot = self.spots.get(thing)
            if spot is None or spot.relation == "at":
                return None
            support += spot.support
            if spot.relation == "by":
                return Known(spot.where, merged(support))
            thing = spot.where
        return None

    def lies_somewhere(self, thing: str) -> bool:
        """Return whether a thing is known to be held by nobody."""
        for _ in range(_DEEPEST):
            spot = self.spots.get(thing)
            if spot is None or spot.relation == "by":
                return False
            if spot.relation == "at":
                return True
            thing = spot.where
        return False

    def is_inside(self, thing: str, container: str) -> bool:
        """Return whether a thing is in a container, directly or through others, or is the container itself."""
        for _ in range(_DEEPEST):
            if thing == container:
                return True
            spot = self.spots.get(thing)
            if spot is None or spot.relation != "in":
                return False
            thing = spot.where
        return False

    def held_by(self, person: str) -> list[Known]:
        """Return the things that a person has in hand, in the order in which they came there."""
        held = [
            Known(thing, spot.support)
            for thing, spot in self.spots.items()
            if spot.relation == "by" and spot.where == person
        ]
        return sorted(held, key=lambda known: (known.support, known.value))

    def larger_by(self, thing: str, other: str) -> Support | None:
        """Return the shortest chain of stated comparisons from which `thing` is larger than `other`, or None."""
        chains: dict[str, Support] = {thing: ()}
        waiting = [thing]
        for current in waiting:  # breadth first: the list grows while it is read
            for smaller, number in self.larger.get(current, {}).items():
                if smaller not in chains:
                    chains[smaller] = merged(chains[current], (number,))
                    waiting.append(smaller)
        return chains.get(other) if other != thing else None

    def mentioned(self, kind: str) -> list[str]:
        """Return the words of a category (`lexicon.category`) in order of first mention."""
        return [word for word in self.seen if category(word) == kind]
