"""What each event changes in the state of the world. Whether it can happen is judged in `rules`."""

from __future__ import annotations

from collections.abc import Callable

from training_core.world.lexicon import MOODS, NUMBERS, PHASES, category, property_class
from training_core.world.rules import OPPOSITES
from training_core.world.state import Amount, Cause, Event, Known, Spot, State, merged


def apply(state: State, event: Event) -> None:
    """Change the state by an event, which is given the next number; nothing is checked."""
    number = state.length
    for word in event.args:
        if category(word):
            state.seen[word] = None
    if effect := EFFECTS.get(event.kind):
        effect(state, number, *event.args)
    state.length = number + 1


def _move(s: State, i: int, p: str, x: str) -> None:
    s.at[p] = known = Known(x, (i,))
    s.trails.setdefault(p, []).append(known)
    for pair in [pair for pair in s.absent if pair[0] == p and category(pair[1]) == "place"]:
        del s.absent[pair]


def _be(s: State, i: int, p: str, x: str) -> None:
    if p not in s.at:
        _move(s, i, p, x)


def _go(s: State, i: int, p: str, x: str) -> None:
    cause = _reason_to_go(s, i, p, x)
    _move(s, i, p, x)
    s.reasons.pop((p, x), None)
    if cause is not None:
        s.reasons[p, x] = cause


def _reason_to_go(s: State, i: int, p: str, x: str) -> Cause | None:
    """Why p goes to x: there is the thing that p wants, or food and p is hungry."""
    if (want := s.wants.get(p)) and (place := s.place_of(want.value)) and place.value == x:
        return Cause("", Event("wanted", (p, want.value)), merged(want.support, place.support, (i,)))
    return None


def _go_wanting(s: State, i: int, p: str, x: str, t: str) -> None:
    s.wants.setdefault(p, Known(t, (i,)))
    _move(s, i, p, x)
    s.reasons[p, x] = Cause("", Event("wanted", (p, t)), (i,))


def _go_needing(s: State, i: int, p: str, x: str, f: str) -> None:
    s.needs.setdefault((p, f), Known("yes", (i,)))
    _move(s, i, p, x)
    s.reasons[p, x] = Cause("", Event("felt", (p, f)), (i,))


def _lies(s: State, i: int, t: str, x: str) -> None:
    """A statement is support enough, also for what followed from several events."""
    s.spots[t] = Spot("at", x, (i,))


def _looks(s: State, i: int, t: str, d: str) -> None:
    s.looks.setdefault((t, property_class(d)), Known(d, (i,)))


def _there(s: State, i: int, d: str, t: str, x: str) -> None:
    _lies(s, i, t, x)
    _looks(s, i, t, d)


def _inside(s: State, i: int, t: str, c: str) -> None:
    s.spots[t] = Spot("in", c, (i,))


def _hold(s: State, i: int, p: str, t: str) -> None:
    s.spots[t] = Spot("by", p, (i,))
    owners = s.owners.setdefault(t, [])
    if not owners or owners[-1].value != p:
        owners.append(Known(p, (i,)))
    if (want := s.wants.get(p)) and want.value == t:
        del s.wants[p]
        s.moods[p] = Cause("glad", Event("got", (p, t)), (i,))
    s.lost.pop(t, None)
    s.absent.pop((p, t), None)


def _have(s: State, i: int, p: str, t: str) -> None:
    if t not in s.spots:
        _hold(s, i, p, t)


def _have_such(s: State, i: int, p: str, d: str, t: str) -> None:
    _have(s, i, p, t)
    _looks(s, i, t, d)


def _leave(s: State, i: int, p: str, t: str) -> None:
    if at := s.at.get(p):
        s.spots[t] = Spot("at", at.value, merged(at.support, (i,)))
    else:
        s.spots.pop(t, None)


def _lose(s: State, i: int, p: str, t: str) -> None:
    _leave(s, i, p, t)
    s.lost[t] = Known(p, (i,))
    s.moods[p] = Cause("sad", Event("lost", (p, t)), (i,))


def _give(s: State, i: int, p: str, t: str, q: str) -> None:
    longed = (want := s.wants.get(q)) is not None and want.value == t
    missed = (mood := s.moods.get(q)) is not None and mood.reason == Event("lost", (q, t))
    _hold(s, i, q, t)
    s.gifts.add((p, q))
    if longed or missed:
        s.moods[q] = Cause("glad", Event("given", (q, p, t)), (i,))


def _find(s: State, i: int, p: str, t: str) -> None:
    own = (loser := s.lost.get(t)) is not None and loser.value == p
    _hold(s, i, p, t)
    if own:
        s.moods[p] = Cause("glad", Event("found", (p, t)), (i,))


def _change(s: State, i: int, owner: str, k: str, by: int) -> None:
    amount = s.amounts.get((owner, k))
    if amount is not None:
        s.amounts[owner, k] = Amount(max(0, amount.value + by), merged(amount.support, (i,)))


def _number(s: State, i: int, owner: str, n: str, k: str) -> None:
    s.amounts[owner, k] = Amount(NUMBERS.index(n), (i,))


