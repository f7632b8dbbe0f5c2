"""The frozen evaluation data: windows of whole held-out documents, tasks, and the n-gram model's sums on that text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from training_core.data.packing import TokenStream
from training_core.data.task_bank import (
    FAMILIES,
    GYM_FAMILIES,
    HOPS,
    LONG_STORY,
    WORLD_FAMILIES,
    Task,
    as_tasks,
    document_of,
    read_tasks,
)
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.counting import fit_stream
from training_core.evaluation.task_baselines import Outcomes, pair_baselines, world_baselines
from training_core.evaluation.windows import Windows, choose_documents, cut_windows
from training_core.reporting import Reporter
from training_core.store.bundle import canonical_json
from training_core.world.baselines import majorities
from training_core.world.config import WorldConfig
from training_core.world.minimal_pairs import PHENOMENA, MinimalPair, minimal_pairs, words_of

PAIR_SEED = 7
_COUNTED_TOKENS = 1_000_000  # of the training text, for the word frequencies beside minimal pairs


class SuiteConfig(BaseModel):
    """Size of the evaluation suite, and how models are run on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_tokens: int = Field(
        40_000, ge=1000, description="Maximum tokens of test documents that every model is evaluated on"
    )
    validation_tokens: int = Field(16_000, ge=1000, description="Maximum tokens of validation documents, for selection")
    window: int = Field(256, ge=8, description="Tokens in one evaluation window")
    batch_size: int = Field(16, ge=1, description="Windows in one forward pass")
    tasks_per_family: int = Field(60, ge=10, description="Items in each task family")
    latency_tokens: int = Field(48, ge=8, description="Tokens processed to measure latency")
    one_hop_tasks: int = Field(
        0,
        ge=0,
        description="Questions about the world with one hop, and as many about long stories, if it is a source of the "
        "text; 0: none about the world",
    )
    minimal_pairs: int = Field(
        0, ge=0, multiple_of=2, description="Pairs of sentences for each phenomenon of the world's grammar, likewise"
    )
    world_stories: int = Field(
        0, ge=0, description="Texts that each model writes and the world's grammar reads, likewise"
    )
    world: WorldConfig = Field(WorldConfig(), description="Settings of the world that the task bank asks about")


@dataclass(frozen=True, slots=True)
class Suite:
    """The suite read from disk.

    `counting` holds the `nats` and the `correct` predictions of the n-gram model for each test document; `sources` maps
    the name of a source to its test documents.
    """

    config: SuiteConfig
    test: Windows
    validation: Windows
    tasks: tuple[Task, ...]
    pairs: tuple[MinimalPair, ...]
    baselines: Outcomes
    counting: dict[str, Tensor]
    sources: dict[str, Tensor]
    digest: str


def make_suite(config: SuiteConfig, tokens: Path, task_bank: Path, out: Path, reporter: Reporter) -> dict[str, float]:
    """Select whole documents and tasks, measure the n-gram model, and write everything to `out`.

    Tasks about the world are left out where it is no source of the text: nothing was learned of it.

    Raises:
        ValueError: when the tasks are about a world with other settings than the suite's.
    """
    streams = {split: TokenStream.open(tokens, split) for split in ("train", "validation", "test")}
    arrays: dict[str, Tensor] = {}
    windows = {
        "test": cut_windows(streams["test"], config.test_tokens, config.window),
        "validation": cut_windows(streams["validation"], config.validation_tokens, config.window),
    }
    for split, cut in windows.items():
        arrays |= {f"{split}.{field}": value for field, value in _fields(cut).items()}
    reporter.progress(1, 2, "evaluation suite")
    tokenizer = load_tokenizer((tokens / "tokenizer.json").read_text(encoding="utf-8"))
    counted = fit_stream(streams["train"], tokenizer.get_vocab_size()).measure(windows["test"])
    arrays |= {f"counting.{name}": sums for name, sums in counted.items()}
    places = torch.tensor(choose_documents(streams["test"], config.test_tokens))
    sources = {s.name: ((places >= s.first) & (places < s.end)).nonzero()[:, 0] for s in streams["test"].sources}
    arrays |= {f"source.{name}": documents for name, documents in sources.items()}
    if all(source.kind != "world" for source in streams["test"].sources):
        config = config.model_copy(update={"one_hop_tasks": 0, "minimal_pairs": 0, "world_stories": 0})
    (out / "config.json").write_bytes(canonical_json(config.model_dump()))
    tasks = _choose_tasks(config, task_bank)
    _write_lines(out / "tasks.jsonl", tasks)
    baselines = _baselines_of_tasks(config.world, tasks, task_bank)
    if config.minimal_pairs:
        pairs = [p for name in PHENOMENA for p in minimal_pairs(config.world, PAIR_SEED, name, config.minimal_pairs)]
        _write_lines(out / "minimal_pairs.jsonl", pairs)
        read = streams["train"].window(0, min(streams["train"].num_tokens, _COUNTED_TOKENS)).tolist()
        baselines |= pair_baselines(pairs, Counter(words_of(tokenizer.decode(read))))
    arrays |= {f"baseline.{family}.{name}": o for family, of in baselines.items() for name, o in of.items()}
    save_file(arrays, out / "suite.safetensors")
    reporter.progress(2, 2, "evaluation suite")
    num_bytes = windows["test"].num_bytes.double()
    everything = {"": torch.arange(len(num_bytes))} | {f"_{name}": where for name, where in sources.items()}
    result = {
        f"counting_bits_per_byte{name}": float(counted["nats"][where].sum() / num_bytes[where].sum()) / math.log(2)
        for name, where in everything.items()
    }
    return result | {
        "test_documents": windows["test"].num_documents,
        "test_bytes": float(num_bytes.sum()),
        "validation_documents": windows["validation"].num_documents,
    }


