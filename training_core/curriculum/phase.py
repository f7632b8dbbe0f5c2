"""Phase 5, first half, from a ternary model to what is stored: assess, practise, consolidate, measure.

Choices (where the edge is, which arm of the consolidation is kept) are made on validation questions; what is printed
was measured on test questions, which nothing before has seen.
"""

from __future__ import annotations

import copy
from pathlib import Path

from training_core.curriculum.dreams import Consolidation, CurriculumConfig, consolidate
from training_core.curriculum.exhibits import practice_exhibit
from training_core.curriculum.practice import Practice, PracticeResult, Standing
from training_core.data.batches import TrainingData
from training_core.evaluation.held_out import Suite
from training_core.evaluation.intervals import rate
from training_core.evaluation.language_modeling import measure_windows
from training_core.models.cognate import Cognate
from training_core.phases import Product
from training_core.quantization.ternary import inference_copy
from training_core.quantization.training import TernarySettings, ternary_product
from training_core.questions.assessment import Assessment
from training_core.questions.bank import QuestionBank
from training_core.questions.measurement import (
    Answered,
    answer_all,
    answer_both,
    assess_levels,
    by_level,
    first_questions,
    level_metrics,
)
from training_core.questions.tools import ToolBox
from training_core.training.device import best_device
from training_core.training.reporting import Reporter

HARM = 1.015  # bits per byte on validation documents over the parent's; a candidate beyond is not kept


def make_practised(
    parent: Cognate,
    settings: TernarySettings,
    config: CurriculumConfig,
    data: TrainingData,
    bank: QuestionBank,
    tools: ToolBox,
    suite: Suite,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> Product:
    """Practise with a straight-through ternary `parent` and measure what came of it.

    Of the model before the consolidation and its three arms the one with the highest accuracy on validation questions
    (of the levels up to twice `focus_levels` beyond the edge) is kept, among those whose bits per byte on validation
    text are at most 1.5 % above the parent's; where none is, the parent is handed on (metric `handed_on` = 1).
    """
    parent.to(best_device()).eval()
    practice = Practice(copy.deepcopy(parent), config, data, bank, tools, reporter, checkpoint)
    validation, test = by_level(bank.validation), by_level(bank.test)
    chosen_on = first_questions(validation, config.measured_questions)
    first_questions(test, config.measured_questions)  # refused before anything is trained
    assessment = assess_levels(parent, validation, config, practice.tokenizer, tools, config.max_tokens)
    standing = _standing(assessment, config)
    result = practice.run(standing)

    within_reach = {
        level: chosen_on[level] for level in chosen_on if level <= standing.edge() + 2 * config.focus_levels
    }

    def answer(model: Cognate) -> Answered:
        return answer_all(model, within_reach, practice.tokenizer, tools, config.max_tokens)

    consolidation = consolidate(practice, result, standing, config, answer)
    chosen, model = _choose(parent, practice.model, consolidation, suite, reporter)
    before, after = answer_both(
        parent,
        model,
        test,
        config.measured_questions,
        config.target,
        practice.tokenizer,
        tools,
        config.max_tokens,
    )
    metrics = level_metrics(before, after, config.target) | consolidation.metrics() | _practice_metrics(result)
    metrics |= {"handed_on": float(chosen == "parent"), "assessed_edge": float(assessment.edge)}
    shown = practice_exhibit(before, after, bank, result, consolidation, chosen, config.target)
    return ternary_product(model.cpu(), settings, data.tokenizer_json, metrics=metrics, exhibits={"practice": shown})


def _standing(assessment: Assessment, config: CurriculumConfig) -> Standing:
    return Standing(
        {level.level: level.right for level in assessment.levels},
        {level.level: level.asked for level in assessment.levels},
        config.target,
    )


def _choose(
    parent: Cognate, practised: Cognate, consolidation: Consolidation, suite: Suite, reporter: Reporter
) -> tuple[str, Cognate]:
    """The best candidate on validation questions that does no harm to text, and its name; else the parent."""
    batch_size = suite.config.batch_size
    text = measure_windows(parent, suite.validation, batch_size).nats
    candidates = {"practised": (practised, consolidation.before)}
    candidates |= {arm.name: (arm.model, arm.answered) for arm in consolidation.arms.values()}
    harmless: dict[str, float] = {}
    for name, (model, answered) in candidates.items():
        ratio = rate(measure_windows(inference_copy(model), suite.validation, batch_size).nats, text).value
        reporter.metrics(0, {f"candidate/{name}_accuracy": answered.mean(), f"candidate/{name}_bpb_ratio": ratio})
        if ratio <= HARM:
            harmless[name] = answered.mean()
    if not harmless:
        return "parent", parent
    chosen = max(harmless, key=lambda name: harmless[name])
    return chosen, candidates[chosen][0]


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
