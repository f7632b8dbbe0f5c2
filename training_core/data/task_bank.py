"""A bank of verifiable tasks: arithmetic, logic and needle families, and questions about the generated world.

    arithmetic, logic, needle            from `reasoning-gym` (Stojanovski et al., 2025)
    one_hop, two_hops, ... four_hops     about the world, by the number of facts that the answer needs
    long_story                           about the world: a fact at the beginning of a long story; for training, facts
                                         from anywhere in it, several questions in an item

Every item records its generator and seed, so that its answer can be verified again. Splits share no question; about the
world they share no content.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from training_core.data.documents import SPLITS, Split
from training_core.reporting import Reporter
from training_core.world.config import SIZES, Size, WorldConfig
from training_core.world.documents import RECALLED, Document, from_key, item_of_size
from training_core.world.tasks import level_items, prompts

GYM_FAMILIES = ("arithmetic", "logic", "needle")
HOPS = {"one_hop": 1, "two_hops": 2, "three_hops": 3, "four_hops": 4}
LONG_STORY = "long_story"
WORLD_FAMILIES = (*HOPS, LONG_STORY)
FAMILIES = (*GYM_FAMILIES, *WORLD_FAMILIES)
_WORLD = "world/"  # of a task's generator, before the document's key
BEGINNING = Size(people=6, things=8, sentences=8, hops=1)  # of a long story; it holds the fact that is asked for
ANSWER_CUE = " The answer is "  # between a worked solution and its answer


class TaskBankConfig(BaseModel):
    """Number and difficulty of the tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_per_family: int = Field(3000, ge=1, description="Training tasks in each family")
    held_out_per_family: int = Field(200, ge=10, description="Validation tasks, and as many test tasks, in each family")
    world_train_per_family: int = Field(
        0, ge=0, description="Training questions about the generated world in each of its families; 0: no such families"
    )
    one_hop_train: int = Field(
        0, ge=0, description="Training questions with one hop, if more than the other families about the world have"
    )
    world: WorldConfig = Field(WorldConfig(), description="Settings of the world that the questions are about")
    story_sentences: int = Field(
        76, ge=16, le=200, description="Sentences of a long story, about six tokens each; the first eight hold the fact"
    )
    story_questions: int = Field(
        10, ge=1, le=64, description="Questions after a long story for training, which is shorter by two sentences each"
    )
    arithmetic_max_terms: int = Field(2, ge=2, le=12, description="Maximum terms of a sum")
    arithmetic_max_digits: int = Field(2, ge=1, le=10, description="Maximum digits of a term")
    needle_max_statements: int = Field(8, ge=3, description="Maximum statements that hide the needle")
    num_options: int = Field(
        4, ge=2, le=8, description="Options of a multiple-choice item, if the family has that many"
    )
    seed: int = Field(17, ge=0, description="Seed of the generators")


@dataclass(frozen=True, slots=True)
class Task:
    """One item. The right answer is `options[answer_index]`; a model is scored on `prompt + " " + options[i]`.

    solution: the worked solution that the generator gives, "" where it gives none.
    """

    family: str
    generator: str
    seed: int
    prompt: str
    answer: str
    options: tuple[str, ...]
    answer_index: int
    solution: str = ""

    def text(self, *, worked: bool = False) -> str:
        """Return the item as a training document. worked: with the solution before the answer, where there is one."""
        if worked and self.solution:
            return f"{self.prompt} {self.solution}{ANSWER_CUE}{self.answer}"
        return f"{self.prompt} {self.answer}"


def make_task_bank(config: TaskBankConfig, out: Path, reporter: Reporter) -> dict[str, float]:
    """Write `out/{train,validation,test}.jsonl`, and return the number of tasks by split.

    Raises:
        ValueError: when a family cannot supply enough distinct questions, or the world none of the size asked for.
    """
    sizes: dict[Split, int] = {
        "test": config.held_out_per_family,
        "validation": config.held_out_per_family,
        "train": config.train_per_family,
    }
    written: dict[str, float] = {}
    used: set[str] = set()
    for number, (split, size) in enumerate(sizes.items()):
        tasks = [t for family in GYM_FAMILIES for t in _family(config, family, size, split, used)]
        if config.world_train_per_family:
            of_world = dict.fromkeys(WORLD_FAMILIES, config.world_train_per_family if split == "train" else size)
            if split == "train":
                of_world["one_hop"] = max(config.one_hop_train, of_world["one_hop"])
            tasks += [t for family, many in of_world.items() for t in world_tasks(config, family, many, split)]
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


def world_tasks(config: TaskBankConfig, family: str, size: int, split: Split) -> list[Task]:
    """Return `size` different questions about the world: what is asked, and the levels of the hops, take turns.

    Raises:
        ValueError: when the world has fewer.
    """
    if family == LONG_STORY:
        questions = config.story_questions if split == "train" else 1
        stories = (
            item_of_size(
                config.world,
                config.seed,
                index,
                BEGINNING,
                split,
                family=RECALLED[index % len(RECALLED)],
                lengthened_to=max(BEGINNING.sentences, config.story_sentences - 2 * (questions - 1)),
                num_questions=questions,
            )
            for index in count()
        )
        return [_long_story(config.seed, story) for story in islice(stories, size)]
    levels = [level for level, its in SIZES.items() if its.hops == HOPS[family]]
    made = [level_items(config.world, config.seed, level, -(-size // len(levels)), split) for level in levels]
    in_turn = [document for documents in zip(*made, strict=True) for document in documents]
    return [task for document in in_turn[:size] for task in as_tasks(config.seed, document, family)]


def as_tasks(seed: int, document: Document, family: str = "") -> list[Task]:
    """Return the questions of a document of the world as items of a family, or of what they ask ("where").

    Their generator names the document's key, from which `document_of` makes it again.
    """
    return [
        Task(
            family=family or asked.family,
            generator=f"{_WORLD}{document.key}",
            seed=seed,
            prompt=f"Question: {prompt}\nAnswer:",
            answer=asked.word,
            options=asked.options,
            answer_index=asked.options.index(asked.word),
            solution=asked.solution,
        )
        for prompt, asked in zip(prompts(document), document.questions, strict=True)
    ]


def _long_story(seed: int, story: Document) -> Task:
    """The last question about a story as an item; its prompt has the others with their answers."""
    *before, last = as_tasks(seed, story, LONG_STORY)
    told = f"Question: {story.story.text} "
    answered = [f"{task.prompt.removeprefix(told)} {task.answer}\nQuestion: " for task in before]
    return replace(last, prompt=f"{told}{''.join(answered)}{last.prompt.removeprefix(told)}")


def document_of(task: Task, world: WorldConfig) -> Document:
    """Return the document of a task about the world, made again with the settings that it was made with.

    Raises:
        ValueError: when the task is not about the world.
    """
    if not task.generator.startswith(_WORLD):
        raise ValueError(f"the task was made by {task.generator!r}, not by the world: no document is behind it")
    return from_key(world, task.seed, task.generator.removeprefix(_WORLD))


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
