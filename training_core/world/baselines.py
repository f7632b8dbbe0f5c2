"""The accuracy that rules without understanding reach on the very questions that a model is asked."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean

from training_core.world.documents import Document
from training_core.world.shortcuts import RULES
from training_core.world.state import Event

BASELINES = ("chance", "majority", *RULES)
Majorities = Mapping[str, Mapping[str, int]]  # by family, how often each answer is right


def baselines(items: Sequence[Document], seen: Sequence[Document]) -> dict[str, dict[str, float]]:
    """Return the accuracy of every baseline by family, for all questions of the items.

    seen: training documents from which the majority is counted.

    Raises:
        ValueError: when there is no question.
    """
    counted = majorities(seen)
    scores: dict[str, list[dict[str, float]]] = defaultdict(list)
    for item in items:
        for asked in item.questions:
            scores[asked.family].append(
                outcomes(item.events, asked.query, asked.word, asked.candidates, counted.get(asked.family, {}))
            )
    if not scores:
        raise ValueError("none of the documents has a question: raise asked_share, or give items of a level")
    return {family: {name: mean(o[name] for o in of) for name in BASELINES} for family, of in sorted(scores.items())}


def outcomes(
    events: Sequence[Event], query: Event, right: str, choices: Sequence[str], counts: Mapping[str, int]
) -> dict[str, float]:
    """Return for every baseline the probability that it chooses the right one of the choices.

    chance: a choice drawn at random. majority: the choice that is most often the answer in the family, by `counts`. The
    others: `shortcuts`.
    """
    most = max(counts.get(choice, 0) for choice in choices)
    leading = [choice for choice in choices if counts.get(choice, 0) == most]
    return {
        "chance": 1 / len(choices),
        "majority": (right in leading) / len(leading),
        **{name: rule(events, query, right, choices) for name, rule in RULES.items()},
    }


def majorities(documents: Sequence[Document]) -> Majorities:
    """Return how often each answer is right in each family."""
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for item in documents:
        for asked in item.questions:
            words[asked.family][asked.word] += 1
    return words
