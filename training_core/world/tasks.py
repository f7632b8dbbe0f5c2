"""Questions of the world as the project's own: `Question` of a curriculum. `data.task_bank` has them as tasks."""

from __future__ import annotations

from training_core.tasks.questions.question import Provenance, Question
from training_core.world.config import HeldOut, Split, WorldConfig, size_of
from training_core.world.documents import Document, item, settings_digest
from training_core.world.grammar import wordings
from training_core.world.parse import parse_question
from training_core.world.realise import question
from training_core.world.scenes import families

_PATIENCE = 400  # documents in a row without a new question before a level counts as exhausted


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
            provenance=Provenance("generator", f"world/{document.key}", seed, settings),
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
) -> list[Document]:
    """Return `count` items of a level with different prompts; families take turns unless one is given.

    Raises:
        ValueError: for an unknown level or family, or when the level has fewer different items.
    """
    kinds = [family] if family != "any" else families(size_of(level), met=held_out == "combination")
    found: dict[str, Document] = {}
    index = repeated = 0
    while len(found) < count:
        made = item(config, seed, index, split, held_out, level=level, family=kinds[index % len(kinds)])
        index += 1
        before = len(found)
        found.setdefault(prompts(made)[0], made)
        repeated = repeated + 1 if len(found) == before else 0
        if repeated == _PATIENCE:
            raise ValueError(
                f"level {level} has only about {len(found)} different items in the split {split}, not {count}: ask for "
                "fewer, or raise the vocabulary"
            )
    return list(found.values())
