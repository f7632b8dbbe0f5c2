"""The frozen evaluation data: windows of whole held-out documents, tasks, and the n-gram model's sums on that text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from training_core.data.packing import TokenStream
from training_core.data.task_bank import FAMILIES, GYM_FAMILIES, WORLD_FAMILIES, Task, as_tasks, document_of, read_tasks
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.counting import fit_stream
from training_core.evaluation.windows import Windows, choose_documents, cut_windows
from training_core.reporting import Reporter
from training_core.store.bundle import canonical_json
from training_core.world.config import WorldConfig


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
    world_stories: int = Field(
        0,
        ge=0,
        description="Texts that each model writes and the world's grammar reads, if the world is a source of the text",
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
    vocab_size = load_tokenizer((tokens / "tokenizer.json").read_text(encoding="utf-8")).get_vocab_size()
    counted = fit_stream(streams["train"], vocab_size).measure(windows["test"])
    arrays |= {f"counting.{name}": sums for name, sums in counted.items()}
    places = torch.tensor(choose_documents(streams["test"], config.test_tokens))
    sources = {s.name: ((places >= s.first) & (places < s.end)).nonzero()[:, 0] for s in streams["test"].sources}
    arrays |= {f"source.{name}": documents for name, documents in sources.items()}
    save_file(arrays, out / "suite.safetensors")
    families = FAMILIES
    if all(source.kind != "world" for source in streams["test"].sources):
        families, config = GYM_FAMILIES, config.model_copy(update={"world_stories": 0})
    (out / "config.json").write_bytes(canonical_json(config.model_dump()))
    chosen = list(read_tasks(task_bank, "test"))
    of_family = {family: [task for task in chosen if task.family == family] for family in families}
    tasks = [task for family in families for task in of_family[family][: config.tasks_per_family]]
    _check_world(config.world, tasks)
    _write_tasks(out / "tasks.jsonl", tasks)
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
    tasks = _read_tasks(folder / "tasks.jsonl")
    hasher = hashlib.sha256()
    for name in ("suite.safetensors", "config.json", "tasks.jsonl"):
        hasher.update((folder / name).read_bytes())
    counting, sources = (
        {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        for prefix in ("counting.", "source.")
    )
    test, validation = (
        Windows(*(arrays[f"{split}.{f}"] for f in ("inputs", "targets", "documents", "num_bytes")))
        for split in ("test", "validation")
    )
    return Suite(config, test, validation, tasks, counting, sources, hasher.hexdigest())


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


def _write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    path.write_text("".join(json.dumps(asdict(t), ensure_ascii=False) + "\n" for t in tasks), encoding="utf-8")


def _read_tasks(path: Path) -> tuple[Task, ...]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(Task(**record | {"options": tuple(record["options"])}) for record in map(json.loads, lines))


def _fields(windows: Windows) -> dict[str, Tensor]:
    return {
        "inputs": windows.inputs.contiguous(),
        "targets": windows.targets.contiguous(),
        "documents": windows.documents.contiguous(),
        "num_bytes": windows.num_bytes,
    }
