"""Settings of the generated world, and the sizes of its levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training_core.world.lexicon import LARGEST, SMALLEST

Split = Literal["train", "validation", "test"]
HeldOut = Literal["content", "combination", "wording"]


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a short story with one question: people, things, sentences, and hops to the answer.

    Raises:
        ValueError: when a number is outside what the world can make.
    """

    people: int
    things: int
    sentences: int
    hops: int

    def __post_init__(self) -> None:
        for name, least, most in (("people", 2, 6), ("things", 1, 8), ("sentences", 2, 200), ("hops", 1, 4)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} must lie in [{least}, {most}], got {value}: change the size of the story")


# From one level to the next only one number grows.
SIZES: Mapping[int, Size] = {
    1: Size(people=2, things=1, sentences=2, hops=1),
    2: Size(people=2, things=1, sentences=4, hops=1),
    3: Size(people=3, things=1, sentences=4, hops=1),
    4: Size(people=3, things=3, sentences=4, hops=1),
    5: Size(people=3, things=3, sentences=4, hops=2),
    6: Size(people=3, things=3, sentences=8, hops=2),
    7: Size(people=3, things=3, sentences=8, hops=3),
    8: Size(people=3, things=5, sentences=8, hops=3),
    9: Size(people=5, things=5, sentences=8, hops=3),
    10: Size(people=5, things=5, sentences=8, hops=4),
}


class WorldConfig(BaseModel):
    """Settings of the generated world; together with a seed and an index they determine a document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = Field(
        300, ge=SMALLEST, le=LARGEST, description="Distinct words that the texts can have, approximately"
    )
    variety: float = Field(
        0.5,
        ge=0,
        le=1,
        description="n-gram diversity: share of the wordings in use, and how often sentences are joined or opened by "
        "a time phrase; 0 words every event in one way",
    )
    pronouns: float = Field(0.3, ge=0, le=1, description="Share of pronouns where one person or thing can be meant")
    least_events: int = Field(6, ge=4, le=60, description="Events in a story before its end, at least")
    most_events: int = Field(14, ge=4, le=80, description="Events in a story before it comes to its end")
    item_share: float = Field(
        0.4, ge=0, le=1, description="Share of documents that are a short story of a level with its question"
    )
    highest_level: int = Field(10, ge=1, le=10, description="Highest level of those documents")
    asked_share: float = Field(0.7, ge=0, le=1, description="Share of the other stories that questions follow")
    most_questions: int = Field(3, ge=1, le=10, description="Maximum questions after a story")
    solution_share: float = Field(0.25, ge=0, le=1, description="Share of answers that follow a worked solution")
    answers: Literal["word", "sentence"] = Field("word", description="Answers as the bare word or as a short sentence")
    num_options: int = Field(4, ge=2, le=8, description="Maximum options of a multiple-choice item")
    combination_share: float = Field(
        0.1,
        ge=0.05,
        le=0.12,
        description="Share of pairs of words (name and place, thing and color) kept from training",
    )
    validation_fraction: float = Field(0.05, ge=0.01, le=0.25, description="Share of contents kept for validation")
    test_fraction: float = Field(0.05, ge=0.01, le=0.25, description="Share of contents kept for the final test")

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Self:
        if self.most_events < self.least_events:
            raise ValueError(
                f"most_events = {self.most_events} is below least_events = {self.least_events}: raise it or lower that"
            )
        return self


def size_of(level: int) -> Size:
    """Return the size of a level's stories.

    Raises:
        ValueError: when there is no such level.
    """
    size = SIZES.get(level)
    if size is None:
        raise ValueError(f"the world has levels 1 to {len(SIZES)}, got {level!r}: choose one of them")
    return size
