"""The accuracy that rules without understanding reach on the very questions that a model is asked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean

from training_core.world.documents import Document
from training_core.world.shortcuts import RULES

BASELINES = ("chance", "majority", *RULES)


def baselines(items: Sequence[Document], seen: Sequence[Document] | None = None) -> dict[str, dict[str, float]]:
    """Return the accuracy of every baseline by family, for all questions of the items.

    chance: a candidate drawn at random. majority: the most frequent answer of the family. The others: `shortcuts`.
    seen: training documents from which the majority is counted; by default the items themselves, which flatters it.

    Raises:
        ValueError: when there is no question.
    """
    majority = _majorities(seen if seen is not None else items)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        for asked in item.questions:
            of = scores[asked.family]
            of["chance"].append(1 / len(asked.candidates))
            of["majority"].append(float(asked.word == majority.get(asked.family)))
            for name, rule in RULES.items():
                of[name].append(rule(item.events, asked.query, asked.word, asked.candidates))
    if not scores:
        raise ValueError("none of the documents has a question: raise asked_share, or give items of a level")
    return {family: {name: mean(of[name]) for name in BASELINES} for family, of in sorted(scores.items())}


def _majorities(documents: Sequence[Document]) -> dict[str, str]:
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for item in documents:
        for asked in item.questions:
            words[asked.family][asked.word] += 1
    return {family: min(count, key=lambda word: (-count[word], word)) for family, count in words.items()}
