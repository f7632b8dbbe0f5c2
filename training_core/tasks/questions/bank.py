"""The question bank: verified questions at ten levels, in three splits that share no content.

    bank/train.jsonl, validation.jsonl, test.jsonl     one `Question` a line, levels in order
    bank/bank.json                                     counts, rejections by reason, cost
    bank/avoided.json                                  contents that later draws (variants) must avoid as well

Generator questions are drawn until every level has its quota; a share of each level may be about the generated world.
Frontier-model questions are used for training only. One of each group of near-duplicates is kept, and everything held
out by the task bank is removed.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from training_core.data.documents import SPLITS
from training_core.reporting import Reporter
from training_core.store.atomic import write_atomically
from training_core.store.bundle import canonical_json
from training_core.tasks.questions.ladder import (
    NEW_WORDINGS,
    cells,
    in_new_wording,
    make_with_content,
    split_of_content,
)
from training_core.tasks.questions.primitives import canonical
from training_core.tasks.questions.question import (
    LEVELS,
    Question,
    deduplicate,
    normalise_prompt,
    read_questions,
    write_questions,
)
from training_core.world.config import Split, WorldConfig
from training_core.world.tasks import is_about_world, level_questions

SUMMARY, AVOIDED = "bank.json", "avoided.json"
_REASONS = ("repeated", "near", "contradictory", "avoided")
_SURPLUS = 1.15  # initial oversampling, to make up for near-duplicates that are dropped
_ROUNDS = 6
_PATIENCE = 3000  # consecutive draws at a level without a new question before it counts as exhausted
_SEED_SPAN = 10**6
_SUM = re.compile(r"[0-9]+(?: ?[-+*] ?[0-9]+)+")


class QuestionBankConfig(BaseModel):
    """Size of the bank, the sources of its questions, and the budget for frontier models."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    train_per_level: int = Field(2000, ge=1, le=20_000, description="Training questions at each level")
    held_out_per_level: int = Field(
        400, ge=10, le=5000, description="Validation questions, and as many test questions, at each level"
    )
    seed: int = Field(17, ge=0, le=10**6, description="Seed of the generators")
    world_shares: list[float] = Field(
        [0.0] * len(LEVELS),
        min_length=len(LEVELS),
        max_length=len(LEVELS),
        description="Share of each level's questions, from level 1, that are about the generated world. The others are "
        "general: lists, words, arithmetic, with calls of tools from level 5 on",
    )
    world: WorldConfig = Field(
        WorldConfig(), description="Settings of that world: those of the corpus, so that held-out contents are the same"
    )
    source: Literal["generators", "frontier", "both"] = Field(
        "generators",
        description="Source of training questions: programs, frontier models (frontier_per_level at each level), or "
        "frontier models with programs filling the gaps. Held-out questions always come from programs",
    )
    frontier_per_level: int = Field(
        50, ge=1, le=10_000, description="Verified frontier questions to collect at each level"
    )
    frontier_models: list[str] = Field(
        ["openai/gpt-4o-mini", "anthropic/claude-3.5-haiku", "google/gemini-2.0-flash-001"],
        description="Frontier models to ask, by the server's names; three or more judge each other's answers",
    )
    frontier_prices: list[float] = Field(
        [0.15, 0.60, 0.80, 4.00, 0.10, 0.40],
        description="Maximum prices of each model in US dollars per million tokens: prompt, completion, prompt, ...",
    )
    frontier_base_url: str = Field(
        "https://openrouter.ai/api/v1", description="URL of a server that speaks the chat-completions protocol"
    )
    frontier_key_variable: str = Field(
        "OPENROUTER_API_KEY", description="Name of the environment variable that holds the API key"
    )
    frontier_max_cost_usd: float = Field(
        5.0, gt=0, description="Cap on the total cost of frontier models, over all runs"
    )
    frontier_timeout_s: float = Field(120.0, gt=0, le=3600, description="Timeout of one request")
    frontier_retries: int = Field(6, ge=0, le=20, description="Maximum retries of a request that was not charged")

    @field_validator("world_shares")
    @classmethod
    def _are_shares(cls, shares: list[float]) -> list[float]:
        if wrong := [share for share in shares if not 0 <= share <= 1]:
            raise ValueError(f"world_shares holds one share in [0, 1] for each of the ten levels, got {wrong[0]}")
        return shares

    @model_validator(mode="after")
    def _is_priced(self) -> Self:
        models, prices = self.frontier_models, self.frontier_prices
        if not models or len(set(models)) < len(models):
            raise ValueError("frontier_models must name at least one model, and none twice")
        if len(prices) != 2 * len(models):
            raise ValueError(
                f"frontier_prices must hold two prices for each of the {len(models)} frontier_models, per million "
                f"tokens of prompt and of completion, got {len(prices)} numbers"
            )
        return self


