"""A bank of verifiable tasks from `reasoning-gym` (Stojanovski et al., 2025): arithmetic, logic and needle families.

Every item records its generator and seed, so that its answer can be verified again. Splits use disjoint seeds and
share no question.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from training_core.data.documents import SPLITS
from training_core.reporting import Reporter

FAMILIES = ("arithmetic", "logic", "needle")
ANSWER_CUE = " The answer is "  # between a worked solution and its answer


class TaskBankConfig(BaseModel):
    """Number and difficulty of the tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_per_family: int = Field(3000, ge=1, description="Training tasks in each family")
    held_out_per_family: int = Field(200, ge=10, description="Validation tasks, and as many test tasks, in each family")
    arithmetic_max_terms: int = Field(2, ge=2, le=12, description="Maximum terms of a sum")
    arithmetic_max_digits: int = Field(2, ge=1, le=10, description="Maximum digits of a term")
    needle_max_statements: int = Field(8, ge=3, description="Maximum statements that hide the needle")
    num_options: int = Field(
        4, ge=2, le=8, description="Options of a multiple-choice item, if the family has that many"
    )
    seed: int = Field(17, ge=0, description="Seed of the generators")


@dataclass(frozen=True, slots=True)
class Task:
    """One item. The right answer is `options[answer_index]`; a model is scored on `prompt + " " + options[i]`."""

    family: str
    generator: str
    seed: int
    prompt: str
    answer: str
    options: tuple[str, ...]
    answer_index: int

    def text(self) -> str:
        """Return the item as a training document."""
        return f"{self.prompt} {self.answer}"


def make_task_bank(config: TaskBankConfig, out: Path, reporter: Reporter) -> dict[str, float]:
    """Write `out/{train,validation,test}.jsonl`, and return the number of tasks by split.

    Raises:
        ValueError: when a family cannot supply enough distinct questions.
    """
    sizes = {
        "test": config.held_out_per_family,
        "validation": config.held_out_per_family,
        "train": config.train_per_family,
    }
    written: dict[str, float] = {}
    used: set[str] = set()
    for number, (split, size) in enumerate(sizes.items()):
        tasks = [t for family in FAMILIES for t in _family(config, family, size, split, used)]
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for task in tasks:
                file.write(json.dumps(asdict(task), ensure_ascii=False) + "\n")
        written[f"tasks_{split}"] = len(tasks)
        reporter.progress(number + 1, len(sizes), "making tasks")
    return written


def read_tasks(folder: Path, split: str) -> Iterator[Task]:
    """Yield the items of a split."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield Task(**record | {"options": tuple(record["options"])})


def generator_settings(config: TaskBankConfig, family: str) -> tuple[str, dict[str, Any]]:
    """Return the name and settings of the reasoning-gym generator of a family."""
    if family == "arithmetic":
        digits, terms = config.arithmetic_max_digits, config.arithmetic_max_terms
        return "chain_sum", {"min_terms": 2, "max_terms": terms, "min_digits": 1, "max_digits": digits}
    if family == "logic":
        return "syllogism", {}
    return "needle_haystack", {"min_num_statements": 3, "max_num_statements": config.needle_max_statements}


def _family(config: TaskBankConfig, family: str, size: int, split: str, used: set[str]) -> Iterator[Task]:
    """Yield `size` items. Held-out splits are drawn first and share no question with each other; training items may
    repeat each other (there are only so many one-digit sums) but never a held-out question."""
    name, settings = generator_settings(config, family)
    gym = reasoning_gym()
    draws = random.Random(f"{config.seed}/{family}/{split}")
    held_out = split != "train"
    made = 0
    for attempt in range(40):
        seed = config.seed + 1000 * (SPLITS.index(split) + 3 * attempt)
        dataset = gym.create_dataset(name, size=max(size, 50), seed=seed, **settings)
        answers = sorted({str(item["answer"]) for item in dataset})
        for item in dataset:
            task = _task(family, name, seed, item, answers, config.num_options, draws)
            if task.prompt in used:
                continue
            if held_out:
                used.add(task.prompt)
            yield task
            made += 1
            if made == size:
                return
        if not made:
            continue
    raise ValueError(
        f"the {family} family gives only {made} distinct questions for the {split} split at this difficulty, not "
        f"{size}: ask for fewer, or raise its difficulty"
    )


def _task(
    family: str,
    name: str,
    seed: int,
    item: Mapping[str, Any],
    answers: list[str],
    num_options: int,
    draws: random.Random,
) -> Task:
    question, answer = _question(family, item), str(item["answer"])
    candidates = set(_names(question)) if family == "needle" else set(answers)
    others = sorted(candidates - {answer})
    options = [answer, *draws.sample(others, min(num_options - 1, len(others)))]
    draws.shuffle(options)
    return Task(family, name, seed, f"Question: {question}\nAnswer:", answer, tuple(options), options.index(answer))


def _question(family: str, item: Mapping[str, Any]) -> str:
    """The question, stripped of the instructions that are the same for every item of the family."""
    question = str(item["question"])
    if family == "arithmetic":
        return question.removeprefix("State the final answer to the following arithmetic problem: ").strip()
    if family == "logic":
        question = question.removeprefix("Consider these statements:\n").removesuffix("\n(Answer Yes or No)")
    return question.split(" Reply only with")[0].strip()


def _names(question: str) -> list[str]:
    return re.findall(r"(?:^|\. )([A-Z][\w'-]+) ", question.split("\n")[0])


def reasoning_gym() -> ModuleType:
    """Import reasoning-gym.

    It imports `pycosat`, a C extension that only its zebra puzzles use. If that is not installed, an empty module
    replaces it, so that no compiler is needed; zebra puzzles then fail with AttributeError.

    Raises:
        ValueError: when reasoning-gym is not installed.
    """
    try:
        import pycosat  # noqa: F401
    except ModuleNotFoundError:
        sys.modules["pycosat"] = ModuleType("pycosat")
    try:
        import reasoning_gym as module
    except ModuleNotFoundError as error:
        raise ValueError(
            f"tasks need reasoning-gym ({error}): run `make install`, or pip install --no-deps reasoning-gym==0.1.25"
        ) from error
    gym: ModuleType = module
    return gym