def open_suite(folder: Path) -> Suite:
    """Read a suite of `make_suite`. Its digest identifies the evaluation data, tasks included."""
    import hashlib

    arrays = load_file(folder / "suite.safetensors")
    config = SuiteConfig.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    tasks = tuple(
        Task(**record | {"options": tuple(record["options"])}) for record in _read_lines(folder / "tasks.jsonl")
    )
    pairs = tuple(MinimalPair(**record) for record in _read_lines(folder / "minimal_pairs.jsonl"))
    hasher = hashlib.sha256()
    for name in ("suite.safetensors", "config.json", "tasks.jsonl", "minimal_pairs.jsonl"):
        hasher.update((folder / name).read_bytes() if (folder / name).exists() else b"")
    baselines: dict[str, dict[str, Tensor]] = {}
    for key, value in arrays.items():
        if key.startswith("baseline."):
            _, family, name = key.split(".")
            baselines.setdefault(family, {})[name] = value
    counting, sources = (
        {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        for prefix in ("counting.", "source.")
    )
    test, validation = (
        Windows(*(arrays[f"{split}.{f}"] for f in ("inputs", "targets", "documents", "num_bytes")))
        for split in ("test", "validation")
    )
    return Suite(config, test, validation, tasks, pairs, baselines, counting, sources, hasher.hexdigest())


def _check_world(world: WorldConfig, tasks: Sequence[Task]) -> None:
    """Raise ValueError when the first task about the world is not made again by a world with these settings."""
    for task in tasks:
        if task.family in WORLD_FAMILIES:
            if as_tasks(task.seed, document_of(task, world), task.family) != [task]:
                raise ValueError(
                    "the task bank asks about a world with other settings than evaluation_suite.world: give both the "
                    "same, task_bank.world and evaluation_suite.world"
                )
            return


def _choose_tasks(config: SuiteConfig, task_bank: Path) -> list[Task]:
    """The first test tasks of each family; none about the world where it is no source of the text."""
    found = list(read_tasks(task_bank, "test"))
    sizes = dict.fromkeys(GYM_FAMILIES, config.tasks_per_family)
    if config.one_hop_tasks:
        sizes |= dict.fromkeys(HOPS, config.tasks_per_family)
        sizes |= dict.fromkeys(("one_hop", LONG_STORY), config.one_hop_tasks)
    tasks = [t for family in FAMILIES for t in [t for t in found if t.family == family][: sizes.get(family, 0)]]
    _check_world(config.world, tasks)
    return tasks


def _baselines_of_tasks(world: WorldConfig, tasks: Sequence[Task], task_bank: Path) -> dict[str, Mapping[str, Tensor]]:
    asked = [task for task in tasks if task.family in WORLD_FAMILIES]
    if not asked:
        return {}
    trained_on = [task for task in read_tasks(task_bank, "train") if task.family in HOPS]
    return dict(world_baselines(asked, majorities([document_of(task, world) for task in trained_on])))


def _write_lines(path: Path, records: Sequence[Task] | Sequence[MinimalPair]) -> None:
    path.write_text("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _fields(windows: Windows) -> dict[str, Tensor]:
    return {
        "inputs": windows.inputs.contiguous(),
        "targets": windows.targets.contiguous(),
        "documents": windows.documents.contiguous(),
        "num_bytes": windows.num_bytes,
    }