@dataclass(frozen=True, slots=True)
class Collected:
    """Outcome of collecting frontier questions.

    spent_usd: total over all runs. account: the same in words, with what lost requests may have cost.
    note: why collection stopped short of the quota. rejected: counts of rejected candidates by reason.
    judged: for each model, how many answers of others it judged, and with how many it agreed.
    """

    spent_usd: float = 0.0
    account: str = ""
    note: str = ""
    rejected: Mapping[str, int] = field(default_factory=dict)
    judged: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuestionBank:
    """Questions by split, and the cost of collecting them.

    avoided: contents that no later question may have. world: settings of the world that some questions are about.
    """

    train: Sequence[Question]
    validation: Sequence[Question]
    test: Sequence[Question]
    spent_usd: float
    note: str
    avoided: frozenset[str] = frozenset()
    world: WorldConfig | None = None


def make_question_bank(
    config: QuestionBankConfig,
    out: Path,
    reporter: Reporter,
    avoid: Iterable[str] = (),
    frontier: Sequence[Question] = (),
    collected: Collected | None = None,
) -> dict[str, float | str]:
    """Write the bank into the folder `out`, and return its counts and cost.

    avoid: prompts to exclude in any wording, namely those of the task bank's held-out splits.
    frontier: verified questions of frontier models. collected: the outcome of collecting them.

    Raises:
        ValueError: when a level cannot supply enough distinct questions.
    """
    collected = collected if collected is not None else Collected()
    prompts = [without_frame(prompt) for prompt in avoid]
    avoided = frozenset(canonical(prompt) for prompt in prompts)
    drawing = _Drawing(config, avoided, frontier)
    rejected: Counter[str] = Counter()
    for number in range(_ROUNDS):
        drawing.draw(reporter)
        kept, rejected = drawing.keep(prompts)
        if not drawing.lacking(kept):
            break
        drawing.raise_targets(kept)
        reporter.progress(number + 1, _ROUNDS, "replacing near-duplicates")
    drawing.require(kept, collected)
    splits = {split: [q for level in LEVELS for q in drawing.mixed(kept, level, split)] for split in SPLITS}
    for split, questions in splits.items():
        write_questions(out / f"{split}.jsonl", questions)
    write_atomically(out / AVOIDED, canonical_json(sorted(avoided)))
    write_atomically(out / SUMMARY, canonical_json(_summary(config, splits, rejected, collected)))
    return {
        **{f"questions_{split}": float(len(questions)) for split, questions in splits.items()},
        "frontier_questions": float(sum(q.provenance.source == "frontier" for q in splits["train"])),
        "world_questions": float(sum(is_about_world(q) for questions in splits.values() for q in questions)),
        "spent_usd": float(collected.spent_usd),
        "note": collected.note or ("all questions come from generators" if not frontier else "as many as were wanted"),
    }


def open_bank(folder: Path) -> QuestionBank:
    """Read the bank in `folder`.

    Raises:
        ValueError: naming the file and line, when the folder holds no valid bank.
    """
    summary = json.loads((folder / SUMMARY).read_bytes())
    avoided = frozenset(json.loads((folder / AVOIDED).read_bytes()))
    train, validation, test = (read_questions(folder / f"{split}.jsonl") for split in SPLITS)
    world = summary["world"] and WorldConfig.model_validate(summary["world"])
    return QuestionBank(train, validation, test, float(summary["spent_usd"]), str(summary["note"]), avoided, world)


