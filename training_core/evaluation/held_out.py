"""The frozen evaluation data: windows of whole held-out documents, tasks, and the n-gram model's sums on that text."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.packing import TokenStream
from training_core.data.task_bank import FAMILIES, Task, read_tasks
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.counting import fit_stream
from training_core.evaluation.task_baselines import Outcomes, pair_baselines, world_baselines
from training_core.evaluation.windows import Windows, choose_documents, cut_windows
from training_core.reporting import Reporter
from training_core.store.bundle import canonical_json
from training_core.world.baselines import majorities
from training_core.world.config import SIZES, Split, WorldConfig
from training_core.world.documents import Document
from training_core.world.minimal_pairs import PHENOMENA, MinimalPair, minimal_pairs, words_of
from training_core.world.tasks import as_tasks, level_items

HOPS = {1: "one_hop", 2: "two_hops", 3: "three_hops", 4: "four_hops"}
WORLD_SEED = 7
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
    tasks_per_family: int = Field(60, ge=10, description="Multiple-choice items in each task family")
    latency_tokens: int = Field(48, ge=8, description="Tokens processed to measure latency")
    world_tasks: int = Field(
        0, ge=0, description="Questions for each number of hops, 1 to 4, if the generated world is a source of the text"
    )
    minimal_pairs: int = Field(
        0, ge=0, multiple_of=2, description="Pairs of sentences for each phenomenon of the world's grammar, likewise"
    )
    world_stories: int = Field(
        0, ge=0, description="Texts that each model writes and the world's grammar reads, likewise"
    )
    world: WorldConfig = Field(WorldConfig(), description="Settings of the world that the questions are about")


@dataclass(frozen=True, slots=True)
class Suite:
    """The suite read from disk.

    `counting` holds the `nats` and the `correct` predictions of the n-gram model for each test document; `sources` maps
    the name of a source to its test documents; `baselines` the families of the world, among them `answered_...` for
    generated answers and the phenomena of `pairs`, to the outcomes of rules without understanding on each item.
    """

    config: SuiteConfig
    test: Windows
    validation: Windows
    tasks: tuple[Task, ...]
    world_tasks: tuple[Task, ...]
    pairs: tuple[MinimalPair, ...]
    baselines: Outcomes
    counting: dict[str, Tensor]
    sources: dict[str, Tensor]
    digest: str


def make_suite(config: SuiteConfig, tokens: Path, task_bank: Path, out: Path, reporter: Reporter) -> dict[str, float]:
    """Select whole documents and tasks, measure the n-gram model, and write everything to `out`."""
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
    if all(source.kind != "world" for source in streams["test"].sources):  # nothing was learned of the world
        config = config.model_copy(update={"world_tasks": 0, "minimal_pairs": 0, "world_stories": 0})
    (out / "config.json").write_bytes(canonical_json(config.model_dump()))
    chosen = list(read_tasks(task_bank, "test"))
    of_family = {family: [task for task in chosen if task.family == family] for family in FAMILIES}
    tasks = [t for family in FAMILIES for t in of_family[family][: config.tasks_per_family]]
    _write_lines(out / "tasks.jsonl", tasks)
    baselines = _ask_about_the_world(config, streams["train"], tokenizer, out)
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
    tasks, about_world = (_read_tasks(folder / name) for name in ("tasks.jsonl", "world_tasks.jsonl"))
    pairs = tuple(MinimalPair(**record) for record in _read_lines(folder / "minimal_pairs.jsonl"))
    hasher = hashlib.sha256()
    for name in ("suite.safetensors", "config.json", "tasks.jsonl", "world_tasks.jsonl", "minimal_pairs.jsonl"):
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
    return Suite(config, test, validation, tasks, about_world, pairs, baselines, counting, sources, hasher.hexdigest())


def world_tasks(world: WorldConfig, count: int) -> list[Task]:
    """Return `count` test questions about the world for each number of hops: families `one_hop` to `four_hops`.

    Their contents were met in no training text. The levels of a number of hops take turns.
    """
    return [
        replace(task, family=HOPS[item.questions[0].hops])
        for item in _items(world, count, "test")
        for task in as_tasks(WORLD_SEED, item)
    ]


def _items(world: WorldConfig, count: int, split: Split) -> list[Document]:
    found: list[Document] = []
    for hops in HOPS:
        levels = [level for level, size in SIZES.items() if size.hops == hops]
        for place, level in enumerate(levels):
            share = count // len(levels) + (place < count % len(levels))
            found += level_items(world, WORLD_SEED, level, share, split)
    return found


def _ask_about_the_world(config: SuiteConfig, training: TokenStream, tokenizer: Tokenizer, out: Path) -> Outcomes:
    """Write questions and minimal pairs of the world, and return the outcomes of their baselines."""
    baselines: dict[str, Mapping[str, Tensor]] = {}
    if config.world_tasks:
        tasks = world_tasks(config.world, config.world_tasks)
        _write_lines(out / "world_tasks.jsonl", tasks)
        baselines |= world_baselines(tasks, majorities(_items(config.world, config.world_tasks, "train")))
    if config.minimal_pairs:
        pairs = [p for name in PHENOMENA for p in minimal_pairs(config.world, WORLD_SEED, name, config.minimal_pairs)]
        _write_lines(out / "minimal_pairs.jsonl", pairs)
        read = training.window(0, min(training.num_tokens, _COUNTED_TOKENS)).tolist()
        baselines |= pair_baselines(pairs, Counter(words_of(tokenizer.decode(read))))
    return baselines


def _write_lines(path: Path, records: Sequence[Task] | Sequence[MinimalPair]) -> None:
    path.write_text("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _read_tasks(path: Path) -> tuple[Task, ...]:
    return tuple(Task(**record | {"options": tuple(record["options"])}) for record in _read_lines(path))


def _fields(windows: Windows) -> dict[str, Tensor]:
    return {
        "inputs": windows.inputs.contiguous(),
        "targets": windows.targets.contiguous(),
        "documents": windows.documents.contiguous(),
        "num_bytes": windows.num_bytes,
    }
