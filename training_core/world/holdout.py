"""What is held out of training: contents, pairs of words, and (in the grammar, marked "!") wordings.

Content: the fingerprint of a story's facts decides its split, whatever its wording. Combination: some pairs of words
(a name and a place, a name and a thing, a thing and a property) never meet in a training document; a hash of the pair
decides, so the rule depends on no seed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import combinations

from training_core.world.config import Split
from training_core.world.lexicon import KEY, WORDS, category
from training_core.world.state import Event

_FACTS = (
    "be be_not lies there inside looks looks_not made have have_not have_such have_some there_are near bigger locked"
)
FACTS = frozenset(_FACTS.split())
_PAIRED = frozenset(
    {("person", "place"), ("person", "thing"), ("person", "food"), ("food", "place"), ("thing", "property")}
)


def fingerprint(events: Sequence[Event]) -> bytes:
    """Return 16 bytes that identify the content of a story: its facts in any order, and its events in theirs.

    A fact keeps its place relative to the events, because it can be true before one and false after it.
    """
    canonical: list[Event] = []
    facts: list[Event] = []
    for event in events:
        if event.kind in FACTS:
            facts.append(event)
        else:
            canonical += [*sorted(facts), event]
            facts = []
    return hashlib.blake2b(repr([*canonical, *sorted(facts)]).encode(), digest_size=16).digest()


def split_of(content: bytes, validation_fraction: float, test_fraction: float) -> Split:
    """Return the split of a content from its first 8 bytes, read as a number in [0, 1)."""
    position = int.from_bytes(content[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


@cache
def is_held_out(first: str, second: str, share: float) -> bool:
    """Return whether training keeps two words apart: true for a share of the pairs of a name with a place, a thing or a
    food, of a food with a place, and of a thing with a property; in any order."""
    kinds = (category(first), category(second))
    if KEY in (first, second):  # every locked container needs it
        return False
    if kinds not in _PAIRED:
        if kinds[::-1] not in _PAIRED:
            return False
        first, second = second, first
    return zlib.crc32(f"{first} {second}".encode()) < share * 2**32


@cache
def partners(word: str, share: float) -> frozenset[str]:
    """Return all words that training keeps apart from a word."""
    return frozenset(other for other in WORDS if is_held_out(word, other, share))


def held_out_pairs(events: Iterable[Event], share: float) -> list[tuple[str, str]]:
    """Return the pairs of words that meet in one of these events and that training keeps apart."""
    return [pair for event in events for pair in combinations(event.args, 2) if is_held_out(pair[0], pair[1], share)]
