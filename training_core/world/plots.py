"""Stories drawn towards a small goal: somebody wants, needs or loses something, there is an obstacle, and an end.

A plot tells what it needs (who is where, what lies where) and then lets people act until the goal is reached. Between
the steps others may do something, and things are described.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from training_core.world.config import WorldConfig
from training_core.world.lexicon import KEY, NUMBERS, PHASES
from training_core.world.stage import Stage, StuckError, draw_cast, pick

_ATTEMPTS = 50


def goal_story(rng: random.Random, config: WorldConfig, *, met: bool = False) -> Stage:
    """Return a story of about `least_events` to `most_events` events with at least one goal that is reached.

    met: with pairs of words that training does not see (`holdout`); else there are none.

    Raises:
        ValueError: when no story can be made with these settings.
    """
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            cast = draw_cast(rng, config, rng.randint(2, 4), rng.randint(2, 4), rng.randint(3, 5), met=met)
            return _tell(Stage(rng, cast), config)
        except StuckError as error:
            reason = str(error)
    raise ValueError(
        f"no story was found in {_ATTEMPTS} attempts (the last one failed: {reason}): raise vocabulary or lower "
        "combination_share"
    )


def _tell(stage: Stage, config: WorldConfig) -> Stage:
    rng, cast = stage.rng, stage.cast
    target = rng.randint(config.least_events, config.most_events)
    if stage.chance(0.5):
        stage.must("time", pick(rng, PHASES[:3]))
    if stage.chance(0.12):
        for place, neighbour in zip(cast.places, cast.places[1:], strict=False):
            stage.must("near", place, neighbour)
    main, helper = cast.people[:2]
    stage.must("be", main, pick(rng, cast.places))
    plots = list(PLOTS)
    rng.shuffle(plots)
    for number, plot in enumerate(plots):
        plot(stage, main, helper)
        main, helper = (helper, main) if stage.chance(0.5) else (main, helper)
        if len(stage.events) >= target - 2 or number == 3:
            break
        _aside(stage)
    while len(stage.events) < max(config.least_events, target - 2):
        _aside(stage)
    if stage.chance(0.25):
        _night(stage, pick(rng, list(stage.state.at)))
    return stage


# Plots. Each one is told of a main person and a helper; it chooses among the things that were not told of yet.


def _new_thing(stage: Stage) -> str:
    new = [thing for thing in stage.cast.things if thing not in stage.state.spots]
    if not new:
        raise StuckError("every thing has its place already")
    return pick(stage.rng, new)


def _introduce(stage: Stage, thing: str, place: str) -> None:
    """Tell that a thing lies at a place, with its looks more often than without."""
    if stage.chance(0.7):
        stage.must("there", stage.cast.looks[thing], thing, place)
    else:
        stage.must("lies", thing, place)


def _wanted_thing(stage: Stage, main: str, helper: str) -> None:
    """Main wants a thing that lies somewhere, is in a container, or is the helper's."""
    thing = _new_thing(stage)
    place = stage.elsewhere(stage.where(main))
    box = next((c for c in stage.cast.containers if c not in stage.state.spots), None)
    kind = stage.rng.random()
    if kind < 0.35:
        _introduce(stage, thing, place)
    elif kind < 0.6 and box:
        _introduce(stage, box, place)
        stage.must("inside", thing, box)
    elif kind < 0.75 and box and KEY not in stage.state.spots:
        _introduce(stage, box, place)
        stage.must("inside", thing, box)
        stage.must("locked", box)
        if stage.chance(0.5):
            stage.where(helper)
            stage.must("have", helper, KEY)
        else:
            stage.must("lies", KEY, stage.elsewhere(place))
    else:
        stage.where(helper)
        stage.must("have_such", helper, stage.cast.looks[thing], thing)
    stage.must("want", main, thing)
    _ask_around(stage, main, thing)
    stage.fetch(main, thing)
    if stage.chance(0.6):
        stage.tell("feel", main, "glad")


def _ask_around(stage: Stage, main: str, thing: str) -> None:
    """Somebody at the same place may be asked where the thing is, and tells."""
    here = stage.state.at[main].value
    others = [p for p in stage.cast.people if p != main and (at := stage.state.at.get(p)) and at.value == here]
    if not others or not stage.chance(0.6):
        return
    friend = others[0]
    place, holder = stage.state.place_of(thing), stage.state.holder_of(thing)
    if holder is not None and holder.value == friend:
        return
    stage.tell("ask_where", main, friend, thing)
    if holder is not None:
        stage.tell("tell_owner", friend, holder.value, thing)
    elif place is not None:
        stage.tell("tell", friend, thing, place.value)


def _lost_thing(stage: Stage, main: str, helper: str) -> None:
    """Main loses a thing and is sad; the helper promises to bring it, or main finds it."""
    thing = _new_thing(stage)
    stage.must("have_such", main, stage.cast.looks[thing], thing)
    stage.go(main, place := stage.elsewhere(stage.where(main)))
    stage.must("lose", main, thing)
    stage.go(main, stage.elsewhere(place))
    if stage.chance(0.5):
        stage.must("sad_lost", main, thing)
    else:
        stage.must("feel", main, "sad")
    if stage.chance(0.65):
        stage.go(helper, stage.where(main))
        if stage.chance(0.4):
            stage.must("greet", helper, main)
        stage.must("promise", helper, main, thing)
        stage.go(helper, place)
        stage.must("find", helper, thing)
        stage.hand_over(helper, thing, main)
        stage.must(*(("glad_given", main, helper, thing) if stage.chance(0.5) else ("feel", main, "glad")))
    else:
        stage.go(main, place)
        stage.must("find", main, thing)
        stage.must(*(("glad_found", main, thing) if stage.chance(0.5) else ("feel", main, "glad")))


