"""The course of one question in a practice round: attempts with longer and longer hints, then on new variants.

    right without a hint    -> a variant (new numbers, new wording); retired after three in a row
    right with a hint       -> used for training without the hint; then a variant, attempted without a hint
    wrong                   -> the same question with the next longer hint; the last one shows the whole solution

A hint is skipped if almost no attempt with it was right at this level in this round, because further attempts with it
would waste compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from training_core.tasks.questions.attempts import SHOWN, Attempt
from training_core.tasks.questions.ladder import variant
from training_core.tasks.questions.question import Question, normalise_prompt
from training_core.world.config import WorldConfig

RETIRE_AFTER = 3
HOPELESS_RATE, HOPELESS_AFTER = 0.1, 16
_TRIES = 50  # most variants to draw in search of a new one


@dataclass(slots=True)
class Thread:
    """The current state of one question: its variant, its hint, and its streak of correct answers."""

    question: Question
    number: int
    hint: int = 0
    streak: int = 0
    variants: int = 0
    retired: bool = False


@dataclass(slots=True)
class LevelRecord:
    """Counts of attempts at one level in one round."""

    attempts: int = 0
    right_alone: int = 0
    tried_alone: int = 0
    right_with_hint: int = 0
    shown: int = 0
    retired: int = 0


@dataclass(slots=True)
class RoundRecord:
    """Counts of one round's attempts by level, and of trials and successes by (level, hint)."""

    levels: dict[int, LevelRecord] = field(default_factory=dict)
    tried: Counter[tuple[int, int]] = field(default_factory=Counter)
    right: Counter[tuple[int, int]] = field(default_factory=Counter)

    def observe(self, attempt: Attempt) -> None:
        """Add one attempt to the counts."""
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
        """Return (right, asked) of attempts without a hint, by level."""
        return {n: (seen.right_alone, seen.tried_alone) for n, seen in self.levels.items() if seen.tried_alone}

    def next_hint(self, level: int, hint: int) -> int:
        """Return `hint`, or the next longer one that is not hopeless at this level."""
        while hint < SHOWN:
            tried = self.tried[level, hint]
            if tried < HOPELESS_AFTER or self.right[level, hint] >= HOPELESS_RATE * tried:
                return hint
            hint += 1
        return hint


def open_threads(questions: Sequence[Question]) -> list[Thread]:
    """Return one thread per question."""
    return [Thread(question, number) for number, question in enumerate(questions)]


@dataclass(slots=True)
class Used:
    """Questions that a variant must avoid: `prompts` already used, and `contents` held out elsewhere.

    world: settings of the world from which variants of questions about it are made.
    """

    prompts: set[str]
    contents: Container[str] = ()
    world: WorldConfig | None = None


def advance(thread: Thread, attempt: Attempt, record: RoundRecord, used: Used, seed: int) -> None:
    """Update a thread after its attempt, which `record` must already have observed."""
    level = thread.question.level
    if not attempt.right:
        thread.streak, thread.hint = 0, record.next_hint(level, attempt.hint + 1)
        return
    thread.streak = thread.streak + 1 if attempt.hint == 0 else 0
    following = None if thread.streak == RETIRE_AFTER else _variant(thread, used, seed)
    if following is not None:
        thread.question = following
        thread.variants += 1
    elif attempt.hint == 0:  # three in a row, or no variant is left to confirm it on
        thread.retired = True
        record.levels[level].retired += 1
    thread.hint = record.next_hint(level, 0)


def _variant(thread: Thread, used: Used, seed: int) -> Question | None:
    """Draw an unused variant of the question, or return None if there is none."""
    base = seed + 1_000_003 * thread.number + 1009 * thread.variants
    for draw in range(_TRIES):
        question = variant(thread.question, base + draw, used.contents, used.world)
        if question is None:
            return None
        if (prompt := normalise_prompt(question.prompt)) not in used.prompts:
            used.prompts.add(prompt)
            return question
    return None