def without_frame(prompt: str) -> str:
    """Return a task-bank prompt without its "Question:" and "Answer:" frame."""
    return prompt.removeprefix("Question: ").removesuffix("\nAnswer:")


_ORDER: tuple[Split, ...] = ("test", "validation", "train")  # of two near-duplicates the held-out one is kept
Kind = Literal["general", "world"]
Place = tuple[int, str, Kind]  # level, split, kind
Kept = dict[Place, list[Question]]


class _Drawing:
    """The questions drawn so far, by level and split, and the number still to draw.

    A held-out content appears in one wording only, a training content in as many as are drawn.
    """

    def __init__(self, config: QuestionBankConfig, avoided: frozenset[str], frontier: Sequence[Question]) -> None:
        self.config, self.avoided = config, avoided
        self.quota = _quota(config)
        self.frontier = [
            q
            for level in LEVELS
            for q in [q for q in frontier if q.level == level][: self.quota[level, "train", "general"]]
        ]
        # A frontier question has no content of its own; the sums in its prompt must not be held out in other words.
        self.asked = {canonical(expression) for q in frontier for expression in _SUM.findall(q.prompt)}
        self.targets = {
            place: number if place[2] == "world" else int(number * _SURPLUS) + 5 if number else 0
            for place, number in self.quota.items()
        }
        for level in LEVELS if config.source == "frontier" else ():
            self.targets[level, "train", "general"] = 0
        self.drawn: Kept = {place: [] for place in self.targets}
        self._next = dict.fromkeys(LEVELS, config.seed * _SEED_SPAN)
        self._prompts: set[str] = set()
        self._contents: set[str] = set()

    def draw(self, reporter: Reporter) -> None:
        """Draw until every target is met or a level is exhausted.

        Raises:
            ValueError: when a level is exhausted before its quota is met.
        """
        for level in LEVELS:
            general: list[Place] = [(level, split, "general") for split in _ORDER]
            idle = 0
            while idle < _PATIENCE and any(len(self.drawn[place]) < self.targets[place] for place in general):
                idle = 0 if self._one(level) else idle + 1
            for place in general:
                if len(self.drawn[place]) < min(self.quota[place], self.targets[place]):
                    raise self._exhausted(place, len(self.drawn[place]))
            for split in _ORDER:
                self._draw_world(level, split)
            reporter.progress(level, len(LEVELS), "drawing questions")

    def keep(self, avoid: Sequence[str]) -> tuple[Kept, Counter[str]]:
        """Return the questions that survive deduplication, up to the quota, and the number dropped by reason.

        Those about the world are drawn with different contents; its stories look alike by nature.
        """
        general = {place: questions for place, questions in self.drawn.items() if place[2] == "general"}
        place_of = {q: place for place, questions in general.items() for q in questions}
        by_split = sorted(general, key=lambda place: _ORDER.index(place[1]))
        unique = deduplicate([*self.frontier, *(q for place in by_split for q in general[place])], avoid)
        kept: Kept = {place: [] if place in general else list(questions) for place, questions in self.drawn.items()}
        for question in unique.kept:
            place = place_of.get(question, (question.level, "train", "general"))
            if len(kept[place]) < self.quota[place]:
                kept[place].append(question)
        return kept, Counter({reason: number for reason in _REASONS if (number := getattr(unique, reason))})

    def mixed(self, kept: Kept, level: int, split: str) -> list[Question]:
        """Return the questions of a level and split, those about the world among the general ones at random."""
        general, world = kept[level, split, "general"], kept[level, split, "world"]
        if not world:
            return general
        return random.Random(f"{self.config.seed}/{level}/{split}").sample(
            [*general, *world], len(general) + len(world)
        )

    def lacking(self, kept: Kept) -> dict[Place, int]:
        """Return the number of missing questions by place; empty when the quotas are met."""
        missing = {place: self.quota[place] - len(questions) for place, questions in kept.items()}
        return {place: number for place, number in missing.items() if number > 0}

    def raise_targets(self, kept: Kept) -> None:
        """Raise the targets where questions are missing, in proportion to the share that survived deduplication."""
        for place, number in self.lacking(kept).items():
            if self.targets[place]:
                drawn = len(self.drawn[place])
                self.targets[place] = drawn + 10 + int(1.3 * number * drawn / max(1, len(kept[place])))

    def require(self, kept: Kept, collected: Collected) -> None:
        """Raise ValueError unless every quota is met."""
        for place, number in self.lacking(kept).items():
            available = self.quota[place] - number
            if not self.targets[place]:
                raise ValueError(
                    f"level {place[0]} has {available} verified frontier questions, not {self.quota[place]}"
                    f"{' (' + collected.note + ')' if collected.note else ''}: ask for fewer (frontier_per_level), or "
                    'set source to "both", which takes the rest from generators'
                )
            raise self._exhausted(place, available)

    def _exhausted(self, place: Place, available: int) -> ValueError:
        level, split, kind = place
        return ValueError(
            f"level {level} gives {available} distinct {'' if kind == 'general' else 'world '}{split} questions, not "
            f"{self.quota[place]}: ask for fewer (train_per_level, held_out_per_level), "
            + ("or give the level more cells in the ladder" if kind == "general" else "or lower its world_shares")
        )

    def _draw_world(self, level: int, split: Split) -> None:
        """Draw the level's questions about the world, whose contents are split by the world itself."""
        place: Place = (level, split, "world")
        if len(self.drawn[place]) < self.targets[place]:
            config = self.config
            self.drawn[place] = level_questions(
                config.world, config.seed, level, self.targets[place], split, NEW_WORDINGS
            )

    def _one(self, level: int) -> bool:
        """Draw the next seed of a level, and return whether it gave a question that was still needed."""
        kinds, seed = cells(level), self._next[level]
        self._next[level] += 1
        question, content = make_with_content(kinds[seed % len(kinds)], seed)
        prompt, split = normalise_prompt(question.prompt), split_of_content(content)
        place: Place = (level, split, "general")
        if len(self.drawn[place]) >= self.targets[place] or prompt in self._prompts or content in self.avoided:
            return False
        if split != "train" and (content in self._contents or content in self.asked):
            return False
        self._prompts.add(prompt)
        self._contents.add(content)
        self.drawn[place].append(question)
        return True