def _hungry(stage: Stage, main: str, helper: str) -> None:
    """Main is hungry, and finds food or asks the helper for some."""
    food = pick(stage.rng, stage.cast.foods)
    number = stage.rng.randint(2, 6)
    if stage.state.needs.get((main, "hungry")) is not None or (helper, food) in stage.state.amounts:
        raise StuckError("the meal was told already")
    place = stage.elsewhere(stage.where(main))
    if stage.chance(0.4):
        number = stage.rng.randint(1, 6)
        stage.must("there_are", NUMBERS[number], food, place)
        stage.must("feel", main, "hungry")
        for step in stage.way(stage.where(main), place)[:-1]:
            stage.must("go", main, step)
        stage.must("go_needing", main, place, "hungry")
        stage.must("take_some", main, NUMBERS[stage.rng.randint(1, number)], food)
    else:
        stage.where(helper)
        stage.must("have_some", helper, NUMBERS[number], food)
        stage.must("feel", main, "hungry")
        stage.go(main, stage.where(helper))
        stage.must("ask_food", main, helper, food)
        stage.must("give_some", helper, NUMBERS[stage.rng.randint(1, min(3, number))], food, main)
        if stage.chance(0.7):
            stage.must("thank", main, helper)
    stage.must("eat", main, food)
    if stage.chance(0.7):
        stage.must("feel", main, "full")


def _dirty(stage: Stage, main: str, helper: str) -> None:
    """Main falls in the mud and washes."""
    stage.go(main, stage.elsewhere(stage.where(main)))
    stage.must("fall", main)
    stage.must("feel", main, "dirty")
    stage.go(main, stage.elsewhere(stage.where(main)))
    stage.must("wash", main)
    if stage.chance(0.6):
        stage.must("feel", main, "clean")


def _gift(stage: Stage, main: str, helper: str) -> None:
    """The helper wants a thing, and main brings it."""
    thing = _new_thing(stage)
    stage.where(helper)
    place = stage.elsewhere(stage.where(main))
    _introduce(stage, thing, place)
    stage.must("want", helper, thing)
    stage.go(main, stage.where(helper))
    stage.must("promise", main, helper, thing)
    stage.fetch(main, thing)
    stage.hand_over(main, thing, helper)
    if stage.chance(0.6):
        stage.must(*(("glad_given", helper, main, thing) if stage.chance(0.5) else ("feel", helper, "glad")))


def _tidy(stage: Stage, main: str, helper: str) -> None:
    """Main finds a thing and puts it in a container, which may be carried away."""
    thing = _new_thing(stage)
    box = next((c for c in stage.cast.containers if c not in stage.state.spots), None)
    if box is None:
        raise StuckError("every container has its place already")
    here = stage.where(main)
    _introduce(stage, box, here)
    _introduce(stage, thing, place := stage.elsewhere(here))
    stage.fetch(main, thing)
    if stage.chance(0.5):
        stage.go(main, here)
        stage.must("put", main, thing, box)
    else:
        stage.fetch(main, box)
        stage.must("put", main, thing, box)
        stage.go(main, stage.elsewhere(place))
        if stage.chance(0.5):
            stage.must("drop", main, box)


PLOTS: tuple[Callable[[Stage, str, str], None], ...] = (
    _wanted_thing, _wanted_thing, _lost_thing, _hungry, _dirty, _gift, _tidy,
)  # fmt: skip


def _night(stage: Stage, main: str) -> None:
    """Night comes, and main goes to sleep; morning may come too."""
    if stage.state.phase != "night":
        stage.must("time", "night")
    stage.must("feel", main, "tired")
    stage.must("sleep", main)
    if stage.chance(0.3):
        stage.must("time", "morning")
        stage.must("wake", main)
        stage.must("feel", main, "rested")


def _aside(stage: Stage) -> None:
    """One thing beside the plot: somebody goes somewhere, greets, or a thing is described or compared."""
    rng, cast = stage.rng, stage.cast
    told = [thing for thing in (*cast.things, *cast.containers) if thing in stage.state.spots]
    person = pick(rng, cast.people[2:] or cast.people)
    kind = rng.random()
    if kind < 0.3:
        stage.go(person, stage.elsewhere(stage.where(person)))
    elif kind < 0.4:
        stage.where(person)
        here = stage.state.at[person].value
        others = [p for p in cast.people if p != person and (at := stage.state.at.get(p)) and at.value == here]
        if others:
            stage.tell("greet", person, pick(rng, others))
    elif kind < 0.55 and told:
        thing = pick(rng, told)
        if not any((thing, of) in stage.state.looks for of in ("color", "size")):
            stage.tell("looks", thing, cast.looks[thing])
    elif kind < 0.62 and told:
        stage.tell("made", pick(rng, told), pick(rng, cast.materials))
    elif kind < 0.77 and len(told) > 1:
        stage.tell("bigger", *rng.sample(told, 2))
    elif kind < 0.85:
        stage.where(person)
        stage.tell("have_some", person, NUMBERS[rng.randint(1, 6)], pick(rng, cast.foods))
    elif kind < 0.92:
        stage.where(person)
        stage.tell("find_some", person, pick(rng, ("one", "two", "three")), pick(rng, cast.foods))
    else:
        stage.tell("be_not", person, stage.elsewhere(stage.where(person)))
