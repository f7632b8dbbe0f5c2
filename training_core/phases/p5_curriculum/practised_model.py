"""The first half of phase 5: assess a ternary model, practise, consolidate, choose what to store, and evaluate it.

Choices (the edge, the arm of the consolidation that is kept) use validation questions. Reported numbers are measured
on test questions, which no choice has seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

from training_core.evaluation.harm import PRACTICE, text_ratio
from training_core.formats.ternary_packing import round_to_half_, ternary_product
from training_core.nn.cognate import Cognate
from training_core.nn.ternary_cognate import TernarySettings
from training_core.phases.p5_curriculum.config import CurriculumConfig
from training_core.phases.p5_curriculum.dreams import Consolidation, consolidate
from training_core.phases.p5_curriculum.practice import LevelStanding, Practice, PracticeResult
from training_core.phases.p5_curriculum.practice_report import practice_exhibit
from training_core.store.bundle import Product
from training_core.tasks.questions.assessment import Assessment
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.measurement import (
    Answered,
    answer_all,
    answer_both,
    assess_levels,
    by_level,
    first_questions,
    foreseen_fall,
    level_metrics,
    require_questions,
)
from training_core.training.device import best_device


def make_practised(
    parent: Cognate, settings: TernarySettings, context: QuestionContext, config: CurriculumConfig
) -> Product:
    """Practise with `parent`, a ternary model trained by straight-through estimation, and evaluate the result.

    The candidates are the model before consolidation and its three arms, provided that their bits per byte on
    validation text are at most 1.5 % above the parent's. The one with the highest accuracy on validation questions (of
    levels up to twice `focus_levels` beyond the edge) is stored, if the fall that is to be foreseen on the test
    questions of a level that the parent passes keeps within what the gate allows; else the next one. If there is none,
    the parent is stored instead (metric `handed_on` = 1).
    """
    parent.to(best_device()).eval()
    practice = Practice(copy.deepcopy(parent), context, config)
    validation = by_level(context.selection.questions)
    chosen_on = first_questions(validation, config.measured_questions)
    context.refuse_unless(partial(require_questions, number=config.measured_questions))
    assessment = assess_levels(
        parent, validation, config.assessment, context.tokenizer, context.tools, config.practice.max_tokens
    )
    standing = _standing(assessment, config)
    result = practice.run(standing)

    within_reach = {
        level: chosen_on[level] for level in chosen_on if level <= standing.edge() + 2 * config.practice.focus_levels
    }

    def answer(model: Cognate) -> Answered:
        return answer_all(model, within_reach, context.tokenizer, context.tools, config.practice.max_tokens)

    consolidation = consolidate(practice, result, standing, config, answer)

    target, tokens = config.assessment.target, config.practice.max_tokens

    @cache
    def of_parent() -> Answered:
        asked = config.measured_questions
        return answer_both(parent, parent, validation, asked, target, context.tokenizer, context.tools, tokens)[0]

    def fall(model: Cognate) -> float:
        """The worst accuracy drop to be foreseen at a level that the parent passes, from validation questions."""
        asked = {level: validation[level][: len(made)] for level, made in of_parent().attempts.items()}
        answered = answer_all(model, asked, context.tokenizer, context.tools, tokens)
        return foreseen_fall(of_parent(), answered, target)

    chosen, model = _choose(parent, practice.model, consolidation, context, fall)
    round_to_half_(model)  # round before evaluation, so that the evaluated weights are the stored ones
    context.fix(model)
    before, after = answer_both(
        parent,
        model,
        by_level(context.report.questions),
        config.measured_questions,
        config.assessment.target,
        context.tokenizer,
        context.tools,
        config.practice.max_tokens,
    )
    metrics = (
        level_metrics(before, after, config.assessment.target) | consolidation.metrics() | _practice_metrics(result)
    )
    metrics |= {"handed_on": float(chosen == "parent"), "assessed_edge": float(assessment.edge)}
    shown = practice_exhibit(before, after, context, result, consolidation, chosen, config.assessment.target)
    tokenizer_json = context.training.tokenizer_json
    return ternary_product(
        model.cpu(), settings, tokenizer_json, metrics=metrics, exhibits={"practice": shown.as_json()}
    )


def _standing(assessment: Assessment, config: CurriculumConfig) -> LevelStanding:
    return LevelStanding(
        {level.level: level.right for level in assessment.levels},
        {level.level: level.asked for level in assessment.levels},
        config.assessment.target,
    )


def _choose(
    parent: Cognate,
    practised: Cognate,
    consolidation: Consolidation,
    context: QuestionContext,
    fall: Callable[[Cognate], float],
) -> tuple[str, Cognate]:
    """Return the best candidate on validation questions that harms neither text nor passed levels, with its name, or
    the parent."""
    candidates = {"practised": (practised, consolidation.before)}
    candidates |= {arm.name: (arm.model, arm.answered) for arm in consolidation.arms.values()}
    harmless: dict[str, float] = {}
    for name, (model, answered) in candidates.items():
        ratio = text_ratio(model, parent, context.selection.text, context.batch_size)
        context.reporter.metrics(
            0, {f"candidate/{name}_accuracy": answered.mean(), f"candidate/{name}_bpb_ratio": ratio}
        )
        if not PRACTICE.exceeded(ratio):
            harmless[name] = answered.mean()
    for name in sorted(harmless, key=lambda name: harmless[name], reverse=True):
        drop = fall(candidates[name][0])
        context.reporter.metrics(0, {f"candidate/{name}_foreseen_fall": drop})
        if not PRACTICE.exceeded(1.0, drop):
            return name, candidates[name][0]
    return "parent", parent


def _practice_metrics(result: PracticeResult) -> dict[str, float]:
    attempts = [attempt for made in result.attempts for attempt in made]
    return {
        "practice_attempts": float(len(attempts)),
        "practice_right_alone": float(sum(a.right and a.hint == 0 for a in attempts)),
        "practice_right_completions": float(len(result.right())),
        "practice_tool_calls": float(sum(len(a.calls) for a in attempts)),
        "practice_retired": float(sum(r.retired for record in result.records for r in record.levels.values())),
        "practice_train_seconds": sum(training.seconds for training in result.training),
    }