def _quota(config: QuestionBankConfig) -> dict[Place, int]:
    """Return the number of questions wanted by level, split and kind; frontier questions count as general."""
    quota: dict[Place, int] = {}
    for level, share in zip(LEVELS, config.world_shares, strict=True):
        for split in SPLITS:
            size = config.train_per_level if split == "train" else config.held_out_per_level
            about_world = round(share * size)
            if config.source == "frontier" and split == "train":
                size, about_world = config.frontier_per_level, 0
            quota[level, split, "general"] = size - about_world
            quota[level, split, "world"] = about_world
    return quota


def _summary(
    config: QuestionBankConfig,
    splits: Mapping[str, Sequence[Question]],
    rejected: Mapping[str, int],
    collected: Collected,
) -> dict[str, object]:
    levels = {
        split: {
            str(level): dict(sorted(Counter(q.family for q in questions if q.level == level).items()))
            for level in LEVELS
        }
        for split, questions in splits.items()
    }
    return {
        "levels": levels,
        "world": config.world.model_dump(mode="json") if any(config.world_shares) else None,
        "new_wordings": {split: sum(map(in_new_wording, questions)) for split, questions in splits.items()},
        "sources": dict(Counter(question.provenance.source for question in splits["train"])),
        "rejected": {**rejected, **collected.rejected},
        "judged": {model: list(counts) for model, counts in collected.judged.items()},
        "spent_usd": collected.spent_usd,
        "account": collected.account,
        "note": collected.note,
    }
