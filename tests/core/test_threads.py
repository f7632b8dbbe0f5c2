"""The course of a question by hand: hints on failure, variants on success, retirement, hopeless hints; the edge."""

from __future__ import annotations

from itertools import pairwise

from training_core.phases.p5_curriculum.practice import LevelStanding
from training_core.phases.p5_curriculum.threads import RoundRecord, Thread, Used, advance, open_threads
from training_core.tasks.questions.attempts import SHOWN, Attempt
from training_core.tasks.questions.ladder import cells, content_of, make, split_of
from training_core.tasks.questions.question import Question


def train_question(level: int = 1) -> Question:
    cell = cells(level)[0]
    return next(q for q in (make(cell, seed) for seed in range(100)) if split_of(q) == "train")


def attempt(question: Question, hint: int, right: bool) -> Attempt:
    return Attempt(question, (1,), (2,), ("own",), (-1.0,), hint, "", "x", "x", right, ())


def move(thread: Thread, right: bool, record: RoundRecord, used: Used) -> None:
    made = attempt(thread.question, thread.hint, right)
    record.observe(made)
    advance(thread, made, record, used, seed=5)


def test_failures_climb_the_hints_and_a_hinted_success_is_confirmed_on_a_variant() -> None:
    question = train_question()
    (thread,), record, used = open_threads([question]), RoundRecord(), Used({question.prompt})
    for hint in (1, 2, 3):
        move(thread, False, record, used)
        assert (thread.hint, thread.question) == (hint, question)
    move(thread, True, record, used)  # shown in full
    assert thread.hint == 0
    assert thread.streak == 0
    assert content_of(thread.question) != content_of(question)
    assert record.levels[1].shown == 1
    assert record.levels[1].right_with_hint == 0
    assert record.alone() == {1: (0, 1)}


def test_three_in_a_row_on_fresh_variants_retire_a_question() -> None:
    question = train_question()
    (thread,), record, used = open_threads([question]), RoundRecord(), Used({question.prompt})
    met = [question]
    for _ in range(2):
        move(thread, True, record, used)
        met.append(thread.question)
        assert not thread.retired
    move(thread, False, record, used)
    assert (thread.streak, thread.hint) == (0, 1)
    move(thread, True, record, used)  # with a hint: does not count
    assert (thread.streak, thread.hint) == (0, 0)
    for _ in range(2):
        move(thread, True, record, used)
        assert not thread.retired
    move(thread, True, record, used)
    assert thread.retired
    assert record.levels[1].retired == 1
    assert len({q.prompt for q in met}) == 3
    assert all(split_of(q) == "train" for q in met)
    assert all(a.prompt.split(":")[0] != b.prompt.split(":")[0] for a, b in pairwise(met)), "reworded"


def test_variants_avoid_contents_that_are_held_out_elsewhere() -> None:
    question = train_question()
    (free,), (bound,) = open_threads([question]), open_threads([question])
    used = Used({question.prompt})
    move(free, True, RoundRecord(), used)
    move(bound, True, RoundRecord(), Used({question.prompt}, {content_of(free.question)}))
    assert content_of(bound.question) not in (content_of(free.question), content_of(question))
    (stuck,) = open_threads([question])
    everything = RoundRecord()
    move(stuck, True, everything, Used({question.prompt}, Everything()))
    assert stuck.retired, "there is no variant left to confirm it on"


class Everything:
    def __contains__(self, content: object) -> bool:
        return True


def test_a_hint_with_which_nothing_was_right_is_skipped() -> None:
    question, record = train_question(), RoundRecord()
    for hint in (0, 1):
        for _ in range(16):
            record.observe(attempt(question, hint, False))
    assert record.next_hint(1, 0) == 2
    record.observe(attempt(question, 2, True))
    assert record.next_hint(1, 0) == 2
    for _ in range(3):
        record.observe(attempt(question, 0, True))
    assert record.next_hint(1, 0) == 0, "3 of 19 are more than a tenth"
    for _ in range(20):
        record.observe(attempt(question, 2, False))
    assert record.next_hint(1, 1) == SHOWN
    assert record.next_hint(2, 0) == 0, "another level has its own record"


def test_edge_and_focus_by_hand() -> None:
    standing = LevelStanding({1: 9, 2: 8, 3: 2, 4: 3, 5: 0}, {n: 10 for n in range(1, 6)}, 0.75)
    assert standing.edge() == 2
    assert standing.focus(3) == [3, 4, 5]
    standing.update({3: (40, 40), 1: (30, 40)})
    assert standing.edge() == 3, "levels 1 to 3 pool to 78 of 90: isotonic accuracies do not rise with the level"
    assert standing.focus(1) == [4]
    everything = LevelStanding({n: 10 for n in range(1, 11)}, {n: 10 for n in range(1, 11)}, 0.75)
    assert everything.edge() == 10
    assert everything.focus(3) == [8, 9, 10]
    assert LevelStanding({1: 1}, {1: 10}, 0.75).focus(2) == [1, 2]
