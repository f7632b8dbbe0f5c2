"""The stage on which a story happens: its cast, the state, and how people reach what they want.

Nothing is told that the rules forbid: `Stage.tell` refuses an impossible event, `Stage.must` ends the attempt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from training_core.world.config import WorldConfig
from training_core.world.effects import apply
from training_core.world.holdout import FACTS, partners
from training_core.world.lexicon import COLORS, KEY, MATERIALS, SIZES, lexicon
from training_core.world.rules import judge
from training_core.world.state import Event, State

T = TypeVar("T")
_DRAWS = 400  # draws of a word before a cast counts as impossible


class StuckError(Exception):
    """Raised when a story cannot go on; another one is drawn."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The words of a story. looks: a color or size for each thing, among those that the story can have."""

    people: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    containers: tuple[str, ...]
    foods: tuple[str, ...]
    colors: tuple[str, ...]
    materials: tuple[str, ...]
    looks: dict[str, str]


def pick(rng: random.Random, of: Sequence[T]) -> T:
    """Draw one of a sequence."""
    return of[int(rng.random() * len(of))]


def draw_cast(
    rng: random.Random, config: WorldConfig, people: int, things: int, places: int, *, met: bool = False
) -> Cast:
    """Draw a cast in which no two words are kept apart by training (`holdout`).

    met: such words may meet, and the first of each list is, where there is one, kept apart from the first person or
    thing.

    Raises:
        StuckError: when no such words are found.
    """
    words, share = lexicon(config.vocabulary), config.combination_share

    def some(source: Sequence[str], count: int, beside: Sequence[str]) -> tuple[str, ...]:
        unseen = frozenset().union(*(partners(other, share) for other in beside)) if beside else frozenset[str]()
        found: list[str] = []
        if met and beside and (kept := [word for word in source if word in partners(beside[0], share)]):
            found.append(pick(rng, kept))
        for _ in range(_DRAWS):
            if len(found) >= count:
                return tuple(found)
            word = source[int(rng.random() * len(source))]
            if word not in found and (met or word not in unseen):
                found.append(word)
        raise StuckError(f"no {count} words that may meet {', '.join(beside)}")

    who = some(words.names, people, ())
    what, holds = some(words.toys, things, who), some(words.containers, 2, who)
    where = some(words.places, places, who)
    foods = some(words.foods, 2, (*who, *where))
    every = (*what, *holds)
    unseen = frozenset().union(*(partners(thing, share) for thing in every))
    colors, sizes, materials = (
        tuple(word for word in source if met or word not in unseen) for source in (COLORS, SIZES, MATERIALS)
    )
    if len(colors) < 2 or not materials:
        raise StuckError(f"too few properties that may meet {', '.join(every)}")
    looks = {thing: pick(rng, sizes if sizes and rng.random() < 0.2 else colors) for thing in every}
    if met and (kept := [color for color in COLORS if color in partners(what[0], share)]):
        looks[what[0]] = pick(rng, kept)
    return Cast(who, where, what, holds, foods, colors, materials, looks)


class Stage:
    """A story in the making: the events told so far and the state they lead to."""

    def __init__(self, rng: random.Random, cast: Cast) -> None:
        self.rng, self.cast = rng, cast
        self.state, self.events = State(), list[Event]()

    def tell(self, kind: str, *args: str) -> bool:
        """Tell an event if it is possible (a fact: and was not told before), and return whether it was told."""
        event = Event(kind, args)
        if kind in FACTS and event in self.events:
            return False
        if judge(self.state, event).possible is not True:
            return False
        self.events.append(event)
        apply(self.state, event)
        return True

    def must(self, kind: str, *args: str) -> None:
        """Tell an event.

        Raises:
            StuckError: when it is impossible.
        """
        event = Event(kind, args)
        verdict = judge(self.state, event)
        if verdict.possible is not True:
            raise StuckError(verdict.reason)
        self.events.append(event)
        apply(self.state, event)

    def chance(self, probability: float) -> bool:
        """Draw whether something happens."""
        return self.rng.random() < probability

    def where(self, person: str) -> str:
        """Return the place of a person, who is put somewhere first if need be."""
        if person not in self.state.at:
            self.must("be", person, pick(self.rng, self.cast.places))
        return self.state.at[person].value

    def elsewhere(self, *places: str) -> str:
        """Return a place of the cast other than these."""
        return pick(self.rng, [place for place in self.cast.places if place not in places])

    def go(self, person: str, place: str) -> None:
        """Bring a person to a place, from neighbour to neighbour where neighbours were told."""
        for step in self.way(self.where(person), place):
            self.must("go", person, step)

    def fetch(self, person: str, thing: str) -> None:
        """Bring a thing into a person's hands, past the obstacles: it is locked up, in something, or another's."""
        state = self.state
        spot = state.spots.get(thing)
        if spot is None:
            raise StuckError(f"nobody knows where the {thing} is")
        if spot.relation == "by":
            self._get_from(person, thing, spot.where)
        elif spot.relation == "in":
            holder = state.holder_of(spot.where)
            if holder is not None and holder.value != person:
                self._get_from(person, spot.where, holder.value)
            elif state.locked.get(spot.where) == "yes":
                self.fetch(person, KEY)
            self._go_for(person, thing)
            if state.locked.get(spot.where) == "yes":
                self.must("open", person, spot.where)
            self.must("take_out", person, thing, spot.where)
        else:
            self._go_for(person, thing)
            self.must("find" if thing in state.lost else "take", person, thing)

    def hand_over(self, giver: str, thing: str, receiver: str) -> None:
        """Bring a thing in hand to a person who may thank for it."""
        self.go(giver, self.where(receiver))
        self.must("give", giver, thing, receiver)
        if self.chance(0.7):
            self.tell("thank", receiver, giver)

    def _get_from(self, person: str, thing: str, owner: str) -> None:
        if owner == person:
            return
        self.where(owner)
        self._go_for(person, thing)
        self.must("ask_for", person, owner, thing)
        self.must("give", owner, thing, person)
        if self.chance(0.7):
            self.tell("thank", person, owner)

    def _go_for(self, person: str, thing: str) -> None:
        """Bring a person to a thing, and sometimes say why the person goes."""
        place = self.state.place_of(thing)
        if place is None:
            raise StuckError(f"nobody knows where the {thing} is")
        way = self.way(self.where(person), place.value)
        wanted = self.state.wants.get(person)
        for step in way:
            if step == way[-1] and wanted and wanted.value == thing and self.chance(0.4):
                self.must("go_wanting", person, step, thing)
            else:
                self.must("go", person, step)

    def way(self, start: str, end: str) -> list[str]:
        """The places to go to from one place to another, the shortest way where neighbours were told."""
        near = self.state.near
        ways: dict[str, list[str]] = {start: []}
        waiting = [start]
        for place in waiting:  # breadth first: the list grows while it is read
            if place == end:
                return ways[place]
            for step in near.get(place, (end,)):
                if step not in ways:
                    ways[step] = [*ways[place], step]
                    waiting.append(step)
        raise StuckError(f"there is no way from the {start} to the {end}")
