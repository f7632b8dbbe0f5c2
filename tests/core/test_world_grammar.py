"""What the grammar writes it reads back, in one way only; and it reads nothing else."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_core.world import lexicon as words
from training_core.world.grammar import EVENTS, QUESTIONS, REASONS, TABLE, wordings
from training_core.world.parse import parse, parse_question, readings, sentences
from training_core.world.realise import NO_FOCUS, Style, clause, focus_of, plain, question, realise
from training_core.world.rules import CONDITIONS
from training_core.world.state import Event

OF_ROLE = {
    "p": words.NAMES[:6], "q": words.NAMES[6:12], "x": words.PLACES[:5], "y": words.PLACES[5:9], "c": words.CONTAINERS,
    "t": (*words.CONTAINERS[:2], *words.TOYS[:4], words.KEY), "u": words.TOYS[4:8],
    "d": (*words.COLORS, *words.SIZES), "w": words.MATERIALS, "n": words.NUMBERS, "k": tuple(words.FOODS),
    "f": words.FEELINGS, "m": words.PHASES,
}  # fmt: skip


def any_event(table: dict[str, tuple[str, tuple[str, ...]]]) -> st.SearchStrategy[Event]:
    def of(kind: str) -> st.SearchStrategy[Event]:
        roles = table[kind][0].split()
        return st.tuples(*(st.sampled_from(OF_ROLE[role]) for role in roles)).map(lambda args: Event(kind, args))

    return st.sampled_from(sorted(table)).flatmap(of)


SHARE = st.sampled_from([0.0, 0.3, 1.0])
STYLES = st.builds(Style, variety=SHARE, joins=SHARE, leads=SHARE, pronouns=SHARE, held_out=SHARE)


@settings(max_examples=400, deadline=None)
@given(events=st.lists(any_event(dict(EVENTS)), min_size=1, max_size=8), style=STYLES, seed=st.integers(0, 10**6))
def test_a_text_is_read_back_as_its_events_and_in_one_way(events: list[Event], style: Style, seed: int) -> None:
    telling = realise(events, random.Random(seed), style)
    parsed = parse(telling.text)
    assert [sentence.sentence for sentence in parsed] == list(telling.sentences)
    assert [event for sentence in parsed for event in sentence.events or ()] == events
    assert [len(sentence.events or ()) for sentence in parsed] == [len(told) for told in telling.events]
    focus = NO_FOCUS
    for sentence in parsed:
        assert len(list(readings(sentence.sentence, focus))) == 1
        focus = focus_of(sentence.events or ())


@settings(max_examples=200, deadline=None)
@given(query=any_event(dict(QUESTIONS)), data=st.data())
def test_a_question_is_read_back(query: Event, data: st.DataObject) -> None:
    wording = data.draw(st.sampled_from(wordings(f"?{query.kind}")))
    assert parse_question(question(query, wording)) == query


def test_every_wording_of_every_kind_is_read_back_alone() -> None:
    rng = random.Random(0)
    read: Counter[str] = Counter()
    for kind, (roles, texts) in EVENTS.items():
        for _ in range(60):
            event = Event(kind, tuple(rng.choice(OF_ROLE[role]) for role in roles.split()))
            text = realise([event], rng, Style(variety=1.0, held_out=0.4)).text
            assert [sentence.events for sentence in parse(text)] == [(event,)], text
            read[kind] += 1
        assert len(texts) == len(set(texts))
    assert set(read) == set(EVENTS) == set(CONDITIONS)


def test_a_held_out_wording_is_written_only_if_asked_for() -> None:
    """Every question has one; at variety 1 and held_out 0 none is drawn in 40 draws of each kind."""
    held = {kind for kind, of in TABLE.items() if any(wording.held_out for wording in of)}
    assert held >= {f"?{kind}" for kind in QUESTIONS}
    assert len(held & set(EVENTS)) >= 20
    event = Event("go", ("Tom", "kitchen"))
    rng = random.Random(1)
    usual = {realise([event], rng, Style(variety=1.0)).text for _ in range(200)}
    assert usual == {f"Tom {verb} to the kitchen." for verb in ("went", "walked", "ran")}
    assert {realise([event], rng, Style(held_out=1.0)).text for _ in range(20)} == {"Tom came to the kitchen."}
    assert {realise([event], rng, Style(variety=0.0)).text for _ in range(20)} == {"Tom went to the kitchen."}


def test_pronouns_follow_the_sentence_before() -> None:
    def read(text: str) -> list[tuple[Event, ...] | None]:
        return [sentence.events for sentence in parse(text)]

    went = Event("go", ("Anna", "hall"))
    assert read("Anna took the ball. She went to the hall.")[1] == (went,)
    assert read("Anna took the ball. He went to the hall.")[1] is None  # no man was mentioned
    assert read("Anna greeted the ball. She went to the hall.") == [None, None]
    assert read('"Hello, Mia," said Anna. She went to the hall.')[1] is None  # two women
    assert read("Anna took the ball and put it in the box.") == [
        (Event("take", ("Anna", "ball")), Event("put", ("Anna", "ball", "box")))
    ]
    assert read("The ball was in the box. Tom took it.")[1] is None  # two things
    assert read("Tom and Anna went to the hall.") == [(Event("go", ("Tom", "hall")), Event("go", ("Anna", "hall")))]
    assert read("In the evening Tom went to the hall.") == [(Event("time", ("evening",)), Event("go", ("Tom", "hall")))]
    assert read("Tom was sad because she lost the ball.") == [None]


@pytest.mark.parametrize(
    "text",
    [
        "Tom went to kitchen.", '"Hello,Anna," said Tom.', '"Hello, Anna,"said Tom.', '" Hello, Anna," said Tom.',
        "tom went to the kitchen.", "Tom goed to the kitchen.", "Tom went to the ball.",
        "Tom went to the the kitchen.", "Tom  went to the kitchen.", "Tom went to the kitchen", "Tom ate a apple.",
        "Tom had one apples.", "Tom had three apple.", "There was three apples in the hall.", "Tom washed herself.",
        '"hello, Anna," said Tom.', '"Hello, Anna" said Tom.', "Tom was the kitchen in.", "Then the ball was red.",
        "Tom went to the kitchen and Anna.", "In the noon Tom went to the hall.", "Tom and Tom went to the hall.",
        "It was red.", "A ball was red.", "There was an red ball in the hall.", "", ".", '"',
    ],
)  # fmt: skip
def test_what_is_wrong_does_not_parse(text: str) -> None:
    assert all(sentence.events is None for sentence in parse(text))


@given(st.text(alphabet="Tom went.?\"' \nthekicn,I", max_size=60))
def test_any_text_is_split_without_loss_and_never_fails(text: str) -> None:
    kept = "".join("".join(sentences(text)).split())
    assert sorted(kept) == sorted("".join(text.split()))
    assert len(parse(text)) == len(sentences(text))
    parse_question(text)


def test_plain_sentences_clauses_and_unknown_kinds() -> None:
    assert plain(Event("give", ("Tom", "ball", "Anna"))) == "Tom gave Anna the ball."
    assert plain(Event("there", ("orange", "ball", "hall"))) == "There was an orange ball in the hall."
    assert clause(Event("given", ("Anna", "Tom", "ball"))) == "Tom gave her the ball"
    assert {clause(Event(kind, tuple(OF_ROLE[r][0] for r in roles.split()))) for kind, (roles, _) in REASONS.items()}
    with pytest.raises(ValueError, match="no kind 'fly': it has time, be"):
        plain(Event("fly", ("Tom",)))


def test_words_belong_to_one_list() -> None:
    every = (
        *words.NAMES, *words.PLACES, *words.CONTAINERS, *words.TOYS, *words.FOODS, *words.FOODS.values(),
        *words.COLORS, *words.SIZES, *words.MATERIALS, *words.NUMBERS, *words.PHASES, *words.FEELINGS, words.KEY,
    )  # fmt: skip
    literal = {piece for of in TABLE.values() for w in of for piece in w.pieces if piece.isalpha()}
    assert [word for word, count in Counter(every).items() if count > 1] == []
    assert literal & set(every) - {"sad", "glad", "key", "one", "big"} == set()
    assert all(word.isalpha() and word.isascii() for word in every)
    assert [len(words.lexicon(n).names) for n in (210, 400)] == [11, 56]
    with pytest.raises(ValueError, match="210 to 400 words, got 500"):
        words.lexicon(500)
