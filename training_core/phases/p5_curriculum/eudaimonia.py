"""Eudaimonia: four rules of virtue, baked into the weights one after the other.

For a rule with the prompt u and situations x (`training_core.phases.p5_curriculum.scenarios`)

    y ~ P_teacher(. | u, x)         the teacher is a copy of the current model: later rules build on earlier ones
    student <- bake(teacher, u, y)  `training_core.distill.prompt_baking`, with the ternary straight-through estimator

**Does not cover**: virtue. A model of 1 to 25 million parameters means nothing by "honest"; this measures how far the
likelihoods of written continuations move when such a sentence is baked in.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from training_core.distill.prompt_baking import BakingMeasure, TextBatches, bake, measure_baking
from training_core.distill.trajectories import Trajectory, sample_continuations
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy, ternarize, ternary_modules
from training_core.phases.p5_curriculum.config import CharacterConfig
from training_core.phases.p5_curriculum.scenarios import RULES, Rule, situations
from training_core.reporting import Reporter
from training_core.training.loop import step_generator

SEPARATOR = "\n"


@dataclass(frozen=True, slots=True)
class RuleTrajectories:
    """The baked prompt, and the prompted teacher's continuations of training and of held-out situations."""

    prompt: tuple[int, ...]
    teaching: tuple[Trajectory, ...]
    held_out: tuple[Trajectory, ...]


def bake_rules(
    parent: Cognate,
    config: CharacterConfig,
    tokenizer: Tokenizer,
    text: TextBatches,
    reporter: Reporter,
    checkpoint: Path | None,
) -> tuple[Cognate, dict[str, BakingMeasure]]:
    """Bake all four rules in order; return the model and how well each was baked, on held-out situations.

    Each rule is compared with its own teacher, the model before it was baked.
    """
    model, measures = parent, {}
    for number, rule in enumerate(RULES):
        teacher = inference_copy(model)
        drawn = sample_rule(teacher, tokenizer, rule, config, number)
        model = bake_rule(model, rule, drawn, text, config, reporter, checkpoint)
        measures[rule.name] = measure_baking(teacher, inference_copy(model), drawn.prompt, drawn.held_out)
    return model, measures


def rule_prompt(rule: Rule, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the token ids of the prompt to bake: the rule followed by a line break."""
    return tuple(tokenizer.encode(f"{rule.prompt}{SEPARATOR}").ids)


def sample_rule(
    teacher: Cognate, tokenizer: Tokenizer, rule: Rule, config: CharacterConfig, number: int
) -> RuleTrajectories:
    """Let the prompted teacher continue the situations of both splits; `number` is the index of the rule."""
    texts = {
        "train": situations(rule.name, "train", config.rules.situations_per_rule, config.training.seed),
        "held_out": situations(rule.name, "held_out", config.rules.held_out_situations, config.training.seed),
    }
    prefixes = [tokenizer.encode(text).ids for split in texts.values() for text in split]
    prompt = rule_prompt(rule, tokenizer)
    generator = step_generator(config.training.seed, -10 - number)
    drawn = sample_continuations(teacher, prompt, prefixes, config.baking(), generator)
    split = len(texts["train"])
    return RuleTrajectories(prompt, tuple(drawn[:split]), tuple(drawn[split:]))


def bake_rule(
    current: Cognate,
    rule: Rule,
    drawn: RuleTrajectories,
    text: TextBatches,
    config: CharacterConfig,
    reporter: Reporter,
    checkpoint: Path | None,
) -> Cognate:
    """Return a copy of `current`, trained to answer without the prompt as `current` does with it."""
    student = copy.deepcopy(current)
    label = f"baking {rule.name}"
    bake(
        inference_copy(current),
        student,
        drawn.prompt,
        drawn.teaching,
        text,
        config.baking(),
        reporter,
        checkpoint,
        label,
    )
    return student


def flipped_codes(before: Cognate, after: Cognate) -> float:
    """Return the share of ternary weights whose code in {-1, 0, +1} differs between two models.

    Latent weights can change without changing any code.

    Raises:
        ValueError: for a model without ternary weights.
    """
    others = dict(ternary_modules(after))
    changed = total = 0
    for name, module in ternary_modules(before):
        codes = [ternarize(m.weight.detach(), m.threshold, m.granularity).codes for m in (module, others[name])]
        changed += int((codes[0] != codes[1]).sum())
        total += codes[0].numel()
    if not total:
        raise ValueError("the model has no ternary weights, so that no code can flip: give it its ternary form")
    return changed / total
