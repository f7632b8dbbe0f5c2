"""Building of the exhibit `practice` from the practice rounds and the measurements."""

from __future__ import annotations

from collections.abc import Sequence

from training_core.exhibit import MeasuredShare, MeasuredValue, ShownCall
from training_core.phases.p5_curriculum.dreams import Consolidation
from training_core.phases.p5_curriculum.exhibit import (
    Forgetting,
    LevelResult,
    PracticeExhibit,
    QuestionSpend,
    RehearsalArm,
    RoundLevel,
    ShownAttempt,
    ShownQuestion,
    ShownRound,
    StageAccuracy,
)
from training_core.phases.p5_curriculum.practice import PracticeResult
from training_core.phases.p5_curriculum.threads import RoundRecord
from training_core.tasks.questions.attempts import SHOWN, Attempt
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.measurement import Answered
from training_core.tasks.questions.question import Question

SHOWN_QUESTIONS, SHOWN_ATTEMPTS = 2, 24  # per level; in total


def practice_exhibit(
    before: Answered,
    after: Answered,
    context: QuestionContext,
    result: PracticeResult,
    consolidation: Consolidation,
    chosen: str,
    target: float,
) -> PracticeExhibit:
    """Return the complete exhibit: accuracy by level, questions, attempts, rounds, forgetting and spend."""
    levels = sorted(before.attempts)
    return PracticeExhibit(
        target=target,
        edge_before=before.edge(target),
        edge_after=after.edge(target),
        levels=[
            LevelResult(
                level=level,
                families=sorted({attempt.question.family for attempt in before.attempts[level]}),
                before=MeasuredShare.of(before.accuracy(level)),
                after=MeasuredShare.of(after.accuracy(level)),
                asked=len(before.attempts[level]),
            )
            for level in levels
        ],
        questions=[_question(question) for level in levels for question in _some(context.train_questions, level)],
        attempts=[_attempt(attempt) for attempt in _telling(result)],
        rounds=[ShownRound(round=n, levels=_round(record)) for n, record in enumerate(result.records, 1)],
        forgetting=_forgetting(consolidation, chosen),
        spend=QuestionSpend(
            usd=context.spent_usd,
            frontier_questions=sum(q.provenance.source == "frontier" for q in context.train_questions),
            generator_questions=sum(q.provenance.source == "generator" for q in context.train_questions),
            note=context.note,
        ),
    )


def _forgetting(consolidation: Consolidation, chosen: str) -> Forgetting:
    compared = sorted(consolidation.before.attempts)
    arms = consolidation.arms.values()
    return Forgetting(
        levels=compared,
        stages=[
            StageAccuracy(name="before consolidation", accuracy=_accuracies(consolidation.before, compared)),
            *(
                StageAccuracy(name=f"next level, {arm.name}", accuracy=_accuracies(arm.answered, compared))
                for arm in arms
            ),
        ],
        arms=[
            RehearsalArm(
                name=arm.name,
                accuracy=_accuracies(arm.answered, compared),
                forgetting=MeasuredValue.of(arm.forgetting),
                tokens=arm.rehearsed_tokens,
            )
            for arm in arms
        ],
        chosen=chosen,
    )


def _accuracies(answered: Answered, levels: Sequence[int]) -> list[float]:
    return [float(answered.right(level).mean()) for level in levels]


def _some(questions: Sequence[Question], level: int) -> list[Question]:
    """Return a few questions of a level, each from a different family."""
    candidates = [question for question in questions if question.level == level]
    by_family = {question.family: question for question in reversed(candidates)}  # the first of each family wins
    return list(by_family.values())[:SHOWN_QUESTIONS]


def _question(question: Question) -> ShownQuestion:
    return ShownQuestion(
        level=question.level,
        family=question.family,
        prompt=question.prompt,
        answer=question.answer,
        solution=question.solution,
        check=question.check,
        source=question.provenance.name,
    )


def _telling(result: PracticeResult) -> list[Attempt]:
    """Return examples of every kind of attempt from every round.

    Kinds are attempts with tool calls, without a hint (right and wrong), with a hint, and with the solution shown.
    """
    kinds: dict[tuple[int, str], list[Attempt]] = {}
    for number, made in enumerate(result.attempts):
        for attempt in made:
            kinds.setdefault((number, _kind(attempt)), []).append(attempt)
    share = max(1, SHOWN_ATTEMPTS // max(1, len(kinds)))
    return [attempt for kind in sorted(kinds) for attempt in kinds[kind][:share]][:SHOWN_ATTEMPTS]


def _kind(attempt: Attempt) -> str:
    if attempt.calls:
        return "tool"
    if attempt.hint == SHOWN:
        return "shown"
    return ("hinted " if attempt.hint else "alone ") + ("right" if attempt.right else "wrong")


def _attempt(attempt: Attempt) -> ShownAttempt:
    return ShownAttempt(
        level=attempt.question.level,
        prompt=attempt.question.prompt,
        hint=attempt.hint,
        given=attempt.given,
        written=attempt.text[len(attempt.given) :],
        calls=[
            ShownCall(tool=call.tool, input=call.input, output=call.output, status=call.status)
            for call in attempt.calls
        ],
        answer=attempt.answer,
        expected=attempt.question.answer,
        right=attempt.right,
    )


def _round(record: RoundRecord) -> list[RoundLevel]:
    return [
        RoundLevel(
            level=level,
            attempts=seen.attempts,
            right_alone=seen.right_alone,
            right_with_hint=seen.right_with_hint,
            shown=seen.shown,
            retired=seen.retired,
        )
        for level, seen in sorted(record.levels.items())
    ]
