"""Accuracy by level on held-out questions, and paired comparisons of two models on the same questions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.evaluation.intervals import Z95, paired_difference, wilson
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.record import Estimate
from training_core.tasks.questions.assessment import Assessment, AssessmentConfig, find_edge, isotonic_decreasing
from training_core.tasks.questions.attempts import Answerer, Attempt
from training_core.tasks.questions.ladder import in_new_wording
from training_core.tasks.questions.question import LEVELS, Question
from training_core.tasks.questions.tools import ToolBox


@dataclass(frozen=True, slots=True)
class Answered:
    """Greedy attempts of one model at the questions of each level, without hints."""

    attempts: Mapping[int, tuple[Attempt, ...]]

    def right(self, level: int) -> Tensor:
        """Return 1.0 where the answer was right, else 0.0: (questions,) float64."""
        return torch.tensor([float(attempt.right) for attempt in self.attempts[level]], dtype=torch.float64)

    def accuracy(self, level: int) -> Estimate:
        """Return the share of right answers, with a Wilson interval."""
        right = self.right(level)
        return wilson(int(right.sum()), len(right))

    def edge(self, target: float) -> int:
        """Return the hardest level whose isotonic accuracy reaches `target`; 0 when none does."""
        levels = sorted(self.attempts)
        counts = [int(self.right(level).sum()) for level in levels]
        fitted = isotonic_decreasing(counts, [len(self.attempts[level]) for level in levels])
        return max((level for level, p in zip(levels, fitted, strict=True) if p >= target), default=0)

    def mean(self) -> float:
        """Return the mean accuracy over levels, equally weighted."""
        return sum(float(self.right(level).mean()) for level in self.attempts) / len(self.attempts)


def answer_all(
    model: Cognate, questions: Mapping[int, Sequence[Question]], tokenizer: Tokenizer, tools: ToolBox, max_tokens: int
) -> Answered:
    """Answer every question once by greedy decoding, all levels in one batch."""
    answerer = Answerer(inference_copy(model), tokenizer, tools, max_tokens)
    flat = [question for level in questions for question in questions[level]]
    attempts = iter(answerer.attempt(flat, torch.Generator()))
    return Answered({level: tuple(next(attempts) for _ in questions[level]) for level in questions})


def answer_both(
    before: Cognate,
    after: Cognate,
    questions: Mapping[int, Sequence[Question]],
    measured: int,
    target: float,
    tokenizer: Tokenizer,
    tools: ToolBox,
    max_tokens: int,
) -> tuple[Answered, Answered]:
    """Return both models' answers to the first `measured` questions of every level, and to all questions of the levels
    at which `before` reaches `target` on these.

    Raises:
        ValueError: when a level has fewer questions.
    """
    asked = dict(first_questions(questions, measured))
    first = answer_all(before, asked, tokenizer, tools, max_tokens)
    # A drop of a few points at a passed level decides a gate; it takes all questions to resolve it.
    more = {level: questions[level] for level in asked if first.accuracy(level).value >= target}
    known = dict(first.attempts)
    if more:
        known |= answer_all(before, more, tokenizer, tools, max_tokens).attempts
    if after is before:
        return Answered(known), Answered(known)
    return Answered(known), answer_all(after, asked | more, tokenizer, tools, max_tokens)


def first_questions(questions: Mapping[int, Sequence[Question]], number: int) -> dict[int, Sequence[Question]]:
    """Return the first `number` questions of every level.

    Raises:
        ValueError: when a level has fewer.
    """
    for level, available in questions.items():
        if len(available) < number:
            raise ValueError(
                f"level {level} has {len(available)} held-out questions and {number} are to be measured: lower "
                "measured_questions or questions_per_level, or materialize the question bank with a larger "
                "held_out_per_level"
            )
    return {level: available[:number] for level, available in questions.items()}


def require_questions(questions: Sequence[Question], number: int) -> None:
    """Check that there are enough held-out questions at every level.

    Raises:
        ValueError: when a level has fewer than `number`.
    """
    first_questions(by_level(questions), number)


def difference(before: Answered, after: Answered, level: int) -> Estimate:
    """Return the change of accuracy at a level (`after` minus `before`), paired by question."""
    return mean_difference(before, after, [level])


def mean_difference(before: Answered, after: Answered, levels: Sequence[int]) -> Estimate:
    """Return the change of accuracy (`after` minus `before`) averaged over levels with equal weights, paired by
    question (Tango, 1998).

    Attempts that are equal in every log-probability are those of one model; it differs from itself by exactly 0.
    """
    if all(before.attempts[level] == after.attempts[level] for level in levels):
        return Estimate(0.0, 0.0, 0.0)
    right, other, weights = _paired(before, after, levels)
    return paired_difference(right, other, weights)


def _paired(before: Answered, after: Answered, levels: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Outcomes after and before, and weights with which all levels count the same, all (questions,) float64."""
    right, other = (torch.cat([answered.right(level) for level in levels]) for answered in (after, before))
    return right, other, torch.cat([torch.full_like(one, 1 / len(one)) for one in map(before.right, levels)])


