"""Stories worked out by hand: what is possible, what contradicts, what follows, and from which events."""

from __future__ import annotations

import random

import pytest

from training_core.world.answers import FAMILIES, answer, propose, solution
from training_core.world.checker import check_document, check_story, shares, true_answer
from training_core.world.config import WorldConfig
from training_core.world.documents import document
from training_core.world.effects import apply
from training_core.world.grammar import QUESTIONS
from training_core.world.parse import sentences
from training_core.world.rules import judge
from training_core.world.state import Event, State


def told(*lines: str) -> tuple[State, list[Event]]:
    """The state after events written as "kind word word ..."; each of them must be possible."""
    state, events = State(), []
    for line in lines:
        kind, *args = line.split()
        event = Event(kind, tuple(args))
        assert judge(state, event).possible is True, judge(state, event).reason
        apply(state, event)
        events.append(event)
    return state, events


def possible(state: State, line: str) -> bool | None:
    kind, *args = line.split()
    return judge(state, Event(kind, tuple(args))).possible


def solved(state: State, line: str) -> tuple[str, tuple[int, ...]] | None:
    kind, *args = line.split()
    found = answer(state, Event(kind, tuple(args)))
    return None if found is None else (found.word, found.support)


MOVES = ("be Tom hall", "be Anna park", "have Tom ball", "inside ring box", "lies box park")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("be Tom hall", True), ("be Tom park", False), ("go Tom hall", False), ("go Tom park", True),
        ("take Tom ball", False), ("take Anna ball", False), ("drop Tom ball", True), ("drop Anna ball", False),
        ("give Tom ball Anna", False), ("take Anna box", True), ("take Tom box", False), ("take Anna ring", False),
        ("take_out Anna ring box", True), ("take_out Tom ring box", False), ("take Anna kite", None),
        ("put Tom ball box", False), ("find Anna box", False), ("have Anna ball", False), ("have Tom ball", True),
        ("have_not Anna ball", True), ("have_not Tom ball", False), ("be_not Tom hall", False),
        ("greet Tom Anna", False), ("greet Tom Mia", None), ("eat Tom apple", None), ("feel Tom full", None),
        ("wake Tom", False), ("open Tom box", False), ("thank Tom Anna", False), ("want Tom ball", False),
        ("lies ball hall", False), ("tell Tom ring park", True), ("tell Tom ring hall", False),
        ("tell_owner Anna Tom ball", True),
        ("sad_lost Tom ball", False), ("inside box ring", False), ("wash Tom", None),
    ],
)  # fmt: skip
def test_what_can_happen(line: str, expected: bool | None) -> None:
    assert possible(told(*MOVES)[0], line) is expected


def test_the_rest_of_the_rules() -> None:
    state, _ = told("time night", "be Tom hall", "be Anna hall", "feel Tom tired", "sleep Tom")
    assert [possible(state, line) for line in ("go Tom park", "greet Anna Tom", "wake Tom", "time evening")] == [
        False
    ] * 4
    state, _ = told("time evening", "time night", "time morning", "be Tom hall", "near hall park", "near park mill")
    assert [possible(state, line) for line in ("go Tom park", "go Tom mill")] == [True, False]
    state, _ = told("looks ball red", "looks_not cup blue", "bigger cup ball", "bigger box cup")
    wrong = ("looks ball blue", "looks cup blue", "bigger ball box", "bigger ball ball", "looks_not ball red")
    assert [possible(state, line) for line in wrong] == [False] * 5
    state, _ = told("be Tom hall", "lies box hall", "inside ring box", "locked box", "lies key hall")
    assert possible(state, "take_out Tom ring box") is False
    apply(state, Event("take", ("Tom", "key")))
    apply(state, Event("open", ("Tom", "box")))
    assert possible(state, "take_out Tom ring box") is True
    assert possible(state, "open Tom box") is False
    with pytest.raises(ValueError, match="unknown kind of event 'fly'"):
        possible(state, "fly Tom")


