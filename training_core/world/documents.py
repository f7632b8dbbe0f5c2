"""Documents of the world: a pure function of configuration, seed, index, split and what is held out.

A document is a story with questions after it, or a short story of a level inside a question:

    Tom was in the kitchen. ... Tom went to the hall.
    Question: Where is Tom?
    Answer: hall

    Question: Tom had the ball. Tom went to the hall. Where is the ball?
    Answer: hall

Both are in the format of the project's questions (`tasks.questions.attempts`), worked solutions included.

Held out, beside the split of contents: "content" is a new story from the same words and wordings; "combination" asks
for a pair of words that training never sees together; "wording" words events and questions as training never does.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple, cast, get_args

from training_core.world.answers import FAMILIES, YES_NO, Answer, answer, propose, solution
from training_core.world.config import SIZES, HeldOut, Size, Split, WorldConfig, size_of
from training_core.world.holdout import fingerprint, held_out_pairs, split_of
from training_core.world.plots import goal_story
from training_core.world.realise import Style, Telling, choose, question, realise
from training_core.world.scenes import draw_scene, families, lengthen
from training_core.world.shortcuts import copying, most_recent
from training_core.world.stage import pick
from training_core.world.state import Event, State

_KEY = re.compile(
    r"(?:document"
    r"|level (?P<level>-?[0-9]+) (?P<level_family>\w+)"
    r"|size (?P<size>[0-9]+(?:,[0-9]+){3})(?: to (?P<length>[0-9]+))?(?: asked (?P<asked>[0-9]+))?"
    r" (?P<size_family>\w+))"
    r"/(?P<split>\w+)/(?P<held_out>\w+)/(?P<index>-?[0-9]+)"
)
ANSWER_CUE = " The answer is "  # as in `data.task_bank`, which this package does not import
_DRAWS = 2000  # draws of a content until one belongs to the split
# Without this, most answers of these families would be what was mentioned last: rules that are made to fail.
_FOOLED = {"where": (most_recent, most_recent, copying), "who": (copying, None, None), "like": (copying, None)}
_PROPOSALS = 16  # draws of a question of a family
_DRAWS_A_QUESTION = 4  # draws of a family for each question of a long story: not every one has an answer there
RECALLED = ("where", "who", "like")  # families whose answer is a word of one fact


class Longer(NamedTuple):
    """What an item has beyond its size: the sentences of a longer story (0: none), and its questions."""

    sentences: int = 0
    questions: int = 1


NOT_LONGER = Longer()


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question about a story, in words.

    candidates: all answers of this kind that the story offers. options: the right one and some others, in random order.
    text: the question alone. answer: what is asked for, by `WorldConfig.answers`. solution: the supporting facts in
    order, as plain sentences. support: the numbers of those events. level: 0 where the story is of no level.
    """

    family: str
    hops: int
    level: int
    text: str
    answer: str
    word: str
    sentence: str
    solution: str
    support: tuple[int, ...]
    options: tuple[str, ...]
    candidates: tuple[str, ...]
    query: Event


@dataclass(frozen=True, slots=True)
class Document:
    """A story, its questions, and the text that a model is trained on. key: what `from_key` makes it again from."""

    key: str
    text: str
    story: Telling
    events: tuple[Event, ...]
    questions: tuple[AskedQuestion, ...]
    fingerprint: bytes


def document(
    config: WorldConfig, seed: int, index: int, split: Split = "train", held_out: HeldOut = "content"
) -> Document:
    """Return one document; equal arguments give an equal document.

    held_out: what a document of a held-out split has that training has not, beside its content.

    Raises:
        ValueError: for a training document with held-out words, a negative index, or settings without stories.
    """
    return from_key(config, seed, f"document/{split}/{held_out}/{index}")


def documents(
    config: WorldConfig, seed: int, split: Split = "train", held_out: HeldOut = "content", start: int = 0
) -> Iterator[Document]:
    """Yield the documents of a split from an index on, without end."""
    for index in count(start):
        yield document(config, seed, index, split, held_out)


def item(
    config: WorldConfig,
    seed: int,
    index: int,
    split: Split = "train",
    held_out: HeldOut = "content",
    *,
    level: int,
    family: str = "any",
) -> Document:
    """Return a short story of a level with one question, of the family given or of a drawn one.

    Raises:
        ValueError: for an unknown level, or a family that the level does not have.
    """
    return from_key(config, seed, f"level {level} {family}/{split}/{held_out}/{index}")


