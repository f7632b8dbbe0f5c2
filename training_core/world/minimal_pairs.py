"""Minimal pairs: two sentences that differ in one word, of which the grammar allows one.

After BLiMP (Warstadt et al., 2020, arXiv:1912.00582). Pairs come in twos: the word that is right in the first is wrong
in the second, in the same frame. A model that knows word frequencies only is therefore right in exactly half of them.

**Differs from the paper**: what counts is the grammar of this world. English allows "Tom was sad because she lost the
ball" with another she; here the pronoun is the subject's.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from training_core.world.config import WorldConfig
from training_core.world.holdout import is_held_out
from training_core.world.lexicon import FOODS, NUMBERS, Lexicon, is_woman, lexicon
from training_core.world.realise import article
from training_core.world.stage import pick

_DRAWS = 10_000  # in a row without a new pair, before there are taken to be no more
_OPENINGS = ("", "Then ", "In the morning ", "In the afternoon ", "In the evening ", "At night ")
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """A sentence of the grammar, and the same sentence with one wrong word."""

    phenomenon: str
    good: str
    bad: str


def minimal_pairs(config: WorldConfig, seed: int, phenomenon: str, count: int) -> list[MinimalPair]:
    """Return `count` different pairs, in twos that balance each other. A small vocabulary may give fewer, or none.

    The name and the noun of a sentence never meet in training (`holdout`), so no such sentence was seen there; those of
    `agreement` have no name and may have been.

    Raises:
        ValueError: for an unknown phenomenon, or an odd count.
    """
    make = _MAKERS.get(phenomenon)
    if make is None:
        raise ValueError(f"unknown phenomenon {phenomenon!r}: use one of {', '.join(_MAKERS)}")
    if count < 2 or count % 2:
        raise ValueError(f"minimal pairs come in twos, got count = {count}: ask for an even number")
    rng = random.Random(f"pairs/{seed}/{phenomenon}")
    words = lexicon(config.vocabulary)
    found: list[MinimalPair] = []
    seen: set[str] = set()
    repeated = 0
    while len(found) < count and repeated < _DRAWS:
        made = make(rng, words, config.combination_share)
        repeated += 1
        if made is not None and seen.isdisjoint(good for good, _ in made):
            seen.update(good for good, _ in made)
            found += [MinimalPair(phenomenon, good, bad) for good, bad in made]
            repeated = 0
    return found


def pair_outcomes(good: Sequence[float], bad: Sequence[float]) -> list[float]:
    """Return for each pair 1 if the good sentence has the higher log-probability, 0.5 for a tie, else 0.

    Raises:
        ValueError: when there are no scores, or not as many of both.
    """
    if not good or len(good) != len(bad):
        raise ValueError(f"each pair needs two scores, got {len(good)} good and {len(bad)} bad ones")
    return [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(good, bad, strict=True)]


def frequency_outcomes(pairs: Sequence[MinimalPair], counts: Mapping[str, int]) -> list[float]:
    """Return `pair_outcomes` of word frequencies alone (add one smoothing); their mean is 0.5 for `minimal_pairs`."""
    total = sum(counts.values()) + len(counts) + 1

    def score(sentence: str) -> float:
        # fsum is exact, so two orders of the same words are equal
        return math.fsum(math.log((counts.get(word, 0) + 1) / total) for word in words_of(sentence))

    return pair_outcomes([score(pair.good) for pair in pairs], [score(pair.bad) for pair in pairs])


def words_of(text: str) -> list[str]:
    """Return the words of a text, which `frequency_outcomes` counts."""
    return _WORD.findall(text)


Two = tuple[tuple[str, str], tuple[str, str]]
Maker = Callable[[random.Random, Lexicon, float], Two | None]


def _agreement(rng: random.Random, words: Lexicon, share: float) -> Two | None:
    """There was one apple, there were three apples."""
    food, place = pick(rng, words.foods), pick(rng, words.places)
    number = pick(rng, NUMBERS[2:7])
    one, many = f"one {food}", f"{number} {FOODS[food]}"
    if rng.random() < 0.5:
        return (
            (f"There was {one} in the {place}.", f"There were {one} in the {place}."),
            (f"There were {many} in the {place}.", f"There was {many} in the {place}."),
        )
    one, many = one.capitalize(), many.capitalize()
    return (
        (f"{one} was in the {place}.", f"{one} were in the {place}."),
        (f"{many} were in the {place}.", f"{many} was in the {place}."),
    )


def _reflexive(rng: random.Random, words: Lexicon, share: float) -> Two | None:
    man = pick(rng, [name for name in words.names if not is_woman(name)])
    woman = pick(rng, [name for name in words.names if is_woman(name)])
    places = [_kept_apart(words.places, name, share) for name in (man, woman)]
    if not all(places):
        return None
    went, washed, opening = pick(rng, ("went", "walked", "ran")), pick(rng, ("washed", "cleaned")), pick(rng, _OPENINGS)

    def text(name: str, where: list[str], pronoun: str) -> str:
        return f"{opening}{name} {went} to the {where[0]} and {washed} {pronoun}."

    for where in places:
        rng.shuffle(where)
    return (
        (text(man, places[0], "himself"), text(man, places[0], "herself")),
        (text(woman, places[1], "herself"), text(woman, places[1], "himself")),
    )


def _pronoun(rng: random.Random, words: Lexicon, share: float) -> Two | None:
    thing = pick(rng, words.toys)
    names = _kept_apart(words.names, thing, share)
    men, women = [n for n in names if not is_woman(n)], [n for n in names if is_woman(n)]
    if not men or not women:
        return None
    place, opening = pick(rng, words.places), pick(rng, _OPENINGS)
    frame = pick(
        rng,
        (
            "{0} was sad because {1} lost the {2}.",
            "{0} was glad because {1} found the {2}.",
            f"{opening}{{0}} went to the {{3}} because {{1}} wanted the {{2}}.",
            f"{opening}{{0}} ran to the {{3}} because {{1}} wanted the {{2}}.",
        ),
    )

    def text(name: str, pronoun: str) -> str:
        return frame.format(name, pronoun, thing, place)

    man, woman = pick(rng, men), pick(rng, women)
    return (text(man, "he"), text(man, "she")), (text(woman, "she"), text(woman, "he"))


def _kept_apart(from_words: Sequence[str], word: str, share: float) -> list[str]:
    return [other for other in from_words if is_held_out(other, word, share)]


def _number(rng: random.Random, words: Lexicon, share: float) -> Two | None:
    """One apple, three apples."""
    name, food = pick(rng, words.names), pick(rng, words.foods)
    if not is_held_out(name, food, share):
        return None
    verb, number = pick(rng, ("had", "held", "found", "bought", "took", "lost", "sold")), pick(rng, NUMBERS[2:7])
    begun = f"{'' if verb in ('had', 'held') else pick(rng, _OPENINGS)}{name} {verb}"
    return (
        (f"{begun} one {food}.", f"{begun} one {FOODS[food]}."),
        (f"{begun} {number} {FOODS[food]}.", f"{begun} {number} {food}."),
    )


def _article(rng: random.Random, words: Lexicon, share: float) -> Two | None:
    """An apple, a pear."""
    name, friend = rng.sample(words.names, 2)
    foods = _kept_apart(words.foods, name, share)
    vowels = [food for food in foods if article(food).startswith("an ")]
    others = [food for food in foods if food not in vowels]
    if not vowels or not others:
        return None
    frame = pick(rng, ("{0} ate {1} {2}.", '"Can I have {1} {2}, {3}?" asked {0}.', "{0} asked {3} for {1} {2}."))

    def pair(food: str, right: str, wrong: str) -> tuple[str, str]:
        return frame.format(name, right, food, friend), frame.format(name, wrong, food, friend)

    return pair(pick(rng, vowels), "an", "a"), pair(pick(rng, others), "a", "an")


_MAKERS: Mapping[str, Maker] = {
    "agreement": _agreement,
    "reflexive": _reflexive,
    "pronoun": _pronoun,
    "number": _number,
    "article": _article,
}
PHENOMENA = tuple(_MAKERS)
