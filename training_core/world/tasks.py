"""Questions of the world as the project's own: `Question` of a curriculum. `data.task_bank` has them as tasks."""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import replace

from training_core.tasks.questions.question import Provenance, Question
from training_core.world.config import HeldOut, Split, WorldConfig, size_of
from training_core.world.documents import ANSWER_CUE, Document, from_key, item, settings_digest
from training_core.world.grammar import wordings
from training_core.world.parse import parse_question
from training_core.world.realise import question
from training_core.world.scenes import families

_PREFIX = "world/"  # of a provenance's name, before the document's key
_PATIENCE = 400  # documents in a row without a new question before a level counts as exhausted
_VARIANTS = 10**12  # index of the first document of variants, far beyond those of banks and suites


def prompts(document: Document) -> list[str]:
    """Return for each question of a document its story and the question itself, in one line."""
    return [f"{document.story.text} {asked.text}" for asked in document.questions]


def as_questions(config: WorldConfig, seed: int, document: Document) -> list[Question]:
    """Return the questions of a document. Those after a story without a level have the level of their hops.

    Their provenance names the document's key, from which `documents.from_key` makes it again.
    """
    settings = settings_digest(config)
    return [
        Question(
            level=asked.level or asked.hops,
            family=asked.family,
            prompt=prompt,
            answer=asked.answer,
            provenance=Provenance("generator", f"{_PREFIX}{document.key}", seed, settings),
            check="exact",
            solution=asked.solution,
        )
        for prompt, asked in zip(prompts(document), document.questions, strict=True)
    ]


def reworded(question_text: str) -> str | None:
    """Return a question in a wording that no training text has; None if it is no question of the grammar.

    Of several such wordings it is always the same one.
    """
    query = parse_question(question_text)
    if query is None:
        return None
    return question(query, next(wording for wording in wordings(f"?{query.kind}") if wording.held_out))


def level_items(
    config: WorldConfig,
    seed: int,
    level: int,
    count: int,
    split: Split = "train",
    held_out: HeldOut = "content",
    *,
    family: str = "any",
    avoid: Container[bytes] = (),
) -> list[Document]:
    """Return `count` items of a level; families take turns unless one is given.

    Their prompts differ and, in the held-out splits, their contents too. avoid: fingerprints that none may have.

    Raises:
        ValueError: for an unknown level or family, or when the level has fewer different items.
    """
    kinds = [family] if family != "any" else families(size_of(level), met=held_out == "combination")
    found: dict[str | bytes, Document] = {}
    index = repeated = 0
    while len(found) < count:
        made = item(config, seed, index, split, held_out, level=level, family=kinds[index % len(kinds)])
        index += 1
        before = len(found)
        if made.fingerprint not in avoid:
            found.setdefault(prompts(made)[0] if split == "train" else made.fingerprint, made)
        repeated = repeated + 1 if len(found) == before else 0
        if repeated == _PATIENCE:
            raise ValueError(
                f"level {level} has only about {len(found)} different items in the split {split}, not {count}: ask for "
                "fewer, or raise the vocabulary"
            )
    return list(found.values())


def level_questions(
    config: WorldConfig, seed: int, level: int, count: int, split: Split, new_wordings: float
) -> list[Question]:
    """Return `count` questions of a level; in the held-out splits a share of `new_wordings` is worded, story and
    question, as training never is. Worked solutions are as frequent as in the documents.

    Raises:
        ValueError: when the level has fewer.
    """
    reworded = 0 if split == "train" else round(new_wordings * count)
    items = level_items(config, seed, level, count - reworded, split)
    if reworded:
        met = {made.fingerprint for made in items}
        items += level_items(config, seed, level, reworded, split, "wording", avoid=met)
        random.Random(f"{seed}/{level}/{split}").shuffle(items)  # the first few are a sample of all
    return [_curriculum_question(config, seed, made) for made in items]


def is_about_world(question: Question) -> bool:
    """Return whether a question was made by the world."""
    return question.provenance.name.startswith(_PREFIX)


def is_reworded(question: Question) -> bool:
    """Return whether a question of the world is in a held-out wording."""
    return is_about_world(question) and question.provenance.name.split("/")[-2] == "wording"


def document_of(config: WorldConfig, question: Question) -> Document:
    """Return the document that a question of the world was made from.

    Raises:
        ValueError: when the question is not from the world, or from one with other settings.
    """
    if not is_about_world(question) or question.provenance.settings != settings_digest(config):
        raise ValueError(
            f"the question {question.provenance.name!r} was not made by a world with these settings: give the settings "
            "that its question bank was made with"
        )
    return from_key(config, question.provenance.seed, question.provenance.name.removeprefix(_PREFIX))


def another(config: WorldConfig, question: Question, seed: int) -> Question:
    """Return a question of the same level, family, split and way of being held out, about another story.

    Raises:
        ValueError: as `document_of`.
    """
    own = document_of(config, question)
    kind = own.key.rpartition("/")[0]
    while (made := from_key(config, question.provenance.seed, f"{kind}/{_VARIANTS + seed}")).fingerprint == (
        own.fingerprint
    ):
        seed += _VARIANTS
    return _curriculum_question(config, question.provenance.seed, made)


def _curriculum_question(config: WorldConfig, seed: int, made: Document) -> Question:
    """The question of an item, whose completion is that of the document: a model that practises on it does not unlearn
    how training text answers."""
    (question,) = as_questions(config, seed, made)
    solved = made.text.endswith(f"\nAnswer: {question.solution}{ANSWER_CUE}{question.answer}")
    return question if solved else replace(question, solution="")
