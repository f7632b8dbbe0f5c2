"""Rules that answer questions without understanding the story: by recency, by random mention, by copying.

A rule gives every candidate answer a share of its choice; the score of a question is the share of the right one. What a
story mentions are the words of its events, in order, so a pronoun counts as a mention.

most_recent: the candidate that is mentioned last.
random_mention: a mention of a candidate, drawn at random.
copying: the last candidate in the last event with a word of the question; in the one before if that has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from training_core.world.lexicon import category
from training_core.world.state import Event

Words = Sequence[str]
Rule = Callable[[Sequence[Event], Event, str, Sequence[str]], float]
_WORD = re.compile(r"[A-Za-z]+")


def most_recent(events: Sequence[Event], query: Event, right: str, candidates: Sequence[str]) -> float:
    """Return the share of the right answer among the candidates that are mentioned last."""
    return _latest(right, _last(_contents(candidates), _mentioned(events)))


def random_mention(events: Sequence[Event], query: Event, right: str, candidates: Sequence[str]) -> float:
    """Return the share of the right answer among all mentions of candidates."""
    told = _mentioned(events)
    counts = {
        candidate: min((told.count(word) for word in words), default=0)
        for candidate, words in _contents(candidates).items()
    }
    total = sum(counts.values())
    return counts[right] / total if total else 1 / len(counts)


def copying(events: Sequence[Event], query: Event, right: str, candidates: Sequence[str]) -> float:
    """Return the share of the right answer in the last event that has a word of the question and a candidate."""
    wanted = _contents(candidates)
    named = set(query.args)
    for event in reversed(events):
        if not named.isdisjoint(event.args):
            last = _last(wanted, event.args)
            if max(last.values()) >= 0:
                return _latest(right, last)
    return _latest(right, _last(wanted, _mentioned(events)))


RULES: Mapping[str, Rule] = {"most_recent": most_recent, "random_mention": random_mention, "copying": copying}


def _mentioned(events: Sequence[Event]) -> list[str]:
    return [word for event in events for word in event.args]


def _contents(candidates: Sequence[str]) -> dict[str, Words]:
    """The content words of each candidate: two for "ball and cup", none for "yes"."""
    return {
        candidate: (candidate,) if category(candidate) else [w for w in _WORD.findall(candidate) if category(w)]
        for candidate in candidates
    }


def _last(wanted: Mapping[str, Words], told: Words) -> dict[str, int]:
    """For each candidate the place of its last mention, -1 if there is none; of several words the earliest counts."""
    places = {word: place for place, word in enumerate(told)}
    return {candidate: min((places.get(word, -1) for word in words), default=-1) for candidate, words in wanted.items()}


def _latest(right: str, last: Mapping[str, int]) -> float:
    best = max(last.values())
    return float(last[right] == best) / sum(place == best for place in last.values())
