"""Training batches: windows of text and of tasks, mixed by configured shares, drawn from (seed, step).

Because a batch depends only on the seed and the step, a resumed run draws exactly the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training_core.data.packing import TokenStream, encode
from training_core.data.task_bank import FAMILIES, read_tasks
from training_core.data.tokenizer import END_OF_TEXT_ID, load_tokenizer


class MixConfig(BaseModel):
    """Shares of the training rows by source, normalised to sum to 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_share: float = Field(0.85, ge=0, description="Share of rows from the corpus")
    arithmetic_share: float = Field(0.05, ge=0, description="Share of rows from arithmetic tasks")
    logic_share: float = Field(0.05, ge=0, description="Share of rows from logic tasks")
    needle_share: float = Field(0.05, ge=0, description="Share of rows from needle tasks")
    one_hop_share: float = Field(0.0, ge=0, description="Share of rows from questions about the world with one hop")
    two_hops_share: float = Field(0.0, ge=0, description="Share of rows from such questions with two hops")
    three_hops_share: float = Field(0.0, ge=0, description="Share of rows from such questions with three hops")
    four_hops_share: float = Field(0.0, ge=0, description="Share of rows from such questions with four hops")
    long_story_share: float = Field(0.0, ge=0, description="Share of rows from questions about long stories")

    def shares(self) -> dict[str, float]:
        """Return the normalised share of each source.

        Raises:
            ValueError: when all shares are 0.
        """
        raw = {"text": self.text_share} | {f: float(getattr(self, f"{f}_share")) for f in FAMILIES}
        total = sum(raw.values())
        if total <= 0:
            raise ValueError("all shares of the data mix are 0: give at least one source a positive share")
        return {name: share / total for name, share in raw.items()}


TEXT_ONLY = MixConfig(text_share=1.0, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Token streams by source name, and the tokenizer they were encoded with."""

    streams: Mapping[str, TokenStream]
    tokenizer_json: str

    @classmethod
    def open(cls, tokens: Path, task_bank: Path, split: str = "train") -> TrainingData:
        """Memory-map the packed text of `split` and encode its tasks, nine of ten with their worked solution."""
        tokenizer_json = (tokens / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = load_tokenizer(tokenizer_json)
        streams = {"text": TokenStream.open(tokens, split)}
        tasks = list(read_tasks(task_bank, split))
        for family in dict.fromkeys(task.family for task in tasks):
            of_family = [task for task in tasks if task.family == family]
            texts = [task.text(worked=number % 10 > 0) for number, task in enumerate(of_family)]
            pieces = [np.concatenate([[END_OF_TEXT_ID], ids]) for ids, _ in encode(tokenizer, texts)]
            starts = np.cumsum([0] + [len(p) for p in pieces[:-1]])
            num_bytes = np.array([len(t.encode()) for t in texts], np.int64)
            flat = np.concatenate(pieces).astype(np.uint16)
            streams[family] = TokenStream((flat,), starts.astype(np.int64), num_bytes)
        return cls(streams, tokenizer_json)

    def batch(self, mix: MixConfig, rows: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw `rows` windows of `length` tokens, (rows, length) int64, each from a source chosen by its share.

        Raises:
            ValueError: when the bank has no task of a family that has a share.
        """
        shares = mix.shares()
        if missing := [name for name, share in shares.items() if share and name not in self.streams]:
            raise ValueError(
                f"the task bank has no {missing[0]} tasks: set mix.{missing[0]}_share to 0, or make the bank with "
                "world_train_per_family above 0"
            )
        names = list(shares)
        weights = torch.tensor([shares[name] for name in names], dtype=torch.float64)
        drawn = torch.multinomial(weights, rows, replacement=True, generator=generator)
        parts = []
        for index, name in enumerate(names):
            count = int((drawn == index).sum())
            if count:
                parts.append(self.streams[name].sample(count, length, generator))
        return torch.cat(parts)
