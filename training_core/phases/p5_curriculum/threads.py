"""The course of one question: tried alone, with more and more of a hint, in new variants, until it is retired.

    right without a hint    -> a variant (new numbers, new wording); retired after three in a row
    right with a hint       -> kept for learning without the hint; a variant, tried without a hint
    wrong                   -> the same question with the next hint; the last one shows everything

A hint with which hardly anything was right at this level in this round is skipped: it would be paid for in vain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from training_core.tasks.questions.attempts import SHOWN, Attempt
from training_core.tasks.questions.ladder import variant
from training_core.tasks.questions.question import Question, normalise_prompt

RETIRE_AFTER = 3
HOPELESS_RATE, HOPELESS_AFTER = 0.1, 16
_TRIES = 50  # variants drawn until one is new


@dataclass(slots=True)
class Thread:
    """A question on its way, and what became of it so far."""

    question: Question
    number: int
    hint: int = 0
    streak: int = 0
    variants: int = 0
    retired: bool = False


@dataclass(slots=True)
class LevelRecord:
    """What happened at one level in one round."""

    attempts: int = 0
    right_alone: int = 0
    tried_alone: int = 0
    right_with_hint: int = 0
    shown: int = 0
    retired: int = 0


@dataclass(slots=True)
class RoundRecord:
    """Attempts of one round by level, and how every hint fared there."""

    levels: dict[int, LevelRecord] = field(default_factory=dict)
    tried: Counter[tuple[int, int]] = field(default_factory=Counter)
    right: Counter[tuple[int, int]] = field(default_factory=Counter)

    def observe(self, attempt: Attempt) -> None:
        """Count one attempt."""
        level, hint = attempt.question.level, attempt.hint
        record = self.levels.setdefault(level, LevelRecord())
        self.tried[level, hint] += 1
        self.right[level, hint] += attempt.right
        record.attempts += 1
        record.tried_alone += hint == 0
        record.right_alone += attempt.right and hint == 0
        record.right_with_hint += attempt.right and 0 < hint < SHOWN
        record.shown += hint == SHOWN

    def alone(self) -> dict[int, tuple[int, int]]:
        """Right and asked without a hint, by level."""
        return {n: (seen.right_alone, seen.tried_alone) for n, seen in self.levels.items() if seen.tried_alone}

    def next_hint(self, level: int, hint: int) -> int:
        """`hint`, or the next one that is not hopeless at this level."""
        while hint < SHOWN:
            tried = self.tried[level, hint]
            if tried < HOPELESS_AFTER or self.right[level, hint] >= HOPELESS_RATE * tried:
                return hint
            hint += 1
        return hint


def open_threads(questions: Sequence[Question]) -> list[Thread]:
    """One thread for each question."""
    return [Thread(question, number) for number, question in enumerate(questions)]


@dataclass(slots=True)
class Used:
    """What a variant must not be: `prompts` that were used, and `contents` that are held out elsewhere."""

    prompts: set[str]
    contents: Container[str] = ()


def advance(thread: Thread, attempt: Attempt, record: RoundRecord, used: Used, seed: int) -> None:
    """Move a thread on by its attempt, which `record` has observed."""
    level = thread.question.level
    if not attempt.right:
        thread.streak, thread.hint = 0, record.next_hint(level, attempt.hint + 1)
        return
    thread.streak = thread.streak + 1 if attempt.hint == 0 else 0
    following = None if thread.streak == RETIRE_AFTER else _variant(thread, used, seed)
    if following is not None:
        thread.question = following
        thread.variants += 1
    elif attempt.hint == 0:  # three in a row, or there is no variant to confirm it on
        thread.retired = True
        record.levels[level].retired += 1
    thread.hint = record.next_hint(level, 0)


def _variant(thread: Thread, used: Used, seed: int) -> Question | None:
    """A fresh variant, or None where the question has none (or none that is new)."""
    base = seed + 1_000_003 * thread.number + 1009 * thread.variants
    for draw in range(_TRIES):
        question = variant(thread.question, base + draw, used.contents)
        if question is None:
            return None
        if (prompt := normalise_prompt(question.prompt)) not in used.prompts:
            used.prompts.add(prompt)
            return question
    return None
