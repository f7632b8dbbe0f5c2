"""Short stories with one question, of a given size: the items of the levels.

The facts that the answer needs are drawn first, by family and hops; other sentences are told between them. They may
mention the same people and things, so the last sentence about somebody is not always the one that is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from training_core.world.answers import YES_NO, Answer, answer
from training_core.world.config import Size, WorldConfig
from training_core.world.holdout import held_out_pairs
from training_core.world.lexicon import COLORS, NUMBERS
from training_core.world.shortcuts import copying
from training_core.world.stage import Stage, StuckError, draw_cast, pick
from training_core.world.state import Event

_ATTEMPTS = 400
_COPIED = {("where", 1), ("who", 1), ("like", 1), ("before_after", 2)}
_FOOLED_ATTEMPTS = 30  # attempts at a story in which a rule fails; some sizes have none
# (family, hops) -> people and things that its facts need
NEEDS: Mapping[tuple[str, int], tuple[int, int]] = {
    ("where", 1): (2, 1), ("where", 2): (1, 1), ("where", 3): (1, 2), ("where", 4): (1, 3),
    ("who", 1): (2, 1), ("who", 2): (2, 2), ("who", 3): (2, 3),
    ("like", 1): (1, 2), ("like", 2): (1, 2),
    ("how_many", 1): (2, 1), ("how_many", 2): (1, 1), ("how_many", 3): (1, 1), ("how_many", 4): (1, 1),
    ("before_after", 2): (2, 1),
    ("why", 1): (2, 1), ("why", 2): (2, 1), ("why", 3): (2, 2), ("why", 4): (2, 2),
    ("bigger", 1): (1, 2), ("bigger", 2): (1, 3), ("bigger", 3): (1, 4), ("bigger", 4): (1, 5),
    ("yes_no", 1): (2, 1), ("yes_no", 2): (1, 1), ("yes_no", 3): (1, 2), ("yes_no", 4): (1, 3),
    ("list", 1): (1, 2), ("list", 2): (3, 3), ("list", 3): (4, 4), ("list", 4): (5, 5),
    ("path", 2): (1, 1),
}  # fmt: skip

_UNPAIRED = {("list", 1)} | {(family, hops) for family in ("bigger", "path") for hops in range(1, 5)}

Lines = tuple[list[Event], Event]


@dataclass(frozen=True, slots=True)
class Scene:
    """A short story, the answer to its question, and the stage on which it happened."""

    events: tuple[Event, ...]
    answer: Answer
    stage: Stage


def families(size: Size, *, met: bool = False) -> list[str]:
    """Return the families that have questions of this size. met: only those whose facts pair words of two lists."""
    return [
        family
        for (family, hops), (people, things) in NEEDS.items()
        if hops == size.hops
        and not (met and (family, hops) in _UNPAIRED)
        and people <= size.people
        and things <= size.things
        and _length(family, hops) <= size.sentences
    ]


def draw_scene(
    rng: random.Random, config: WorldConfig, size: Size, family: str, *, last: bool = False, met: bool = False
) -> Scene:
    """Draw a story of a size and a question of a family with exactly its hops.

    In half of the stories of families that copying (`shortcuts`) would answer, it is made to fail.

    last: the answer follows from the last sentence alone. met: the answer rests on a pair of words that training never
    sees together; otherwise no such pair occurs.

    Raises:
        ValueError: when this size has no such question, or none is found.
    """
    if family not in families(size, met=met):
        raise ValueError(
            f"{size} has no question of family {family!r}{' on a held-out pair of words' if met else ''}, only of "
            f"{', '.join(families(size, met=met)) or 'none'}: add people, things or sentences, or take another family"
        )
    wanted = pick(rng, YES_NO) if family == "yes_no" else ""  # else most answers would be "no"
    fooled = not last and (family, size.hops) in _COPIED and rng.random() < 0.5
    attempts = 10 * _ATTEMPTS if met else _ATTEMPTS
    for attempt in range(attempts):
        try:
            scene = _attempt(rng, config, size, family, last=last, met=met, own=0.7 if fooled else 0.35)
        except StuckError:
            continue
        if scene is None or wanted not in ("", scene.answer.word):
            continue
        if last and scene.answer.support != (len(scene.events) - 1,):
            continue
        found = scene.answer
        copied = fooled and copying(scene.events, found.query, found.word, found.candidates) > 0.5
        if copied and attempt < _FOOLED_ATTEMPTS:
            continue
        if not met or held_out_pairs([scene.events[n] for n in scene.answer.support], config.combination_share):
            return scene
    raise ValueError(
        f"no question of family {family!r} was found for {size} in {attempts} attempts: give it more sentences, or "
        "raise combination_share or the vocabulary"
    )


def _attempt(
    rng: random.Random, config: WorldConfig, size: Size, family: str, *, last: bool, met: bool, own: float
) -> Scene | None:
    stage = Stage(rng, draw_cast(rng, config, size.people, max(size.things, 2), min(4, max(3, size.people)), met=met))
    lines, query = _CORES[family](stage, size.hops)
    others = size.sentences - len(lines)
    if others < 0:
        return None
    moments = [len(lines)] if last else sorted(rng.sample(range(size.sentences), len(lines)))
    waiting = list(lines)
    while len(stage.events) < size.sentences:
        due = len(stage.events) >= size.sentences - len(waiting) if last else len(stage.events) in moments
        if waiting and due:
            event = waiting.pop(0)
            counted = event.kind == "have_some" and (event.args[0], event.args[2]) in stage.state.amounts
            if counted or event in stage.events:  # a filler told it before
                return None
            stage.must(event.kind, *event.args)
        else:
            _filler(stage, size, family, lines, own)
    found = answer(stage.state, query)
    if found is None or found.hops != size.hops or len(found.candidates) < 2:
        return None
    if len(stage.state.mentioned("thing")) > size.things:
        return None
    return Scene(tuple(stage.events), found, stage)


def lengthen(scene: Scene, size: Size, family: str, sentences: int) -> Scene | None:
    """Return a scene of `size` with more sentences after it, as many as make `sentences`; None where that fails.

    None of them is about the people and things of the question, and the answer rests on the same facts as before. The
    scene's own stage goes on, so it can be lengthened once.
    """
    stage, asked = scene.stage, scene.answer
    try:
        while len(stage.events) < sentences:
            _filler(stage, size, family, [asked.query, *(scene.events[number] for number in asked.support)], own=0.0)
    except StuckError:
        return None
    found = answer(stage.state, asked.query)
    if found is None or (found.word, found.support) != (asked.word, asked.support):
        return None
    return Scene(tuple(stage.events), found, stage)


def _length(family: str, hops: int) -> int:
    """Sentences that the shortest story of a family takes."""
    return hops + (family == "why" and hops == 2)


def _filler(stage: Stage, size: Size, family: str, lines: list[Event], own: float) -> None:
    """Tell one more event: half of them of the family's own kind. own: how often it is about the same people or things
    as the question."""
    rng, cast = stage.rng, stage.cast
    core = {word for event in lines for word in event.args}
    toys = cast.things[: max(1, size.things - len(core.intersection(cast.containers)))]
    for _ in range(40):
        same, also = rng.random() < own, rng.random() < own
        people = [p for p in cast.people if (p in core) == same] or list(cast.people)
        things = [t for t in toys if (t in core) == also] or list(toys)
        kinds = _FILLERS[family] if rng.random() < 0.5 else _ANY
        if _tell_filler(stage, pick(rng, kinds), pick(rng, people), pick(rng, things), things):
            return
    raise StuckError("nothing else can happen")


def _tell_filler(stage: Stage, kind: str, p: str, t: str, things: list[str]) -> bool:
    """Tell an event of a kind about a person or a thing, if it is possible and nothing of it was told before."""
    rng, cast = stage.rng, stage.cast
    place = pick(rng, cast.places)
    match kind:
        case "be" | "go" | "be_not":
            if kind == "go" and p not in stage.state.at:
                kind = "be"
            known = (kind == "be" and p in stage.state.at) or (p, place) in stage.state.absent
            return not known and stage.tell(kind, p, place)
        case "lies" | "have":
            return t not in stage.state.spots and stage.tell(kind, *((t, place) if kind == "lies" else (p, t)))
        case "take" | "drop" | "have_not":
            return stage.tell(kind, p, t)
        case "want":
            return p not in stage.state.wants and stage.tell(kind, p, t)
        case "looks" | "looks_not":
            new = kind == "looks_not" or (t, "color") not in stage.state.looks
            return new and stage.tell(kind, t, pick(rng, stage.cast.colors))
        case "made":
            return (t, "material") not in stage.state.looks and stage.tell(kind, t, pick(rng, cast.materials))
        case "have_some" | "find_some" | "lose_some":
            food = pick(rng, cast.foods)
            new = kind != "have_some" or (p, food) not in stage.state.amounts
            return new and stage.tell(kind, p, NUMBERS[rng.randint(1, 6)], food)
        case "bigger":
            pair = rng.sample(things, 2) if len(things) > 1 else []
            return bool(pair) and stage.tell(kind, *pair)
        case "inside":
            box = pick(rng, [c for c in cast.containers if c in stage.state.seen] or cast.containers)
            return t not in stage.state.spots and stage.tell(kind, t, box)
        case "near":
            x, y = rng.sample(cast.places, 2)
            return y not in stage.state.near.get(x, ()) and stage.tell(kind, x, y)
        case _:
            new = all((p, need) not in stage.state.needs for need in _NEEDS)
            return new and stage.tell("feel", p, pick(rng, _NEEDS))


_NEEDS = ("hungry", "tired", "cold")
_ANY = ("be", "go", "go", "lies", "have", "take", "drop", "looks", "have_some", "feel")
_FILLERS: Mapping[str, tuple[str, ...]] = {
    "where": ("be", "go", "go", "lies", "be_not", "be_not"),
    "who": ("have", "take", "be", "want", "have_not"),
    "like": ("looks", "looks", "looks_not", "made"),
    "how_many": ("have_some", "find_some", "lose_some"),
    "before_after": ("be", "go", "have"),
    "why": ("want", "go", "feel", "have"),
    "bigger": ("bigger", "looks"),
    "yes_no": ("be", "go", "be_not", "have", "looks"),
    "list": ("be", "go", "have", "inside"),
    "path": ("near", "be"),
}


def _where(stage: Stage, hops: int) -> Lines:
    rng, cast = stage.rng, stage.cast
    p, t = cast.people[0], cast.things[0]
    x, y = rng.sample(cast.places, 2)
    box, bag = cast.containers
    lines = {
        1: [[Event("be", (p, x))], [Event("be", (p, y)), Event("go", (p, x))], [Event("lies", (t, x))]],
        2: [
            [Event("have", (p, t)), Event("be", (p, x))],
            [Event("be", (p, y)), Event("have", (p, t)), Event("go", (p, x))],
            [Event("lies", (t, y)), Event("be", (p, y)), Event("take", (p, t)), Event("go", (p, x))],
            [Event("inside", (t, box)), Event("lies", (box, x))],
            [Event("have", (p, t)), Event("go", (p, x)), Event("drop", (p, t))],
        ],
        3: [
            [Event("inside", (t, box)), Event("have", (p, box)), Event("be", (p, x))],
            [Event("inside", (t, box)), Event("have", (p, box)), Event("go", (p, y)), Event("go", (p, x))],
        ],
        4: [[Event("inside", (t, bag)), Event("inside", (bag, box)), Event("have", (p, box)), Event("be", (p, x))]],
    }[hops]
    chosen = pick(rng, lines)
    if hops > 1 and all(event.kind in ("inside", "have", "be", "lies") for event in chosen):
        rng.shuffle(chosen)
    if hops == 1:
        return chosen, Event("where_thing", (t,)) if chosen[0].kind == "lies" else Event("where", (p,))
    inside = any(event.kind == "inside" for event in chosen)
    return chosen, Event("place_of" if inside or stage.chance(0.3) else "where_thing", (t,))


def _who(stage: Stage, hops: int) -> Lines:
    p, t, (box, bag) = stage.cast.people[0], stage.cast.things[0], stage.cast.containers
    chain = {1: [t], 2: [t, box], 3: [t, bag, box]}[hops]
    lines = [Event("inside", pair) for pair in pairwise(chain)]
    lines.append(Event("have", (p, chain[-1])))
    stage.rng.shuffle(lines)
    return lines, Event("who_has", (t,))


def _like(stage: Stage, hops: int) -> Lines:
    p, t, box = stage.cast.people[0], stage.cast.things[0], stage.cast.containers[0]
    if hops == 1:
        if stage.chance(0.3):
            return [Event("made", (t, pick(stage.rng, stage.cast.materials)))], Event("material", (t,))
        d = stage.cast.looks[t]
        return [Event("looks", (t, d))], Event("color" if d in COLORS else "size", (t,))
    d = pick(stage.rng, stage.cast.colors)
    if stage.chance(0.5):
        return [Event("have", (p, t)), Event("looks", (t, d))], Event("color_held", (p,))
    return [Event("looks", (t, d)), Event("inside", (t, box))], Event("color_in", (box,))


def _how_many(stage: Stage, hops: int) -> Lines:
    rng, p, food = stage.rng, stage.cast.people[0], stage.cast.foods[0]
    total = rng.randint(1, 6)
    lines = [Event("have_some", (p, NUMBERS[total], food))]
    for _ in range(hops - 1):
        by = rng.randint(1, 3)
        kind = pick(rng, ("find_some", "lose_some"))
        if kind == "lose_some" and by > total:
            kind = "find_some"
        elif kind == "find_some" and total + by > 10:
            kind = "lose_some"
        total += by if kind == "find_some" else -by
        lines.append(Event(kind, (p, NUMBERS[by], food)))
    return lines, Event("how_many", (p, food))


def _before_after(stage: Stage, hops: int) -> Lines:
    p = stage.cast.people[0]
    x, y = stage.rng.sample(stage.cast.places, 2)
    lines = [Event("be", (p, x)), Event("go", (p, y))]
    return lines, Event("before", (p, y)) if stage.chance(0.5) else Event("after", (p, x))


def _why(stage: Stage, hops: int) -> Lines:
    rng, (p, q), t = stage.rng, stage.cast.people[:2], stage.cast.things[0]
    x = pick(rng, stage.cast.places)
    if hops == 1:
        if stage.chance(0.3):
            return [Event("sad_lost", (p, t))], Event("why", (p, "sad"))
        line = Event("go_wanting", (p, x, t)) if stage.chance(0.6) else Event("go_needing", (p, x, "hungry"))
        return [line], Event("why_go", (p, x))
    if hops == 2:
        if stage.chance(0.4):
            return [Event("fall", (p,)), Event("feel", (p, "dirty"))], Event("why", (p, "dirty"))
        lines = [Event("have", (p, t)), Event("lose", (p, t)), Event("feel", (p, "sad"))]
        return lines, Event("why", (p, "sad"))
    lines = [Event("want", (p, t)), Event("lies", (t, x))]
    if hops == 4:
        lines = [Event("want", (p, t)), Event("have", (q, t)), Event("be", (q, x))]
    rng.shuffle(lines)
    return [*lines, Event("go", (p, x))], Event("why_go", (p, x))


def _bigger(stage: Stage, hops: int) -> Lines:
    things = stage.rng.sample(stage.cast.things, hops + 1)
    lines = [Event("bigger", pair) for pair in pairwise(things)]
    stage.rng.shuffle(lines)
    ends = (things[0], things[-1]) if stage.chance(0.5) else (things[-1], things[0])
    return lines, Event("bigger" if stage.chance(0.5) else "smaller", ends)


def _yes_no(stage: Stage, hops: int) -> Lines:
    lines, query = _where(stage, hops)
    x = lines[-1].args[-1] if lines[-1].kind in ("be", "go", "lies") else pick(stage.rng, stage.cast.places)
    place = x if stage.chance(0.5) else pick(stage.rng, [place for place in stage.cast.places if place != x])
    if hops > 1:
        return lines, Event("is_place", (query.args[0], place))
    kind = stage.rng.random()
    p, t = stage.cast.people[0], stage.cast.things[0]
    if kind < 0.15:
        return [Event("be_not", (p, x))], Event("is_at", (p, x))
    if kind < 0.4:
        return [Event("have", (p, t))], Event("has", (pick(stage.rng, stage.cast.people[:2]), t))
    if kind < 0.55:
        d = pick(stage.rng, stage.cast.colors)
        return [Event("looks", (t, d))], Event(
            "is_like", (t, d if stage.chance(0.5) else pick(stage.rng, stage.cast.colors))
        )
    return lines, Event("is_at" if query.kind == "where" else "is_place", (query.args[0], place))


def _list(stage: Stage, hops: int) -> Lines:
    rng, cast = stage.rng, stage.cast
    if hops == 1:
        return [Event("inside", (cast.things[0], cast.containers[0]))], Event("what_in", (cast.containers[0],))
    kind = rng.random()
    if kind < 0.4:
        x = pick(rng, cast.places)
        return [Event("be", (p, x)) for p in rng.sample(cast.people, hops)], Event("who_at", (x,))
    things = rng.sample(cast.things, hops)
    if kind < 0.7:
        return [Event("have", (cast.people[0], t)) for t in things], Event("what_has", (cast.people[0],))
    return [Event("inside", (t, cast.containers[0])) for t in things], Event("what_in", (cast.containers[0],))


def _path(stage: Stage, hops: int) -> Lines:
    x, y, z = stage.rng.sample(stage.cast.places, 3)
    lines = [Event("near", (x, y)), Event("near", (y, z))]
    stage.rng.shuffle(lines)
    return lines, Event("between", (x, z))


_CORES: Mapping[str, Callable[[Stage, int], Lines]] = {
    "where": _where, "who": _who, "like": _like, "how_many": _how_many, "before_after": _before_after, "why": _why,
    "bigger": _bigger, "yes_no": _yes_no, "list": _list, "path": _path,
}  # fmt: skip