def _give_some(s: State, i: int, p: str, n: str, k: str, q: str) -> None:
    _change(s, i, p, k, -NUMBERS.index(n))
    _get_some(s, i, q, n, k)
    s.gifts.add((p, q))


def _get_some(s: State, i: int, p: str, n: str, k: str) -> None:
    """More of a food; somebody of whom no amount was told had none."""
    if (p, k) in s.amounts:
        _change(s, i, p, k, NUMBERS.index(n))
    else:
        _number(s, i, p, n, k)


def _lose_some(s: State, i: int, p: str, n: str, k: str) -> None:
    _change(s, i, p, k, -NUMBERS.index(n))


def _take_some(s: State, i: int, p: str, n: str, k: str) -> None:
    if at := s.at.get(p):
        _change(s, i, at.value, k, -NUMBERS.index(n))
    _get_some(s, i, p, n, k)


def _eat(s: State, i: int, p: str, k: str) -> None:
    _change(s, i, p, k, -1)
    s.needs[p, "hungry"] = Known("no", (i,))


def _near(s: State, i: int, x: str, y: str) -> None:
    s.near.setdefault(x, {}).setdefault(y, i)
    s.near.setdefault(y, {}).setdefault(x, i)


def _feel(s: State, i: int, p: str, f: str) -> None:
    """A feeling that is stated joins the support of its cause, if that was told."""
    if f in MOODS:
        if mood := s.moods.get(p):
            s.moods[p] = Cause(f, mood.reason, merged(mood.support, (i,)))
    elif f not in OPPOSITES:
        s.needs.setdefault((p, f), Known("yes", (i,)))
        if f == "dirty" and (cause := s.why_dirty.get(p)):
            s.why_dirty[p] = Cause(f, cause.reason, merged(cause.support, (i,)))


def _moved(feeling: str, reason: str) -> Callable[..., None]:
    def effect(s: State, i: int, p: str, *rest: str) -> None:
        s.moods[p] = Cause(feeling, Event(reason, (p, *rest)), (i,))

    return effect


def _fall(s: State, i: int, p: str) -> None:
    s.needs[p, "dirty"] = Known("yes", (i,))
    s.why_dirty[p] = Cause("dirty", Event("fell", (p,)), (i,))


def _wash(s: State, i: int, p: str) -> None:
    s.needs[p, "dirty"] = Known("no", (i,))
    s.why_dirty.pop(p, None)


def _sleep(s: State, i: int, p: str) -> None:
    s.asleep.add(p)


def _wake(s: State, i: int, p: str) -> None:
    s.asleep.discard(p)
    s.needs[p, "tired"] = Known("no", (i,))


def _time(s: State, i: int, phase: str) -> None:
    if phase != s.phase and phase == PHASES[0]:
        s.needs = {key: known for key, known in s.needs.items() if key[1] != "hungry"}  # a new day, a new hunger
    s.phase = phase


def _lock(s: State, i: int, c: str) -> None:
    s.locked[c] = "yes"


def _open(s: State, i: int, p: str, c: str) -> None:
    s.locked[c] = "no"


def _tell(s: State, i: int, p: str, t: str, x: str) -> None:
    if t not in s.spots:
        s.spots[t] = Spot("at", x, (i,))


def _tell_owner(s: State, i: int, p: str, q: str, t: str) -> None:
    if t not in s.spots:
        _hold(s, i, q, t)


def _larger(s: State, i: int, t: str, u: str) -> None:
    s.larger.setdefault(t, {}).setdefault(u, i)


def _absent(s: State, i: int, p: str, x: str) -> None:
    s.absent[p, x] = i


def _want(s: State, i: int, p: str, t: str) -> None:
    s.wants[p] = Known(t, (i,))


EFFECTS: dict[str, Callable[..., None]] = {
    "time": _time, "be": _be, "be_not": _absent, "lies": _lies, "there": _there, "inside": _inside, "looks": _looks,
    "looks_not": _absent, "made": _looks, "have": _have, "have_not": _absent, "have_such": _have_such,
    "have_some": _number, "there_are": lambda s, i, n, k, x: _number(s, i, x, n, k), "near": _near,
    "bigger": _larger, "locked": _lock, "want": _want, "feel": _feel, "sad_lost": _moved("sad", "lost"),
    "glad_found": _moved("glad", "found"), "glad_given": _moved("glad", "given"), "go": _go,
    "go_wanting": _go_wanting, "go_needing": _go_needing, "take": _hold, "drop": _leave, "lose": _lose, "give": _give,
    "put": lambda s, i, p, t, c: _inside(s, i, t, c), "take_out": lambda s, i, p, t, c: _hold(s, i, p, t),
    "open": _open, "find": _find, "take_some": _take_some, "give_some": _give_some, "find_some": _get_some,
    "lose_some": _lose_some, "eat": _eat, "sleep": _sleep, "wake": _wake, "fall": _fall, "wash": _wash,
    "tell": _tell, "tell_owner": _tell_owner,
}  # fmt: skip
