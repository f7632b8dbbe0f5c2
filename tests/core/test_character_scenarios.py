"""Scenario pairs: held-out templates, and no surface from which the better continuation could be told."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from training_core.phases.p5_curriculum.scenarios import RULES, scenario_pairs, situations, slots, templates
from training_core.phases.p5_curriculum.templates import HELD_OUT, TRAINING, Texts

ALL = {split: [texts for rule in RULES for texts in templates(rule.name, split)] for split in ("train", "held_out")}  # type: ignore[arg-type]
NEGATION = re.compile(r"\b(not|no|never|none|nobody|nothing|cannot)\b")
KNOWN_SLOTS = {"a", "b", "thing", "place", "other_place", "n", "m"}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", re.sub(r"\{.*?\}", "", text.lower())))


def bag_of_words(examples: list[Texts]) -> dict[str, float]:
    """Log odds of a word in the better against the worse continuation, half a count added."""
    better, worse = Counter[str](), Counter[str]()
    for _, good, bad in examples:
        better.update(words(good))
        worse.update(words(bad))
    return {w: math.log((better[w] + 0.5) / (worse[w] + 0.5)) for w in set(better) | set(worse)}


def accuracy(weights: dict[str, float], examples: list[Texts]) -> float:
    total = 0.0
    for _, good, bad in examples:
        margin = sum(weights.get(w, 0.0) for w in words(good)) - sum(weights.get(w, 0.0) for w in words(bad))
        total += 0.5 if abs(margin) < 1e-9 else float(margin > 0)
    return total / len(examples)


def test_size_and_form() -> None:
    for rule in RULES:
        assert len(rule.prompt.split()) <= 25
        assert len(TRAINING[rule.name]) + len(HELD_OUT[rule.name]) >= 10
    for texts in ALL["train"] + ALL["held_out"]:
        assert set().union(*map(slots, texts)) <= KNOWN_SLOTS
        assert slots(texts[0]), f"{texts[0]} has nothing to fill"
        assert abs(len(texts[1]) - len(texts[2])) <= 8, texts
    prompts = {texts[0] for texts in ALL["train"]}
    continuations = {text for texts in ALL["train"] for text in texts[1:]}
    assert not prompts & {texts[0] for texts in ALL["held_out"]}
    assert not continuations & {text for texts in ALL["held_out"] for text in texts[1:]}


def test_neither_words_nor_length_nor_negation_tell_the_better_continuation() -> None:
    # 24 held-out templates: the standard error of chance is .10
    assert accuracy(bag_of_words(ALL["train"]), ALL["held_out"]) == pytest.approx(0.5, abs=0.2)
    assert accuracy(bag_of_words(ALL["held_out"]), ALL["train"]) == pytest.approx(0.5, abs=0.2)
    # on its own examples the same bag of words is right nearly always: it would find a cue if there were one
    assert accuracy(bag_of_words(ALL["train"]), ALL["train"]) > 0.9
    for examples in ALL.values():
        signs = [(len(good) > len(bad)) - (len(good) < len(bad)) for _, good, bad in examples]
        assert abs(sum(signs)) / len(signs) <= 0.25, "the longer one is the better one half of the time"
        negations = [sum(bool(NEGATION.search(t[side].lower())) for t in examples) for side in (1, 2)]
        assert abs(negations[0] - negations[1]) <= 2, negations


def test_fillings_are_distinct_drawn_from_the_seed_and_spread_over_templates() -> None:
    pairs = scenario_pairs("growth", "held_out", 4, seed=3)
    assert pairs == scenario_pairs("growth", "held_out", 4, seed=3)
    assert pairs != scenario_pairs("growth", "held_out", 4, seed=4)
    assert len({(p.situation, p.better, p.worse) for p in pairs}) == len(pairs) == 4 * len(HELD_OUT["growth"])
    assert Counter(p.template for p in pairs) == {f"growth/held_out/{i}": 4 for i in range(len(HELD_OUT["growth"]))}
    assert all(p.better.startswith(" ") and p.worse.startswith(" ") and "{" not in p.situation for p in pairs)
    first = situations("growth", "train", 9, seed=0)
    assert len(set(first)) == 9
    heads = {texts[0].split("{")[0] for texts in TRAINING["growth"]}
    assert len(heads) <= 9


def test_what_cannot_be_filled_is_refused() -> None:
    with pytest.raises(ValueError, match="fillings, not 5000: lower the number"):
        scenario_pairs("growth", "train", 5000, seed=0)
    with pytest.raises(ValueError, match="'train' templates of the rule 'thrift': choose"):
        templates("thrift", "train")
