"""A small real data set, made by the project's own data functions from a few hundred generated sentences."""

from __future__ import annotations

import json
import random
from pathlib import Path

from training_core.data.corpus import build_corpus
from training_core.data.documents import CorpusConfig, SourceConfig, read_jsonl
from training_core.data.packing import PackingConfig, pack_corpus
from training_core.data.task_bank import TaskBankConfig, make_task_bank
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.evaluation.held_out import SuiteConfig, make_suite
from training_core.reporting import SilentReporter

SUBJECTS = [
    "The river",
    "A small town",
    "The old empire",
    "This species",
    "The first engine",
    "Her second novel",
]
VERBS = [
    "was founded near",
    "is known for",
    "was described by",
    "lies between",
    "was replaced with",
    "borders",
]
OBJECTS = [
    "the northern hills",
    "several writers",
    "a narrow valley",
    "the eastern coast",
    "two larger cities",
]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return `count` documents of four to nine random sentences each."""
    draw = random.Random(seed)

    def sentence() -> str:
        year = f" in {draw.randint(1500, 1999)}" if draw.random() < 0.5 else ""
        return f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}{year}."

    return [" ".join(sentence() for _ in range(draw.randint(4, 9))) for _ in range(count)]


def folders_in(root: Path) -> dict[str, Path]:
    """The folder of every data asset below `root`."""
    return {name: root / name for name in ("corpus", "tokenizer", "tokens", "task_bank", "evaluation_suite")}


def make_small_data(root: Path, documents: int = 500) -> dict[str, Path]:
    """Make every data asset below `root` and return their folders."""
    source = root / "source.jsonl"
    source.write_text("\n".join(json.dumps({"text": t}) for t in sentences(documents)))
    config = CorpusConfig(
        sources=[SourceConfig(paths=[str(source)], min_characters=20)], validation_fraction=0.1, test_fraction=0.2
    )
    suite = SuiteConfig(
        test_tokens=5000,
        validation_tokens=3000,
        window=64,
        batch_size=8,
        tasks_per_family=10,
        latency_tokens=8,
    )
    return make_data(root, config, suite)


TASKS = TaskBankConfig(train_per_family=60, held_out_per_family=20)


def make_data(root: Path, config: CorpusConfig, suite: SuiteConfig, tasks: TaskBankConfig = TASKS) -> dict[str, Path]:
    """Make the data assets of a corpus, a bank of tasks and a suite below `root` and return their folders."""
    folders = folders_in(root)
    for folder in folders.values():
        folder.mkdir(parents=True)
    reporter = SilentReporter()
    build_corpus(config, root, folders["corpus"], reporter)
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=320), read_jsonl(folders["corpus"] / "train.jsonl"))
    tokenizer.save(str(folders["tokenizer"] / "tokenizer.json"))
    pack_corpus(PackingConfig(shard_tokens=5000), folders["corpus"], folders["tokenizer"], folders["tokens"], reporter)
    make_task_bank(tasks, folders["task_bank"], reporter)
    make_suite(suite, folders["tokens"], folders["task_bank"], folders["evaluation_suite"], reporter)
    return folders


SHAPE = {
    "d_model": 32, "num_layers": 3, "num_core_layers": 2, "num_heads": 2, "d_ff": 48, "window": 16, "max_seq_len": 64,
    "memory_layers": [0], "memory_rank": 8, "memory_chunk": 16,
}  # fmt: skip
TRAINING = {"batch_size": 4, "seq_len": 64, "checkpoint_interval_s": 0.0}