def test_whereabouts_follow_the_chain_and_name_their_support() -> None:
    lines = ["be Tom hall", "inside ring box", "inside box bag", "have Tom bag", "go Tom park"]
    state, events = told(*lines)
    assert solved(state, "place_of ring") == ("park", (1, 2, 3, 4))
    assert solved(state, "where_thing ring") is None  # it is in a box, which is an answer too
    assert solved(state, "where_thing bag") == ("park", (3, 4))
    assert solved(state, "who_has ring") == ("Tom", (1, 2, 3))
    assert solved(state, "before Tom park") == ("hall", (0, 4))
    assert solved(state, "after Tom hall") == ("park", (0, 4))
    assert solved(state, "is_place ring hall") == ("no", (1, 2, 3, 4))
    apply(state, Event("drop", ("Tom", "bag")))
    apply(state, Event("go", ("Tom", "hall")))
    assert solved(state, "place_of ring") == ("park", (1, 2, 4, 5))
    assert solved(state, "who_has ring") is None
    assert solved(state, "where Tom") == ("hall", (6,))
    found = answer(state, Event("place_of", ("ring",)))
    events += [Event("drop", ("Tom", "bag")), Event("go", ("Tom", "hall"))]
    assert found is not None
    assert solution(events, found) == (
        "The ring was in the box. The box was in the bag. Tom went to the park. Tom put down the bag."
    )
    assert (found.sentence, found.candidates, found.hops) == ("The ring is in the park.", ("hall", "park"), 4)


def test_amounts() -> None:
    state, events = told(
        "be Tom hall", "be Anna hall", "have_some Tom five apple", "give_some Tom two apple Anna", "eat Tom apple",
        "eat Anna apple", "find_some Tom three apple", "there_are six pear hall", "take_some Anna four pear",
    )  # fmt: skip
    assert solved(state, "how_many Tom apple") == ("five", (2, 3, 4, 6))
    assert solved(state, "how_many Anna apple") == ("one", (3, 5))
    assert solved(state, "how_many Anna pear") == ("four", (8,))
    assert state.amounts["hall", "pear"].value == 2
    assert possible(state, "eat Mia apple") is None
    assert possible(state, "lose_some Tom six apple") is False
    assert possible(state, "find_some Tom six apple") is False  # there is no word for eleven
    found = answer(state, Event("how_many", ("Tom", "apple")))
    assert found is not None
    assert solution(events, found) == (
        "Tom had five apples. Tom gave Anna two apples. Tom ate an apple. Tom found three apples. "
        "Five minus two is three. Three minus one is two. Two plus three is five."
    )


def test_causes() -> None:
    state, _ = told("be Tom hall", "have Tom ball", "lose Tom ball", "feel Tom sad", "be Anna hall", "find Anna ball")
    assert solved(state, "why Tom sad") == ("he lost the ball", (2, 3))
    apply(state, Event("give", ("Anna", "ball", "Tom")))
    assert solved(state, "why Tom glad") == ("Anna gave him the ball", (6,))
    assert solved(state, "why Tom sad") is None
    assert solved(state, "had_before ball Anna") == ("Tom", (1, 5))
    assert solved(state, "had_after ball Tom") is None  # he had it twice
    assert possible(state, "thank Tom Anna") is True
    state, _ = told("want Anna cup", "lies cup park", "be Anna hall", "go Anna park")
    assert solved(state, "why_go Anna park") == ("she wanted the cup", (0, 1, 3))
    state, _ = told("fall Tom", "feel Tom dirty")
    assert solved(state, "why Tom dirty") == ("he fell in the mud", (0, 1))


def test_comparisons_lists_paths_and_negation() -> None:
    state, _ = told("bigger cup ring", "bigger box cup", "bigger bag box", "near hall park", "near park mill")
    assert solved(state, "bigger ring bag") == ("bag", (0, 1, 2))
    assert solved(state, "smaller bag ring") == ("ring", (0, 1, 2))
    assert solved(state, "bigger ring ball") is None
    assert solved(state, "between mill hall") == ("park", (3, 4))
    state, _ = told(
        "be Tom hall", "have Anna ball", "be Anna hall", "have Anna cup", "be_not Mia park", "looks cup red"
    )
    assert solved(state, "who_at hall") == ("Tom and Anna", (0, 2))
    assert solved(state, "what_has Anna") == ("ball and cup", (1, 3))
    assert solved(state, "is_at Mia park") == ("no", (4,))
    assert solved(state, "is_at Mia hall") is None
    assert solved(state, "has Tom cup") == ("no", (3,))
    assert solved(state, "is_like cup red") == ("yes", (5,))
    assert solved(state, "color_held Tom") is None
    found = answer(state, Event("what_has", ("Anna",)))
    assert found is not None
    assert found.sentence == "Anna has the ball and the cup."