def item_of_size(
    config: WorldConfig,
    seed: int,
    index: int,
    size: Size,
    split: Split = "train",
    held_out: HeldOut = "content",
    *,
    family: str = "any",
    lengthened_to: int = 0,
    num_questions: int = 1,
) -> Document:
    """Return a short or long story of any size with a question, which is its last.

    lengthened_to: sentences of a longer story that begins with one of `size`, for needles: what comes after it does not
    bear on the question, and the content of the beginning decides the split. 0: the story ends there.

    num_questions: with more than one, up to so many less one are asked before, each about one fact from anywhere in the
    story: who, what or where somebody or something is.

    Raises:
        ValueError: for a family that has no question of this size, and when no story can be made that long.
    """
    measures = f"{size.people},{size.things},{size.sentences},{size.hops}"
    if lengthened_to:
        measures += f" to {lengthened_to}"
    if num_questions > 1:
        measures += f" asked {num_questions}"
    return from_key(config, seed, f"size {measures} {family}/{split}/{held_out}/{index}")


def from_key(config: WorldConfig, seed: int, key: str) -> Document:
    """Return the document with a `Document.key`, made again from the same configuration and seed.

    Raises:
        ValueError: when the key is none, or asks for what the world cannot make.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is no key of a document: it reads like 'level 3 where/test/content/0'")
    split, held_out = _splits(match["split"], match["held_out"])
    if match["index"].startswith("-"):
        raise ValueError(f"index counts documents from 0, got {match['index']}: give a number of at least 0")
    rng = random.Random(f"{seed}/{key}")
    if measures := match["size"]:
        people, things, num_sentences, hops = map(int, measures.split(","))
        size = Size(people, things, num_sentences, hops)
        longer = Longer(int(match["length"] or 0), int(match["asked"] or 1))
        return _item(config, rng, key, split, held_out, size, 0, match["size_family"], longer)
    if match["level"]:
        level, family = int(match["level"]), match["level_family"]
    elif rng.random() < config.item_share:
        level, family = rng.randint(1, config.highest_level), "any"
    else:
        return _long(config, rng, key, split, held_out)
    return _item(config, rng, key, split, held_out, size_of(level), level, family)


def settings_digest(config: WorldConfig) -> str:
    """Return the SHA-256 of the settings."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True).encode()).hexdigest()


def lineage(config: WorldConfig) -> str:
    """Return a SHA-256 of the settings and of the generator's source, from which all its documents follow."""
    hasher = hashlib.sha256(settings_digest(config).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(f"{source.name} ".encode() + hashlib.sha256(source.read_bytes()).digest())
    return hasher.hexdigest()


def _splits(split: str, held_out: str) -> tuple[Split, HeldOut]:
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(get_args(Split))}")
    if held_out not in get_args(HeldOut):
        raise ValueError(f"unknown held_out {held_out!r}: use one of {', '.join(get_args(HeldOut))}")
    if split == "train" and held_out != "content":
        raise ValueError(f"training documents have no held-out {held_out}: ask for the split validation or test")
    return cast(Split, split), cast(HeldOut, held_out)


def _style(config: WorldConfig, held_out: HeldOut, *, short: bool) -> Style:
    """A short story has one event a sentence, so that its level is its number of sentences."""
    variety = config.variety
    return Style(
        variety=variety,
        joins=0.0 if short else 0.6 * variety,
        leads=(0.1 if short else 0.3) * variety,
        pronouns=config.pronouns,
        held_out=0.5 if held_out == "wording" else 0.0,
    )


def _is_of(config: WorldConfig, content: bytes, split: Split) -> bool:
    return split_of(content, config.validation_fraction, config.test_fraction) == split


def _none_found(split: Split) -> ValueError:
    return ValueError(
        f"no content of the split {split} was found in {_DRAWS} draws: raise validation_fraction or test_fraction"
    )


