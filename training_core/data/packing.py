"""Packed token streams: uint16 shards on disk, memory-mapped, with the extent and byte length of every document.

A split's stream is END_OF_TEXT doc END_OF_TEXT doc ...; the separator before a document belongs to the document.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.documents import SPLITS, read_jsonl, read_source_names, read_sources
from training_core.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from training_core.reporting import Reporter

_BATCH_CHARACTERS = 1 << 21


class PackingConfig(BaseModel):
    """Size of the shard files of a token stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_tokens: int = Field(2**27, ge=1024, description="Maximum tokens in one shard file (two bytes each)")


@dataclass(frozen=True, slots=True)
class Source:
    """The documents `first` .. `end` - 1 of a stream, which come from one source, its weight in training, its kind."""

    name: str
    weight: float
    first: int
    end: int
    kind: str = "files"


@dataclass(frozen=True, slots=True)
class TokenStream:
    """A memory-mapped split. `starts[d]` is document d's first token, `num_bytes[d]` its text's length in bytes.

    `sources` are in the order of their documents; none: the stream has one source without a name.
    """

    shards: tuple[NDArray[np.uint16], ...]
    starts: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    sources: tuple[Source, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all shards."""
        return sum(len(shard) for shard in self.shards)

    @classmethod
    def open(cls, folder: Path, split: str) -> TokenStream:
        """Memory-map a split of `write_stream`."""
        index = json.loads((folder / f"{split}.json").read_text())
        shards = tuple(np.memmap(folder / name, dtype=np.uint16, mode="r") for name in index["shards"])
        documents = np.load(folder / f"{split}.documents.npy", allow_pickle=False)
        return cls(shards, documents[0], documents[1], tuple(Source(**source) for source in index["sources"]))

    def span(self, source: Source) -> tuple[int, int]:
        """Return the first token of a source and the one after its last."""
        end = self.starts[source.end] if source.end < len(self.starts) else self.num_tokens
        return int(self.starts[source.first]), int(end)

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """Return the tokens start .. start + length - 1 of the concatenated shards."""
        pieces = []
        for shard in self.shards:
            if start < len(shard) and length > 0:
                piece = shard[start : start + length].astype(np.int64)
                pieces.append(piece)
                length -= len(piece)
                start = 0
            else:
                start -= len(shard)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def sample(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw windows of `length` tokens, (batch, length) int64, each from a source that is drawn by its weight.

        A window begins at a uniformly random position, or with the document there if that began less than `length`
        tokens before: what a short text says later follows from what it said first.

        Raises:
            ValueError: when a source is shorter than one window.
        """
        spans = [(0, self.num_tokens, 1.0)]
        if self.sources:
            spans = [(*self.span(source), source.weight) for source in self.sources]
        for first, end, _ in spans:
            if end - first < length:
                raise ValueError(
                    f"a window of {length} tokens does not fit a split of {end - first}: shorten seq_len or add text"
                )
        drawn = [0] * batch
        if len(spans) > 1:
            weights = torch.tensor([weight for *_, weight in spans], dtype=torch.float64)
            drawn = torch.multinomial(weights, batch, replacement=True, generator=generator).tolist()
        starts = [int(torch.randint(spans[i][0], spans[i][1] - length + 1, (1,), generator=generator)) for i in drawn]
        begun = self.starts[np.searchsorted(self.starts, starts, side="right") - 1].tolist()
        starts = [first if at - first < length else at for at, first in zip(starts, begun, strict=True)]
        return torch.from_numpy(np.stack([self.window(start, length) for start in starts]))


def write_stream(
    folder: Path,
    split: str,
    documents: Iterable[tuple[NDArray[np.uint16], int]],
    shard_tokens: int,
    sources: Sequence[Source] = (),
) -> int:
    """Write documents, given as (token ids, length of the text in bytes), and return the number of tokens."""
    names: list[str] = []
    starts: list[int] = []
    lengths: list[int] = []
    total = in_shard = 0
    file = None
    try:
        for ids, num_bytes in documents:
            starts.append(total)
            lengths.append(num_bytes)
            block = np.concatenate([np.array([END_OF_TEXT_ID], np.uint16), ids])
            total += len(block)
            while len(block):
                if file is None or in_shard == shard_tokens:
                    if file is not None:
                        file.close()
                    names.append(f"{split}-{len(names):05d}.bin")
                    file, in_shard = (folder / names[-1]).open("wb"), 0
                piece = block[: shard_tokens - in_shard]
                file.write(piece.tobytes())
                in_shard += len(piece)
                block = block[len(piece) :]
    finally:
        if file is not None:
            file.close()
    (folder / f"{split}.json").write_text(
        json.dumps({"shards": names, "tokens": total, "sources": [asdict(s) for s in sources]})
    )
    np.save(folder / f"{split}.documents.npy", np.array([starts, lengths], np.int64))
    return total


def pack_corpus(
    config: PackingConfig, corpus: Path, tokenizer_folder: Path, out: Path, reporter: Reporter
) -> dict[str, float]:
    """Encode every split of `corpus` with `tokenizer_folder/tokenizer.json` into shards under `out`.

    The tokenizer is copied beside the shards, because tokens are meaningless without it.
    """
    shutil.copyfile(tokenizer_folder / "tokenizer.json", out / "tokenizer.json")
    tokenizer = load_tokenizer((out / "tokenizer.json").read_text(encoding="utf-8"))
    result: dict[str, float] = {"vocab_size": tokenizer.get_vocab_size()}
    for number, split in enumerate(SPLITS):
        path = corpus / f"{split}.jsonl"
        sources = _sources(read_source_names(path), read_sources(corpus))
        documents = encode(tokenizer, read_jsonl(path, reporter, f"packing {split} (kB)"))
        result[f"tokens_{split}"] = write_stream(out, split, documents, config.shard_tokens, sources)
        reporter.progress(number + 1, len(SPLITS), "packing tokens")
    return result


def _sources(names: Iterable[str], described: Mapping[str, tuple[str, float]]) -> tuple[Source, ...]:
    """The runs of documents of one source."""
    runs: list[Source] = []
    for document, name in enumerate(names):
        if not runs or runs[-1].name != name:
            kind, weight = described[name]
            runs.append(Source(name, weight, document, document, kind))
        runs[-1] = replace(runs[-1], end=document + 1)
    return tuple(runs)


def encode(tokenizer: Tokenizer, texts: Iterable[str], batch: int = 512) -> Iterator[tuple[NDArray[np.uint16], int]]:
    """Yield the token ids and the byte length of every text. Memory: about 100 bytes for each of some 2^21 characters
    at a time, or of one text if it is longer."""
    pending: list[str] = []
    characters = 0

    def flush() -> Iterator[tuple[NDArray[np.uint16], int]]:
        for text, encoding in zip(pending, tokenizer.encode_batch(pending), strict=True):
            yield np.array(encoding.ids, np.uint16), len(text.encode())

    for text in texts:
        pending.append(text)
        characters += len(text)
        if len(pending) == batch or characters >= _BATCH_CHARACTERS:
            yield from flush()
            pending, characters = [], 0
    yield from flush()
