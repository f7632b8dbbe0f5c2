"""What a text of the world is worth: do its sentences parse, does its story contradict itself, are its answers true?

What counts as a contradiction is defined in `rules`. A sentence that does not parse is skipped, so a story is called
consistent only if every sentence parses and none contradicts those before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from training_core.world.answers import Answer, answer
from training_core.world.documents import ANSWER_CUE
from training_core.world.effects import apply
from training_core.world.parse import Parsed, parse, parse_question, sentences
from training_core.world.rules import judge
from training_core.world.state import State

_ASKED = re.compile(r"^Question: ?(.*)(?:\nAnswer:(.*))?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CheckedStory:
    """A story read back. contradictions and unsupported: pairs of a sentence and the reason. state: after its end."""

    sentences: tuple[Parsed, ...]
    contradictions: tuple[tuple[str, str], ...]
    unsupported: tuple[tuple[str, str], ...]
    state: State

    @property
    def num_parsed(self) -> int:
        """Number of sentences that parse."""
        return sum(sentence.events is not None for sentence in self.sentences)

    @property
    def consistent(self) -> bool:
        """Whether there are sentences, all of them parse, and none contradicts those before it."""
        return 0 < len(self.sentences) == self.num_parsed and not self.contradictions


@dataclass(frozen=True, slots=True)
class CheckedAnswer:
    """A question in a text, the answer given there, and the true one by the story (None if it has none)."""

    question: str
    given: str
    true: Answer | None

    @property
    def right(self) -> bool | None:
        """Whether the given answer is the true word or sentence; None if the story does not tell."""
        if self.true is None:
            return None
        return _bare(self.given) in (_bare(self.true.word), _bare(self.true.sentence))


@dataclass(frozen=True, slots=True)
class CheckedDocument:
    """A document read back: its story, and its questions in order."""

    story: CheckedStory
    answers: tuple[CheckedAnswer, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """Totals over several stories. consistent: stories in which every sentence parses and none contradicts another."""

    stories: int
    sentences: int
    parsed: int
    consistent: int
    contradictions: int
    unsupported: int

    @property
    def share_parsed(self) -> float:
        """Share of sentences that parse."""
        return self.parsed / self.sentences if self.sentences else 0.0

    @property
    def share_consistent(self) -> float:
        """Share of consistent stories."""
        return self.consistent / self.stories if self.stories else 0.0


def check_story(text: str, *, cut: bool = False) -> CheckedStory:
    """Read a story back and judge it sentence by sentence.

    cut: the text was ended by a limit, so an unfinished last sentence is left out.
    """
    kept = sentences(text)
    if cut and kept and kept[-1][-1] not in ".?!":
        kept = kept[:-1]
    parsed = parse(" ".join(kept))
    state = State()
    contradictions: list[tuple[str, str]] = []
    unsupported: list[tuple[str, str]] = []
    for sentence in parsed:
        for event in sentence.events or ():
            verdict = judge(state, event)
            if verdict.possible is False:
                contradictions.append((sentence.sentence, verdict.reason))
            elif verdict.possible is None:
                unsupported.append((sentence.sentence, verdict.reason))
            apply(state, event)
    return CheckedStory(tuple(parsed), tuple(contradictions), tuple(unsupported), state)


def check_document(text: str, *, cut: bool = False) -> CheckedDocument:
    """Read a document back: a story, and questions after it or (as in the items of the levels) around it."""
    first = _ASKED.search(text)
    told = text[: first.start()] if first else text
    asked: list[tuple[str, str]] = []
    for match in _ASKED.finditer(text):
        *story, question = sentences(match[1]) or [""]
        told = f"{told} {' '.join(story)}"
        asked.append((question, _final(match[2] or "")))
    story_checked = check_story(told, cut=cut and not asked)
    answers = tuple(
        CheckedAnswer(question, given, true_answer(story_checked.state, question)) for question, given in asked
    )
    return CheckedDocument(story_checked, answers)


def true_answer(state: State, question: str) -> Answer | None:
    """Return the answer to a question in words, None if it is not one of the grammar's or the story does not tell."""
    query = parse_question(question)
    return None if query is None else answer(state, query)


def shares(texts: Iterable[str], *, cut: bool = False) -> Shares:
    """Return what share of the sentences of several stories parse, and what share of the stories is consistent."""
    checked = [check_document(text, cut=cut).story for text in texts]
    return Shares(
        stories=len(checked),
        sentences=sum(len(story.sentences) for story in checked),
        parsed=sum(story.num_parsed for story in checked),
        consistent=sum(story.consistent for story in checked),
        contradictions=sum(len(story.contradictions) for story in checked),
        unsupported=sum(len(story.unsupported) for story in checked),
    )


def _final(given: str) -> str:
    return given.rpartition(ANSWER_CUE.strip())[2].strip()


def _bare(text: str) -> str:
    return " ".join(text.casefold().strip(" .").split())
