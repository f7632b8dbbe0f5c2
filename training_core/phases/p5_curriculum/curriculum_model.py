"""The second half of phase 5: bake four rules into a practised model, and evaluate council, OODA loop and self-model.

The stored model is chosen on validation text and validation questions. Reported numbers are measured on held-out
templates, test questions and held-out samples. Only the baking changes the model. The council and the loop are
evaluated on levels in reach, where the parent answers a tenth of the validation questions correctly: where all answers
are wrong, votes and decisions have nothing to choose from.

**Does not cover**: virtue, wisdom or self-knowledge in any sense beyond what is measured: a shift of likelihoods on
written pairs, accuracies at equal token budgets, and a temperature range predicted from a sample. A model of 1 to 25
million parameters has no more of them than that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from training_core.distill.prompt_baking import NO_EFFECT_NATS, BakingMeasure
from training_core.distill.rehearsal_data import staying_rows
from training_core.evaluation.harm import RULES as RULES_HARM
from training_core.evaluation.harm import in_reach, text_ratio
from training_core.formats.loading import SELF_MODEL
from training_core.formats.ternary_packing import round_to_half_, ternary_product
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.nn.ternary_cognate import TernarySettings
from training_core.phases.p5_curriculum.config import CharacterConfig
from training_core.phases.p5_curriculum.council import measure_council
from training_core.phases.p5_curriculum.eudaimonia import bake_rules, flipped_codes
from training_core.phases.p5_curriculum.exhibit import CharacterExhibit, ShownRule
from training_core.phases.p5_curriculum.ooda import Controller, Observation, measure_ooda, observe
from training_core.phases.p5_curriculum.preferences import measure_preferences
from training_core.phases.p5_curriculum.scenarios import RULES
from training_core.phases.p5_curriculum.self_model import (
    draw_samples,
    features,
    load_self_model,
    measure_self_model,
    own_logits,
    self_model_tensors,
    shuffled,
    train_self_model,
)
from training_core.store.bundle import Product
from training_core.tasks.questions.attempts import Answerer, completion_text, question_text
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.measurement import (
    Answered,
    answer_all,
    answer_both,
    by_level,
    first_questions,
    foreseen_fall,
    level_metrics,
    require_questions,
    spread,
)
from training_core.tasks.questions.question import Question
from training_core.training.device import best_device
from training_core.training.loop import step_generator

STAYING_QUESTIONS = 512
CONTROLS = 4  # heads trained on shuffled ranges
GIVEN_TOKENS = 4  # tokens of training or held-out text that each self-model sample continues


def make_character(
    parent: Cognate, settings: TernarySettings, context: QuestionContext, config: CharacterConfig
) -> Product:
    """Bake the four rules into `parent`, which has latent ternary weights, train its self-model, and evaluate both.

    The parent is stored without the rules (metric `handed_on` = 1) if they cost more than 1 % bits per byte on
    validation text, or if the upper bound of the predicted accuracy drop on any passed level exceeds 3 points
    (`foreseen_fall`). An interrupted run resumes from the checkpoint with the unfinished parts.

    Raises:
        ValueError: when a level has fewer held-out questions than configured.
    """
    require_questions(context.selection.questions, config.decisions.questions_per_level)  # before anything is trained
    context.refuse_unless(partial(require_questions, number=config.decisions.questions_per_level))
    parent.to(best_device()).eval()
    round_to_half_(parent)
    character = Character(parent, context, config)
    cache = character.cache
    baked, measures = character.virtues()
    validated = cache.cached("validation", lambda: character.validate(baked))
    handed_on = RULES_HARM.exceeded(validated["text_ratio"], validated["foreseen_drop"])
    model = parent if handed_on else baked
    final = inference_copy(model)
    answerer = Answerer(final, context.tokenizer, context.tools, config.decisions.answer_tokens)
    heads = cache.cached_tensors("self_model", lambda: character.heads(final))
    controller = character.controller(final, answerer)
    context.fix(model, heads)
    preferences = cache.cached(
        "preferences", lambda: measure_preferences(inference_copy(parent), final, context.tokenizer, config)
    )
    council = cache.cached("council", lambda: character.council(answerer))
    ooda = cache.cached("ooda", lambda: character.ooda(controller))
    temperature = cache.cached("temperature", lambda: character.temperature(final, heads))
    levels = cache.cached("levels", lambda: character.levels(model))
    metrics = {
        "handed_on": float(handed_on),
        "text_ratio_of_rules": validated["text_ratio"],
        "foreseen_drop_of_rules": validated["foreseen_drop"],
        "num_levels_in_reach": float(len(character.levels_in_reach)),
        **levels,
    }
    if not handed_on:  # these metrics describe the baked model, which is not stored if handed on
        metrics |= _baking_metrics(measures) | {"flipped_codes": flipped_codes(parent, model)}
    for part in (preferences, council, ooda, temperature):
        metrics |= part["metrics"]
    shown = CharacterExhibit(  # the parts come back from the checkpoint as JSON; here each becomes its type
        rules=_rules_shown(measures, preferences["shown"]["rules"], handed_on),
        not_kept=_refusal(validated) if handed_on else "",
        pairs=preferences["shown"]["pairs"],
        council=council["shown"],
        ooda=ooda["shown"],
        temperature=temperature["shown"],
    )
    product = ternary_product(
        model.cpu(), settings, context.training.tokenizer_json, metrics=metrics, exhibits={"character": shown.as_json()}
    )
    head = {name: tensor for name, tensor in heads.items() if name.startswith(SELF_MODEL)}
    return replace(product, tensors={**(product.tensors or {}), **head})


class Character:
    """The steps of the phase, which share the parent and its levels in reach."""

    def __init__(self, parent: Cognate, context: QuestionContext, config: CharacterConfig) -> None:
        self.parent, self.config, self.context = parent, config, context
        self.cache = context.cache(context.fingerprint(parent, config))
        self.levels_in_reach: list[int] = self.cache.cached("reach", self._reach)["levels"]

    def virtues(self) -> tuple[Cognate, dict[str, BakingMeasure]]:
        """Return the model with all rules baked in, and the measurement of each baking."""

        def bake() -> dict[str, Tensor]:
            asked = spread(self.context.train_questions, STAYING_QUESTIONS, self.levels_in_reach)
            stay = [question_text(question) + completion_text(question) for question in asked]
            rows = max(2, self.config.training.batch_size // 2)
            text = staying_rows(
                self.context.training,
                stay,
                self.config.mix,
                self.config.training.seq_len,
                self.config.rules.question_share,
                rows,
            )
            model, measures = bake_rules(
                self.parent, self.config, self.context.tokenizer, text, self.context.reporter, self.context.checkpoint
            )
            round_to_half_(model)
            sums = {
                f"{name}/{part}": getattr(measure, part)
                for name, measure in measures.items()
                for part in BakingMeasure.__slots__
            }
            return {f"model/{name}": tensor for name, tensor in model.state_dict().items()} | sums

        tensors = self.cache.cached_tensors("virtues", bake)
        model = copy.deepcopy(self.parent)
        model.load_state_dict({k.removeprefix("model/"): t for k, t in tensors.items() if k.startswith("model/")})
        measures = {
            rule.name: BakingMeasure(*(tensors[f"{rule.name}/{part}"] for part in BakingMeasure.__slots__))
            for rule in RULES
        }
        return model, measures

    def _reach(self) -> dict[str, list[int]]:
        """Return the levels at which the parent answers a tenth of the validation questions correctly.

        These are the levels it could forget, and those where votes and decisions matter. If there are none, all levels
        are returned.
        """
        config = self.config
        asked = first_questions(by_level(self.context.selection.questions), config.decisions.questions_per_level)
        answered = answer_all(
            self.parent, asked, self.context.tokenizer, self.context.tools, config.decisions.answer_tokens
        )
        return {"levels": in_reach({level: answered.accuracy(level).value for level in asked})}

    def validate(self, baked: Cognate) -> dict[str, Any]:
        """Return the cost of the rules on validation data.

        These are the ratio of bits per byte, and the upper bound of the predicted accuracy drop on any passed level.
        """
        before, after = self._answers(baked, self.context.selection.questions)
        return {
            "text_ratio": text_ratio(baked, self.parent, self.context.selection.text, self.context.batch_size),
            "foreseen_drop": foreseen_fall(before, after, self.config.decisions.target),
        }

    def council(self, answerer: Answerer) -> dict[str, dict[str, Any]]:
        """Evaluate the council on test questions of the levels in reach."""
        questions = spread(self.context.report.questions, self.config.decisions.council_questions, self.levels_in_reach)
        return measure_council(answerer, questions, self.config.decisions.answer_temperature, self.config.training.seed)

    def controller(self, model: Cognate, answerer: Answerer) -> Controller:
        """Return the OODA loop, with success rates estimated on validation questions of the levels in reach."""

        def look(questions: Sequence[Question]) -> list[Observation]:
            return observe(model, self.context.tokenizer, questions)

        controller = Controller(answerer, look, self.config.decisions, self.config.training.seed)
        controller.learn(
            spread(
                self.context.selection.questions, self.config.decisions.ooda_practice_questions, self.levels_in_reach
            )
        )
        return controller

    def ooda(self, controller: Controller) -> dict[str, dict[str, Any]]:
        """Evaluate the OODA loop on test questions of the levels in reach."""
        questions = spread(self.context.report.questions, self.config.decisions.ooda_questions, self.levels_in_reach)
        return measure_ooda(controller, questions)

    def heads(self, model: Cognate) -> dict[str, Tensor]:
        """Train the self-model, and control heads on shuffled ranges; return their tensors."""
        generator = step_generator(self.config.training.seed, -9_100_000)
        given = self.context.training.batch(self.config.mix, self.config.self_model.samples, GIVEN_TOKENS, generator)
        samples = draw_samples(model, given, self.config.self_model.tokens, generator)
        inputs = features(own_logits(model, samples), samples.tokens)
        head = train_self_model(inputs, samples.ranges, self.config.self_model, self.config.training.seed)
        tensors = self_model_tensors(head)
        for number in range(CONTROLS):
            ranges = shuffled(samples.ranges, self.config.training.seed + number)
            control = train_self_model(inputs, ranges, self.config.self_model, self.config.training.seed)
            tensors |= {f"control {number}/{name}": t for name, t in self_model_tensors(control).items()}
        return tensors

    def temperature(self, model: Cognate, heads: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
        """Evaluate all heads and the Bayes-optimal predictor on samples that continue held-out text."""
        generator = step_generator(self.config.training.seed, -9_200_000)
        inputs = self.context.report.text.inputs
        rows = torch.randint(len(inputs), (self.config.self_model.held_out, 1), generator=generator)
        places = torch.randint(inputs.shape[1] - GIVEN_TOKENS, (len(rows), 1), generator=generator)
        given = inputs[rows, places + torch.arange(GIVEN_TOKENS)]
        samples = draw_samples(model, given, self.config.self_model.tokens, generator)
        control = [
            {k.removeprefix(f"control {number}/"): t for k, t in heads.items() if k.startswith(f"control {number}/")}
            for number in range(CONTROLS)
        ]
        controls = [load_self_model(tensors) for tensors in control]
        return measure_self_model(load_self_model(heads), controls, own_logits(model, samples), samples)

    def levels(self, model: Cognate) -> dict[str, float]:
        """Return accuracy by level on test questions, of the parent and of the stored model."""
        before, after = self._answers(model, self.context.report.questions)
        return with_drop(level_metrics(before, after, self.config.decisions.target))

    def _answers(self, model: Cognate, questions: Sequence[Question]) -> tuple[Answered, Answered]:
        """Return the answers of the parent and of `model` to the same questions."""
        config = self.config
        return answer_both(
            self.parent,
            model,
            by_level(questions),
            config.decisions.questions_per_level,
            config.decisions.target,
            self.context.tokenizer,
            self.context.tools,
            config.decisions.answer_tokens,
        )


def with_drop(metrics: Mapping[str, float]) -> dict[str, float]:
    """Add the upper bound of the drop in accuracy over all levels: the negated lower bound of the gain."""
    return {**metrics, "level_accuracy_drop_high": -metrics["level_accuracy_gain_low"]}


def _refusal(validated: Mapping[str, float]) -> str:
    return (
        f"with the rules baked, bits per byte on validation text were {validated['text_ratio']:.4f} of the parent's "
        f"(at most {RULES_HARM.text_ratio}), and on other questions accuracy at the worst passed level may fall by up "
        f"to {validated['foreseen_drop']:.3f} (at most {RULES_HARM.accuracy_drop}). The model is the practised one, "
        "unchanged."
    )


def _baking_metrics(measures: Mapping[str, BakingMeasure]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, measure in measures.items():
        metrics |= {f"baking_kl_before_{name}": measure.kl_before, f"baking_kl_after_{name}": measure.kl_after}
        if (strength := _strength(measure)) is not None:
            metrics[f"baking_strength_{name}"] = strength
    return metrics


def _strength(measure: BakingMeasure) -> float | None:
    """Return the strength of a baking, or None if the prompt has no effect that could be baked."""
    return None if measure.kl_before < NO_EFFECT_NATS else measure.strength


def _rules_shown(
    measures: Mapping[str, BakingMeasure], preferences: Mapping[str, Mapping[str, Any]], handed_on: bool
) -> list[ShownRule]:
    """Return the rules of the exhibit; if the parent is handed on, their strength is 0."""
    return [
        ShownRule(
            name=rule.name,
            prompt=rule.prompt,
            kl_before=measures[rule.name].kl_before,
            kl_after=measures[rule.name].kl_before if handed_on else measures[rule.name].kl_after,
            strength=0.0 if handed_on else _strength(measures[rule.name]),
            **preferences[rule.name],
        )
        for rule in RULES
    ]
