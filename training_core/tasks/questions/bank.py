"""The question bank: verified questions at ten levels, in three splits that share no content.

    bank/train.jsonl, validation.jsonl, test.jsonl     one `Question` a line, levels in order
    bank/bank.json                                     counts, rejections by reason, cost
    bank/avoided.json                                  contents that later draws (variants) must avoid as well

Generator questions are drawn until every level has its quota; frontier-model questions are used for training only. One
of each group of near-duplicates is kept, and everything held out by the task bank is removed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training_core.data.documents import SPLITS
from training_core.reporting import Reporter
from training_core.store.atomic import write_atomically
from training_core.store.bundle import canonical_json
from training_core.tasks.questions.ladder import cells, make_with_content, split_of_content
from training_core.tasks.questions.primitives import canonical
from training_core.tasks.questions.question import (
    LEVELS,
    Question,
    deduplicate,
    normalise_prompt,
    read_questions,
    write_questions,
)

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
    """Questions by split, and the cost of collecting them. avoided: contents that no later question may have."""

    train: Sequence[Question]
    validation: Sequence[Question]
    test: Sequence[Question]
    spent_usd: float
    note: str
    avoided: frozenset[str] = frozenset()


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
    splits = {split: [q for level in LEVELS for q in kept[level, split]] for split in SPLITS}
    for split, questions in splits.items():
        write_questions(out / f"{split}.jsonl", questions)
    write_atomically(out / AVOIDED, canonical_json(sorted(avoided)))
    write_atomically(out / SUMMARY, canonical_json(_summary(splits, rejected, collected)))
    return {
        **{f"questions_{split}": float(len(questions)) for split, questions in splits.items()},
        "frontier_questions": float(sum(q.provenance.source == "frontier" for q in splits["train"])),
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
    return QuestionBank(train, validation, test, float(summary["spent_usd"]), str(summary["note"]), avoided)


def without_frame(prompt: str) -> str:
    """Return a task-bank prompt without its "Question:" and "Answer:" frame."""
    return prompt.removeprefix("Question: ").removesuffix("\nAnswer:")


Kept = dict[tuple[int, str], list[Question]]


class _Drawing:
    """The questions drawn so far, by level and split, and the number still to draw.

    A held-out content appears in one wording only, a training content in as many as are drawn.
    """

    def __init__(self, config: QuestionBankConfig, avoided: frozenset[str], frontier: Sequence[Question]) -> None:
        self.config, self.avoided = config, avoided
        wanted = config.frontier_per_level if config.source == "frontier" else config.train_per_level
        self.quota = {"test": config.held_out_per_level, "validation": config.held_out_per_level, "train": wanted}
        self.frontier = [q for level in LEVELS for q in [q for q in frontier if q.level == level][:wanted]]
        # A frontier question has no content of its own; the sums in its prompt must not be held out in other words.
        self.asked = {canonical(expression) for q in frontier for expression in _SUM.findall(q.prompt)}
        self.targets = {(lv, split): int(n * _SURPLUS) + 5 for lv in LEVELS for split, n in self.quota.items()}
        for level in LEVELS if config.source == "frontier" else ():
            self.targets[level, "train"] = 0
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
            idle = 0
            while idle < _PATIENCE and any(len(self.drawn[level, s]) < self.targets[level, s] for s in self.quota):
                idle = 0 if self._one(level) else idle + 1
            for split, wanted in self.quota.items():
                if len(self.drawn[level, split]) < min(wanted, self.targets[level, split]):
                    raise self._exhausted(level, split, len(self.drawn[level, split]))
            reporter.progress(level, len(LEVELS), "drawing questions")

    def keep(self, avoid: Sequence[str]) -> tuple[Kept, Counter[str]]:
        """Return the questions that survive deduplication, up to the quota, and the number dropped by reason."""
        place_of = {q: place for place, questions in self.drawn.items() for q in questions}
        ordered = [q for s in ("test", "validation", "train") for lv in LEVELS for q in self.drawn[lv, s]]
        unique = deduplicate([*self.frontier, *ordered], avoid)
        kept: Kept = {place: [] for place in self.targets}
        for question in unique.kept:
            place = place_of.get(question, (question.level, "train"))
            if len(kept[place]) < self.quota[place[1]]:
                kept[place].append(question)
        return kept, Counter({reason: number for reason in _REASONS if (number := getattr(unique, reason))})

    def lacking(self, kept: Kept) -> dict[tuple[int, str], int]:
        """Return the number of missing questions by level and split; empty when the quotas are met."""
        missing = {place: self.quota[place[1]] - len(questions) for place, questions in kept.items()}
        return {place: number for place, number in missing.items() if number > 0}

    def raise_targets(self, kept: Kept) -> None:
        """Raise the targets where questions are missing, in proportion to the share that survived deduplication."""
        for place, number in self.lacking(kept).items():
            if self.targets[place]:
                drawn = len(self.drawn[place])
                self.targets[place] = drawn + 10 + int(1.3 * number * drawn / max(1, len(kept[place])))

    def require(self, kept: Kept, collected: Collected) -> None:
        """Raise ValueError unless every quota is met."""
        for (level, split), number in self.lacking(kept).items():
            available = self.quota[split] - number
            if not self.targets[level, split]:
                raise ValueError(
                    f"level {level} has {available} verified frontier questions, not {self.quota[split]}"
                    f"{' (' + collected.note + ')' if collected.note else ''}: ask for fewer (frontier_per_level), or "
                    'set source to "both", which takes the rest from generators'
                )
            raise self._exhausted(level, split, available)

    def _exhausted(self, level: int, split: str, available: int) -> ValueError:
        return ValueError(
            f"level {level} gives {available} distinct {split} questions, not {self.quota[split]}: ask for fewer "
            "(train_per_level, held_out_per_level), or give the level more cells in the ladder"
        )

    def _one(self, level: int) -> bool:
        """Draw the next seed of a level, and return whether it gave a question that was still needed."""
        kinds, seed = cells(level), self._next[level]
        self._next[level] += 1
        question, content = make_with_content(kinds[seed % len(kinds)], seed)
        prompt, split = normalise_prompt(question.prompt), split_of_content(content)
        place = level, split
        if len(self.drawn[place]) >= self.targets[place] or prompt in self._prompts or content in self.avoided:
            return False
        if split != "train" and (content in self._contents or content in self.asked):
            return False
        self._prompts.add(prompt)
        self._contents.add(content)
        self.drawn[place].append(question)
        return True


def _summary(
    splits: Mapping[str, Sequence[Question]], rejected: Mapping[str, int], collected: Collected
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
        "sources": dict(Counter(question.provenance.source for question in splits["train"])),
        "rejected": {**rejected, **collected.rejected},
        "judged": {model: list(counts) for model, counts in collected.judged.items()},
        "spent_usd": collected.spent_usd,
        "account": collected.account,
        "note": collected.note,
    }
