"""Scenario pairs: a situation, a continuation that follows a rule of virtue, and one of similar length that breaks it.

Four rules, each a short prompt:

    honesty   always tell the truth                 growth    learn and improve
    empathy   consider the effect on others         respect   treat all with dignity

Every rule has templates with slots for names and things. Whole *templates* are held out: preferences are measured on
situations whose wording was not trained on, and CIs are taken over templates, not over fillings.

Pairs are written so that neither length nor vocabulary gives the better continuation away: in both sets of templates,
negations, first persons, apologies and thanks occur on both sides, and the better continuation is the longer one about
half of the time. The tests check this: a bag-of-words classifier trained on the training templates scores little above
chance on the held-out ones.

**Does not cover**: ethics. A model of 1 to 25 million parameters understands none of these situations. All that is
measured is how much the likelihood of one written continuation shifts relative to that of the other.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from training_core.phases.p5_curriculum.templates import HELD_OUT, TRAINING, Texts

Split = Literal["train", "held_out"]
NAMES = ("Ann", "Ben", "Carl", "Dora", "Emma", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kate", "Leo", "Mary", "Nils")
THINGS = ("cup", "lamp", "clock", "chair", "vase", "plate", "mirror", "basket", "bowl", "drum")
PLACES = ("north", "south", "east", "west")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of virtue: its name, and the prompt that is baked."""

    name: str
    prompt: str


RULES = (
    Rule("honesty", "Always tell the truth."),
    Rule("empathy", "Consider the impact on others."),
    Rule("growth", "Always learn and improve."),
    Rule("respect", "Treat all with dignity."),
)


@dataclass(frozen=True, slots=True)
class ScenarioPair:
    """A filled template. Both continuations begin with a space and follow the situation directly.

    `template` names the template ("honesty/held_out/3"), which is the cluster of the bootstrap.
    """

    rule: str
    template: str
    situation: str
    better: str
    worse: str


def templates(rule: str, split: Split) -> Sequence[Texts]:
    """Return (situation, better, worse) for each of a rule's templates, with unfilled slots.

    Raises:
        ValueError: for an unknown rule or split.
    """
    known = {"train": TRAINING, "held_out": HELD_OUT}
    if split not in known or rule not in known[split]:
        raise ValueError(f"{split!r} templates of the rule {rule!r}: choose train or held_out, and {sorted(TRAINING)}")
    return known[split][rule]


def scenario_pairs(rule: str, split: Split, per_template: int, seed: int) -> list[ScenarioPair]:
    """Return `per_template` distinct fillings of every template of a rule, in the order of the templates.

    The fillings depend only on the seed, the rule, the split and the template's number.

    Raises:
        ValueError: as `templates`, and when a template has fewer than `per_template` distinct fillings.
    """
    pairs = []
    for number, texts in enumerate(templates(rule, split)):
        name = f"{rule}/{split}/{number}"
        draw = random.Random(f"{seed}/{name}")
        seen: dict[tuple[str, ...], None] = {}
        for _ in range(50 * per_template):
            if len(seen) == per_template:
                break
            values = _fill(draw)
            seen[tuple(text.format_map(values) for text in texts)] = None
        if len(seen) < per_template:
            raise ValueError(
                f"template {name} gave {len(seen)} different fillings, not {per_template}: lower the number of "
                "fillings of a template, or give it a slot more"
            )
        pairs += [ScenarioPair(rule, name, situation, f" {better}", f" {worse}") for situation, better, worse in seen]
    return pairs


def situations(rule: str, split: Split, count: int, seed: int) -> list[str]:
    """Return `count` situations of a rule, spread evenly over its templates."""
    each = -(-count // len(templates(rule, split)))
    pairs = scenario_pairs(rule, split, each, seed)
    order = sorted(range(len(pairs)), key=lambda i: (i % each, i))
    return [pairs[i].situation for i in order[:count]]


def slots(text: str) -> set[str]:
    """Return the names of a template's slots."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def _fill(draw: random.Random) -> dict[str, str]:
    """Draw values for all slots: names a, b; thing; place, other_place; numbers n, m. No value of a kind repeats."""
    a, b = draw.sample(NAMES, 2)
    place, other_place = draw.sample(PLACES, 2)
    n, m = draw.sample(NUMBERS, 2)
    thing = draw.choice(THINGS)
    return {"a": a, "b": b, "thing": thing, "place": place, "other_place": other_place, "n": n, "m": m}