def _item(
    config: WorldConfig,
    rng: random.Random,
    key: str,
    split: Split,
    held_out: HeldOut,
    size: Size,
    level: int,
    family: str,
    longer: Longer = NOT_LONGER,
) -> Document:
    met = held_out == "combination"
    kind = family if family != "any" else pick(rng, families(size, met=met))
    for _ in range(_DRAWS):
        drawn = draw_scene(rng, config, size, kind, last=size == SIZES[1], met=met)
        content = fingerprint(drawn.events)
        if not _is_of(config, content, split):
            continue
        scene = lengthen(drawn, size, kind, longer.sentences) if longer.sentences else drawn
        if scene is not None:
            break
    else:
        raise _none_found(split)
    telling = realise(scene.events, rng, _style(config, held_out, short=True))
    asked = _asked(config, rng, scene.events, scene.answer, held_out, level)
    before: list[AskedQuestion] = []
    if longer.questions > 1:
        state, draws = scene.stage.state, _DRAWS_A_QUESTION * longer.questions
        others = _questions(config, rng, state, scene.events, held_out, draws, kinds=RECALLED, most_hops=1)
        before = [other for other in others if other.query != asked.query][: longer.questions - 1]
    lines = [f"{q.text}\nAnswer: {_completion(config, rng, q)}\nQuestion: " for q in before]
    text = f"Question: {telling.text} {''.join(lines)}{asked.text}\nAnswer: {_completion(config, rng, asked)}"
    return Document(key, text, telling, scene.events, (*before, asked), content)


def _long(config: WorldConfig, rng: random.Random, key: str, split: Split, held_out: HeldOut) -> Document:
    for _ in range(_DRAWS):
        stage = goal_story(rng, config, met=held_out == "combination")
        events = tuple(stage.events)
        if held_out == "combination" and not held_out_pairs(events, config.combination_share):
            continue
        content = fingerprint(events)
        if _is_of(config, content, split):
            break
    else:
        raise _none_found(split)
    telling = realise(events, rng, _style(config, held_out, short=False))
    asked: list[AskedQuestion] = []
    if rng.random() < config.asked_share:
        many = rng.randint(1, config.most_questions)
        asked = _questions(config, rng, stage.state, events, held_out, many)
    lines = [f"\nQuestion: {q.text}\nAnswer: {_completion(config, rng, q)}" for q in asked]
    return Document(key, telling.text + "".join(lines), telling, events, tuple(asked), content)


def _questions(
    config: WorldConfig,
    rng: random.Random,
    state: State,
    events: tuple[Event, ...],
    held_out: HeldOut,
    many: int,
    *,
    kinds: Sequence[str] = tuple(FAMILIES),
    most_hops: int = 4,
) -> list[AskedQuestion]:
    """Up to `many` different questions, each of a family drawn from `kinds` once."""
    asked: list[AskedQuestion] = []
    for _ in range(many):
        family = pick(rng, kinds)
        wanted = pick(rng, YES_NO) if family == "yes_no" else ""
        fooled = pick(rng, _FOOLED[family]) if family in _FOOLED else None
        for _ in range(_PROPOSALS):
            found = answer(state, propose(rng, state, family))
            if (
                found is None
                or found.hops > most_hops
                or len(found.candidates) < 2
                or any(found.query == other.query for other in asked)
            ):
                continue
            if wanted not in ("", found.word):
                continue
            if fooled and fooled(events, found.query, found.word, found.candidates) > 0.5:
                continue
            told = [events[number] for number in found.support]
            if held_out == "combination" and not held_out_pairs(told, config.combination_share):
                continue
            asked.append(_asked(config, rng, events, found, held_out, 0))
            break
    return asked


def _asked(
    config: WorldConfig,
    rng: random.Random,
    events: tuple[Event, ...],
    found: Answer,
    held_out: HeldOut,
    level: int,
) -> AskedQuestion:
    style = Style(variety=config.variety, held_out=1.0 if held_out == "wording" else 0.0)
    wording = choose(f"?{found.query.kind}", rng, style)
    others = [word for word in found.candidates if word != found.word]
    options = [found.word, *rng.sample(others, min(len(others), config.num_options - 1))]
    rng.shuffle(options)
    return AskedQuestion(
        family=found.family,
        hops=found.hops,
        level=level,
        text=question(found.query, wording),
        answer=found.word if config.answers == "word" else found.sentence,
        word=found.word,
        sentence=found.sentence,
        solution=solution(events, found),
        support=found.support,
        options=tuple(options),
        candidates=found.candidates,
        query=found.query,
    )


def _completion(config: WorldConfig, rng: random.Random, asked: AskedQuestion) -> str:
    if rng.random() < config.solution_share:
        return f"{asked.solution}{ANSWER_CUE}{asked.answer}"
    return asked.answer