def test_every_question_has_a_family_and_unknown_ones_are_refused() -> None:
    assert {kind for kinds in FAMILIES.values() for kind in kinds} == set(QUESTIONS)
    assert len(FAMILIES) == 10
    for family in FAMILIES:
        propose(random.Random(0), State(), family)
    with pytest.raises(ValueError, match="unknown question 'fly'"):
        answer(State(), Event("fly", ()))
    with pytest.raises(ValueError, match="unknown family 'fly': the families are where"):
        propose(random.Random(0), State(), "fly")


def test_the_checker_counts() -> None:
    good = "Tom was in the hall. Tom had the ball. He went to the park. Tom put down the ball."
    checked = check_story(good)
    assert (checked.num_parsed, checked.consistent, checked.unsupported) == (4, True, ())
    bad = check_story(f"{good} Tom put down the ball. Anna ate an apple. The hall ate Tom.")
    assert (len(bad.sentences), bad.num_parsed, bad.consistent) == (7, 6, False)
    assert bad.contradictions == (("Tom put down the ball.", "drop(Tom, ball): Tom has the ball"),)
    assert [sentence for sentence, _ in bad.unsupported] == ["Anna ate an apple."]
    totals = shares([good, "Tom was in the hall. Tom was in the park.", "Tom was in the hall. Tom wen"])
    assert (totals.stories, totals.sentences, totals.parsed, totals.consistent, totals.contradictions) == (
        3,
        8,
        7,
        1,
        1,
    )
    assert shares(["Tom was in the hall. Tom wen"], cut=True).share_parsed == 1
    assert shares(["Tom was in the hall. Tom wen"]).share_parsed == 0.5
    assert (shares([]).share_parsed, shares([""]).share_consistent) == (0.0, 0.0)


def test_the_checker_answers_the_questions_of_a_text() -> None:
    text = "Tom was in the hall.\nQuestion: Where is Tom?\nAnswer: hall\nQuestion: Where is Anna?\nAnswer: hall"
    checked = check_document(text)
    assert [(found.given, found.right) for found in checked.answers] == [("hall", True), ("hall", None)]
    text = (
        "Question: Tom was in the hall. Tom had the ball. Where is the ball?\nAnswer: Tom was there. The answer is park"
    )
    checked = check_document(text)
    assert [sentence.sentence for sentence in checked.story.sentences] == ["Tom was in the hall.", "Tom had the ball."]
    assert [(found.given, found.right) for found in checked.answers] == [("park", False)]
    assert true_answer(checked.story.state, "Who has the ball?").word == "Tom"  # type: ignore[union-attr]
    assert true_answer(checked.story.state, "Why is the ball?") is None
    assert check_document("").answers == ()


def test_the_checker_reads_any_text_that_a_model_may_write() -> None:
    rng = random.Random(3)
    told = [document(WorldConfig(item_share=share), 5, index).text for share in (0.0, 1.0) for index in range(60)]
    pieces = [sentence for text in told for sentence in sentences(text.replace("Question: ", "").replace("\n", " "))]
    asked = [line for text in told for line in text.split("\n") if line.startswith("Question: ")]
    counted = 0
    for _ in range(300):
        text = (
            " ".join(rng.choices(pieces, k=30))
            + "\n"
            + "\n".join(f"{one}\nAnswer: two" for one in rng.choices(asked, k=3))
        )
        counted += len(check_document(text).story.contradictions)
    assert counted > 300
    beyond = check_document("Anna had ten apples. Anna found six apples.\nQuestion: How many apples does Anna have?")
    assert [answer.true for answer in beyond.answers] == [None]
