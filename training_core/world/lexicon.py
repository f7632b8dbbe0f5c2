"""The words of the world: names with pronouns, places, things, foods and properties, in order of preference.

Every content word belongs to one list, so a word's part in a sentence is known without context. A smaller vocabulary
takes the beginning of each list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _words(
    """Anna Mia Sue Eva Lucy Kate Nora Ella Amy Jane Mary Ruth Emma Zoe Alice Clara Helen Julia Laura Sarah Grace Ivy
    Lena Maya Nina Olga Paula Stella"""
)
MEN = _words(
    """Tom Ben Sam Max Jack Leo Dan Tim Bob Joe Adam Luke Paul Fred Hugo David Peter Simon Oscar Henry Alan Carl Eric
    Frank George Ivan Kevin Louis"""
)
NAMES = tuple(name for pair in zip(WOMEN, MEN, strict=True) for name in pair)
PLACES = _words(
    """kitchen garden hall barn park shop school forest cellar shed office library yard cave field church tower stable
    market attic museum cabin castle mill bedroom station hotel theater harbor village garage temple bakery valley
    palace hospital bank cottage lobby orchard"""
)
CONTAINERS = _words("box bag basket chest bucket pot sack jar crate case")
TOYS = _words(
    """ball cup book hat doll kite drum lamp bell coat spoon plate ring boat map rope clock toy pen flag brush mirror
    candle flute scarf hammer chair pillow comb whistle mask blanket horn needle wheel ladder bottle shovel vase
    belt pipe mug glove statue button bench tray fork shirt net bowl brick cart chain crown cushion fan feather hook
    kettle lantern letter magnet marble nail pan puppet puzzle radio robot rug shell sled sponge stamp stool sword
    ticket torch towel"""
)
_FOODS = _words(
    """apple egg nut pear cake plum carrot cookie bean lemon onion tomato melon muffin peach waffle banana potato
    pepper turnip radish fig grape olive"""
)
_PLURALS = {"tomato": "tomatoes", "peach": "peaches", "potato": "potatoes", "radish": "radishes"}
FOODS: Mapping[str, str] = {food: _PLURALS.get(food, f"{food}s") for food in _FOODS}
COLORS = _words("red blue green yellow black white brown gray pink purple")
SIZES = ("big", "small", "tiny", "huge")
MATERIALS = _words("wood glass paper gold iron plastic silver wool")
NUMBERS = _words("zero one two three four five six seven eight nine ten")
PHASES = ("morning", "afternoon", "evening", "night")
MOODS = ("glad", "sad")
NEEDS = ("hungry", "tired", "dirty", "cold")
FEELINGS = (*MOODS, *NEEDS)
KEY = "key"  # what opens a locked container

FIXED_WORDS = 166  # words of every vocabulary: the grammar's own, numbers, feelings, times of day, properties, the key
SMALLEST, LARGEST = 210, 400

_WOMEN = frozenset(WOMEN)


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The content words of a vocabulary. foods: singular -> plural."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    containers: tuple[str, ...]
    toys: tuple[str, ...]
    foods: tuple[str, ...]


def is_woman(name: str) -> bool:
    """Return whether a name takes "she"; every other name takes "he"."""
    return name in _WOMEN


def category(word: str) -> str:
    """Return "person", "place", "thing", "food", "property", "number" or "" for a word in its singular form."""
    return _CATEGORIES.get(word, "")


def property_class(word: str) -> str:
    """Return "color", "size" or "material".

    Raises:
        ValueError: when the word is no property.
    """
    found = _PROPERTY_CLASSES.get(word)
    if found is None:
        raise ValueError(f"{word!r} is no property: use one of {', '.join(_PROPERTY_CLASSES)}")
    return found


@cache
def lexicon(vocabulary: int) -> Lexicon:
    """Return the content words of a vocabulary of about that many distinct words, the fixed ones included.

    Raises:
        ValueError: when the vocabulary is outside what the lists can give.
    """
    if not SMALLEST <= vocabulary <= LARGEST:
        raise ValueError(f"a vocabulary has {SMALLEST} to {LARGEST} words, got {vocabulary}: choose one between")
    share = (vocabulary - FIXED_WORDS) / (LARGEST - FIXED_WORDS)

    def some(words: tuple[str, ...]) -> tuple[str, ...]:
        return words[: max(6, round(share * len(words)))]

    return Lexicon(some(NAMES), some(PLACES), some(CONTAINERS), some(TOYS), some(tuple(FOODS)))


_PROPERTY_CLASSES: Mapping[str, str] = {
    word: name for name, words in (("color", COLORS), ("size", SIZES), ("material", MATERIALS)) for word in words
}
_CATEGORIES: Mapping[str, str] = {
    word: name
    for name, words in (
        ("person", NAMES),
        ("place", PLACES),
        ("thing", (*CONTAINERS, *TOYS, KEY)),
        ("food", tuple(FOODS)),
        ("property", tuple(_PROPERTY_CLASSES)),
        ("number", NUMBERS),
    )
    for word in words
}
WORDS = tuple(_CATEGORIES)  # every content word, foods in the singular