def assess_levels(
    model: Cognate,
    questions: Mapping[int, Sequence[Question]],
    config: AssessmentConfig,
    tokenizer: Tokenizer,
    tools: ToolBox,
    max_tokens: int,
) -> Assessment:
    """Locate the model's edge, with questions of every level taken in the order given and none asked twice.

    Raises:
        ValueError: when a level has fewer questions than may be asked.
    """
    for level in LEVELS:
        if (available := len(questions.get(level, ()))) < config.most_questions:
            raise ValueError(
                f"level {level} has {available} questions for assessment, and up to {config.most_questions} may be "
                "asked: lower most_questions, or materialize the question bank with a larger held_out_per_level"
            )
    first = {level: questions[level][: config.first_questions] for level in LEVELS}
    known = {  # the first questions of all levels, which are always asked, in one batch
        level: [attempt.right for attempt in attempts]
        for level, attempts in answer_all(model, first, tokenizer, tools, max_tokens).attempts.items()
    }
    answerer = Answerer(inference_copy(model), tokenizer, tools, max_tokens)
    used = dict.fromkeys(LEVELS, 0)

    def ask(level: int, count: int) -> int:
        start, end = used[level], used[level] + count
        used[level] = end
        if end > len(known[level]):
            more = questions[level][len(known[level]) : end]
            known[level] += [attempt.right for attempt in answerer.attempt(more, torch.Generator())]
        return sum(known[level][start:end])

    return find_edge(ask, len(LEVELS), config)


def by_level(questions: Sequence[Question]) -> dict[int, list[Question]]:
    """Group questions by level, keeping their order; every level has an entry."""
    groups: dict[int, list[Question]] = {level: [] for level in LEVELS}
    for question in questions:
        groups[question.level].append(question)
    return groups


def level_metrics(before: Answered, after: Answered, target: float) -> dict[str, float]:
    """Return accuracy by level before and after, the edge, the mean gain over all levels, and the worst drop.

    `worst_passed_level_drop_high` is `worst_fall`. Over all levels, the accuracy in wordings that training never has
    stands beside that in the others.
    """
    metrics: dict[str, float] = {}
    for level in before.attempts:
        metrics |= before.accuracy(level).metrics(f"level_{level}_accuracy_before")
        metrics |= after.accuracy(level).metrics(f"level_{level}_accuracy")
    for suffix, answered in (("_before", before), ("", after)):
        metrics |= _wording_metrics(answered, suffix)
    passed = [level for level in before.attempts if before.accuracy(level).value >= target]
    metrics |= mean_difference(before, after, list(before.attempts)).metrics("level_accuracy_gain")
    return metrics | {
        "level_accuracy_before": before.mean(),
        "level_accuracy": after.mean(),
        "edge_before": float(before.edge(target)),
        "edge": float(after.edge(target)),
        "edge_gain": float(after.edge(target) - before.edge(target)),
        "num_passed_levels": float(len(passed)),
        "worst_passed_level_drop_high": worst_fall(before, after, target),
    }


def _wording_metrics(answered: Answered, suffix: str) -> dict[str, float]:
    right: dict[str, list[bool]] = {"known": [], "new": []}
    for attempts in answered.attempts.values():
        for attempt in attempts:
            right["new" if in_new_wording(attempt.question) else "known"].append(attempt.right)
    metrics: dict[str, float] = {}
    for name, marks in right.items():
        if marks:
            metrics |= wilson(sum(marks), len(marks)).metrics(f"{name}_wordings_accuracy{suffix}")
    return metrics


def worst_fall(before: Answered, after: Answered, target: float) -> float:
    """Return the largest upper bound of the paired 95 % intervals of the accuracy drop (`before` minus `after`), over
    the levels at which `before` reaches the target.

    If `before` passes no level, the upper bound of the mean drop over all levels is returned instead: on single levels
    a lucky answer would decide.
    """
    return max(mean_difference(after, before, levels).high for levels in _judged_together(before, target))


def foreseen_fall(before: Answered, after: Answered, target: float) -> float:
    """Return a bound that `worst_fall` exceeds on equally many other questions in about one case of twenty.

    Use it to select on the validation set when the test set judges. Two independent estimates of a drop d differ with
    a standard deviation of sqrt(2) SE, so the upper bound on the other set, as far above its d as it is here, stays
    below high + 1.96 sqrt(2) SE; estimating SE from these questions costs another few percent.
    """
    return max(
        mean_difference(after, before, levels).high + Z95 * math.sqrt(2) * _standard_error(before, after, levels)
        for levels in _judged_together(before, target)
    )


def _standard_error(before: Answered, after: Answered, levels: Sequence[int]) -> float:
    """The standard error of `mean_difference`, from the variance of the differences within each level."""
    changes = [after.right(level) - before.right(level) for level in levels]
    return math.sqrt(sum(float(change.var(correction=0)) / len(change) for change in changes)) / len(levels)


def _judged_together(before: Answered, target: float) -> list[list[int]]:
    """Each passed level by itself, or all levels if none is passed."""
    levels = list(before.attempts)
    return [[level] for level in levels if before.accuracy(level).value >= target] or [levels]


def spread(questions: Sequence[Question], number: int, levels: Iterable[int]) -> list[Question]:
    """Return the first `number` questions of the given levels, taken from each level in turn."""
    groups = by_level(questions)
    turns = zip_longest(*(groups[level] for level in levels))
    return [question for turn in turns for question in turn if question is not None][:number]
