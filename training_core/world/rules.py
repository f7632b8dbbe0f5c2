"""The rules of the world: when an event can happen or a stated fact is true, and what it changes.

**Contradiction.** A story contradicts itself if it tells an event with a precondition that is false by what was told
before (Tom gives a ball that Anna has), or states a fact that is false by what was told before (the ball was red, and
then it was blue). A precondition that is unknown is no contradiction; such an event is *unsupported*. A fact that is
stated for the first time is neither: stories introduce their people and things by stating facts.

Where a story names neighbours of a place, one goes from there to a neighbour only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from training_core.world.lexicon import KEY, MOODS, NUMBERS, PHASES, property_class
from training_core.world.state import Event, Known, State

Condition = tuple[bool | None, str]
OPPOSITES = {"full": "hungry", "rested": "tired", "clean": "dirty", "warm": "cold"}
MOST = len(NUMBERS) - 1


class Verdict(NamedTuple):
    """True: possible. False: a contradiction. None: unsupported. reason: the condition that fails or is unknown."""

    possible: bool | None
    reason: str


def judge(state: State, event: Event) -> Verdict:
    """Return whether an event can happen in a state, or a stated fact is true in it.

    Raises:
        ValueError: when the kind is unknown.
    """
    conditions = CONDITIONS.get(event.kind)
    if conditions is None:
        raise ValueError(f"unknown kind of event {event.kind!r}: the kinds are {', '.join(CONDITIONS)}")
    unknown = ""
    for truth, what in conditions(state, *event.args):
        if truth is False:
            return Verdict(False, f"{event.kind}({', '.join(event.args)}): {what}")
        if truth is None:
            unknown = what
    return Verdict(None, f"{event.kind}({', '.join(event.args)}): unknown whether {unknown}") if unknown else _POSSIBLE


_POSSIBLE = Verdict(True, "")


def _is(known: Known | None, value: str) -> bool | None:
    return None if known is None else known.value == value


def _stated(known: Known | None, value: str) -> bool:
    """Whether a fact may be stated: it is unknown so far, or true."""
    return known is None or known.value == value


def _awake(s: State, *people: str) -> Condition:
    return not (s.asleep and s.asleep.intersection(people)), "somebody is asleep"


def _together(s: State, p: str, q: str) -> Condition:
    a, b = s.at.get(p), s.at.get(q)
    same = None if a is None or b is None else a.value == b.value
    return same if p != q else False, "they are at the same place"


def _has(s: State, p: str, t: str) -> Condition:
    spot = s.spots.get(t)
    return None if spot is None else spot.relation == "by" and spot.where == p, f"{p} has the {t}"


def _reach(s: State, p: str, t: str) -> Condition:
    place, at = s.place_of(t), s.at.get(p)
    return None if place is None or at is None else place.value == at.value, f"{p} is where the {t} is"


def _enough(s: State, owner: str, n: str, k: str) -> Condition:
    amount = s.amounts.get((owner, k))
    return None if amount is None else amount.value >= NUMBERS.index(n), f"there are {n} {k}"


def _countable(s: State, p: str, n: str, k: str) -> Condition:
    """There is no word for more than ten."""
    amount = s.amounts.get((p, k))
    return amount is None or amount.value + NUMBERS.index(n) <= MOST, f"{p} has at most {NUMBERS[MOST]} {k}"


# Facts: stated for the first time, or true.


def _may_be(s: State, p: str, x: str) -> Iterator[Condition]:
    yield _stated(s.at.get(p), x) and (p, x) not in s.absent, f"{p} is in the {x}"


def _may_be_absent(s: State, p: str, x: str) -> Iterator[Condition]:
    yield _is(s.at.get(p), x) is not True, f"{p} is not in the {x}"


def _may_lie(s: State, t: str, x: str) -> Iterator[Condition]:
    spot = s.spots.get(t)
    yield spot is None or (spot.relation == "at" and spot.where == x), f"the {t} lies in the {x}"


def _may_be_there(s: State, d: str, t: str, x: str) -> Iterator[Condition]:
    yield from _may_lie(s, t, x)
    yield from _may_look(s, t, d)


def _may_be_inside(s: State, t: str, c: str) -> Iterator[Condition]:
    spot = s.spots.get(t)
    yield spot is None or (spot.relation == "in" and spot.where == c), f"the {t} is in the {c}"
    yield not s.is_inside(c, t), f"the {c} is not in the {t}"


def _may_look(s: State, t: str, d: str) -> Iterator[Condition]:
    yield _stated(s.looks.get((t, property_class(d))), d) and (t, d) not in s.absent, f"the {t} is {d}"


def _may_not_look(s: State, t: str, d: str) -> Iterator[Condition]:
    yield _is(s.looks.get((t, property_class(d))), d) is not True, f"the {t} is not {d}"


def _may_have(s: State, p: str, t: str) -> Iterator[Condition]:
    yield _has(s, p, t)[0] is not False and (p, t) not in s.absent, f"{p} has the {t}"


def _may_not_have(s: State, p: str, t: str) -> Iterator[Condition]:
    holder = s.holder_of(t)
    yield holder is None or holder.value != p, f"{p} lacks the {t}"


def _may_have_such(s: State, p: str, d: str, t: str) -> Iterator[Condition]:
    yield from _may_have(s, p, t)
    yield from _may_look(s, t, d)


def _may_number(s: State, owner: str, n: str, k: str) -> Iterator[Condition]:
    amount = s.amounts.get((owner, k))
    yield amount is None or amount.value == NUMBERS.index(n), f"{owner} has {n} {k}"


def _may_be_larger(s: State, t: str, u: str) -> Iterator[Condition]:
    yield t != u and s.larger_by(u, t) is None, f"the {t} is bigger than the {u}"


def _may_lock(s: State, c: str) -> Iterator[Condition]:
    yield s.locked.get(c) != "no", f"the {c} is locked"


def _may_want(s: State, p: str, t: str) -> Iterator[Condition]:
    yield _has(s, p, t)[0] is not True, f"{p} lacks the {t}"


def _may_feel(s: State, p: str, f: str) -> Iterator[Condition]:
    if f in MOODS:
        mood = s.moods.get(p)
        yield mood is None or mood.feeling == f, f"{p} is {f}"
    elif f in OPPOSITES:
        yield _is(s.needs.get((p, OPPOSITES[f])), "no"), f"{p} is {f}"
    else:
        yield _stated(s.needs.get((p, f)), "yes"), f"{p} is {f}"


def _may_be_moved(reason: str) -> Callable[..., Iterator[Condition]]:
    def conditions(s: State, p: str, *rest: str) -> Iterator[Condition]:
        mood, t = s.moods.get(p), rest[-1]
        yield mood is None or mood.reason == Event(reason, (p, *rest)), f"{p} feels so for this reason"
        holds = _has(s, p, t)[0]
        yield holds is None or holds == (reason != "lost"), f"{p} {'lacks' if reason == 'lost' else 'has'} the {t}"

    return conditions


def _may_turn(s: State, phase: str) -> Iterator[Condition]:
    now = PHASES.index(s.phase) if s.phase else 0
    yield PHASES.index(phase) >= now or (s.phase == "night" and phase == "morning"), f"it is {phase}"


# Events.


def _can_go(s: State, p: str, x: str) -> Iterator[Condition]:
    yield _awake(s, p)
    at = s.at.get(p)
    yield at is None or at.value != x, f"{p} is somewhere else than in the {x}"
    near = s.near.get(at.value) if at else None
    yield near is None or x in near, f"one can go to the {x} from there"


def _can_go_wanting(s: State, p: str, x: str, t: str) -> Iterator[Condition]:
    yield from _can_go(s, p, x)
    yield _stated(s.wants.get(p), t), f"{p} wants the {t}"
    yield from _may_want(s, p, t)


def _can_go_needing(s: State, p: str, x: str, f: str) -> Iterator[Condition]:
    yield from _can_go(s, p, x)
    yield from _may_feel(s, p, f)


def _can_take(s: State, p: str, t: str) -> Iterator[Condition]:
    yield _awake(s, p)
    spot = s.spots.get(t)
    yield None if spot is None else spot.relation == "at", f"the {t} lies there"
    yield _reach(s, p, t)
    yield t not in s.lost, f"the {t} is not lost"


def _can_use(s: State, p: str, t: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield _has(s, p, t)


def _can_give(s: State, p: str, t: str, q: str) -> Iterator[Condition]:
    yield _awake(s, p, q)
    yield _has(s, p, t)
    yield _together(s, p, q)


def _usable(s: State, p: str, c: str) -> Iterator[Condition]:
    yield _reach(s, p, c)
    holder = s.holder_of(c)
    yield holder is None or holder.value == p, f"nobody else has the {c}"
    yield s.locked.get(c) != "yes", f"the {c} is open"


def _can_put(s: State, p: str, t: str, c: str) -> Iterator[Condition]:
    yield from _can_use(s, p, t)
    yield from _usable(s, p, c)
    yield not s.is_inside(c, t), f"the {c} is not in the {t}"


def _can_take_out(s: State, p: str, t: str, c: str) -> Iterator[Condition]:
    yield _awake(s, p)
    spot = s.spots.get(t)
    yield None if spot is None else spot.relation == "in" and spot.where == c, f"the {t} is in the {c}"
    yield from _usable(s, p, c)


def _can_open(s: State, p: str, c: str) -> Iterator[Condition]:
    yield from _can_use(s, p, KEY)
    yield _reach(s, p, c)
    yield None if c not in s.locked else s.locked[c] == "yes", f"the {c} is locked"


def _can_find(s: State, p: str, t: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield (None if t not in s.spots else t in s.lost), f"the {t} is lost"
    yield _reach(s, p, t)


def _can_take_some(s: State, p: str, n: str, k: str) -> Iterator[Condition]:
    yield _awake(s, p)
    at = s.at.get(p)
    yield (None, f"{p} is somewhere") if at is None else _enough(s, at.value, n, k)
    yield _countable(s, p, n, k)


def _can_give_some(s: State, p: str, n: str, k: str, q: str) -> Iterator[Condition]:
    yield _awake(s, p, q)
    yield _enough(s, p, n, k)
    yield _countable(s, q, n, k)
    yield _together(s, p, q)


def _can_lose_some(s: State, p: str, n: str, k: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield _enough(s, p, n, k)


def _can_find_some(s: State, p: str, n: str, k: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield _countable(s, p, n, k)


def _can_eat(s: State, p: str, k: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield _enough(s, p, "one", k)


def _can_sleep(s: State, p: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield not s.phase or s.phase == "night", "it is night"


def _can_wake(s: State, p: str) -> Iterator[Condition]:
    yield p in s.asleep or (None if p not in s.at else False), f"{p} is asleep"
    yield s.phase != "night", "the night is over"


def _can_act(s: State, p: str) -> Iterator[Condition]:
    yield _awake(s, p)


def _can_wash(s: State, p: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield _is(s.needs.get((p, "dirty")), "yes"), f"{p} is dirty"


def _can_speak(s: State, p: str, q: str, *_: str) -> Iterator[Condition]:
    yield _awake(s, p, q)
    yield _together(s, p, q)


def _can_ask_for(s: State, p: str, q: str, t: str) -> Iterator[Condition]:
    yield from _can_speak(s, p, q)
    yield _has(s, q, t)


def _can_ask_for_food(s: State, p: str, q: str, k: str) -> Iterator[Condition]:
    yield from _can_speak(s, p, q)
    yield _enough(s, q, "one", k)


def _can_thank(s: State, p: str, q: str) -> Iterator[Condition]:
    yield from _can_speak(s, p, q)
    yield (q, p) in s.gifts, f"{q} gave {p} something"


def _can_promise(s: State, p: str, q: str, t: str) -> Iterator[Condition]:
    yield from _can_speak(s, p, q)
    yield _has(s, q, t)[0] is not True, f"{q} lacks the {t}"


def _can_tell(s: State, p: str, t: str, x: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield _stated(s.place_of(t), x), f"the {t} is in the {x}"


def _can_tell_owner(s: State, p: str, q: str, t: str) -> Iterator[Condition]:
    yield _awake(s, p)
    yield _has(s, q, t)[0] is not False and p != q, f"{q} has the {t}"


CONDITIONS: dict[str, Callable[..., Iterator[Condition]]] = {
    "time": _may_turn, "be": _may_be, "be_not": _may_be_absent, "lies": _may_lie, "there": _may_be_there,
    "inside": _may_be_inside, "looks": _may_look, "looks_not": _may_not_look, "made": _may_look, "have": _may_have,
    "have_not": _may_not_have, "have_such": _may_have_such, "have_some": _may_number,
    "there_are": lambda s, n, k, x: _may_number(s, x, n, k),
    "near": lambda s, x, y: iter([(x != y, "they are two places")]), "bigger": _may_be_larger, "locked": _may_lock,
    "want": _may_want, "feel": _may_feel, "sad_lost": _may_be_moved("lost"), "glad_found": _may_be_moved("found"),
    "glad_given": _may_be_moved("given"), "go": _can_go, "go_wanting": _can_go_wanting, "go_needing": _can_go_needing,
    "take": _can_take, "drop": _can_use, "lose": _can_use, "give": _can_give, "put": _can_put,
    "take_out": _can_take_out, "open": _can_open, "find": _can_find, "take_some": _can_take_some,
    "give_some": _can_give_some, "find_some": _can_find_some, "lose_some": _can_lose_some, "eat": _can_eat,
    "sleep": _can_sleep, "wake": _can_wake, "fall": _can_act, "wash": _can_wash, "greet": _can_speak,
    "ask_for": _can_ask_for, "ask_food": _can_ask_for_food, "ask_where": _can_speak, "promise": _can_promise,
    "thank": _can_thank, "tell": _can_tell, "tell_owner": _can_tell_owner,
}  # fmt: skip
