"""Windows of whole held-out documents, on which models and count-based baselines are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training_core.data.packing import Source, TokenStream
from training_core.data.tokenizer import END_OF_TEXT_ID

IGNORED = -1


@dataclass(frozen=True, slots=True)
class Windows:
    """Inputs and targets (windows, length); `documents` is the document of each target, IGNORED for padding."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor
    num_bytes: Tensor

    @property
    def num_documents(self) -> int:
        """Number of documents, each completely covered."""
        return self.num_bytes.shape[0]


def cut_windows(stream: TokenStream, max_tokens: int, length: int) -> Windows:
    """Cut windows from the first whole documents that fit `max_tokens`, of which each source gets its weight's share.

    Every token but the first is a target once.

    Raises:
        ValueError: when not even one document of a source fits.
    """
    chosen = choose_documents(stream, max_tokens)
    ends = np.append(stream.starts[1:], stream.num_tokens)
    pieces = [stream.window(int(stream.starts[d]), int(ends[d] - stream.starts[d])) for d in chosen]
    tokens = torch.from_numpy(np.concatenate(pieces))
    owner = torch.from_numpy(np.repeat(np.arange(len(chosen)), [len(piece) for piece in pieces]))
    total = len(tokens)
    num = -(-(total - 1) // length)
    pad = num * length - (total - 1)
    inputs = torch.nn.functional.pad(tokens[:-1], (0, pad), value=END_OF_TEXT_ID)
    targets = torch.nn.functional.pad(tokens[1:], (0, pad), value=IGNORED)
    documents = torch.nn.functional.pad(owner[1:], (0, pad), value=IGNORED)
    shape = (num, length)
    num_bytes = torch.from_numpy(stream.num_bytes[chosen].copy())
    return Windows(inputs.view(shape), targets.view(shape), documents.view(shape), num_bytes)


def choose_documents(stream: TokenStream, max_tokens: int) -> list[int]:
    """Return the documents that `cut_windows` cuts."""
    ends = np.append(stream.starts[1:], stream.num_tokens)
    sources = stream.sources or (Source("the corpus", 1.0, 0, len(stream.starts)),)
    total = sum(source.weight for source in sources)
    chosen: list[int] = []
    for source in sources:
        first, share = int(stream.starts[source.first]), int(max_tokens * source.weight / total)
        count = int((ends[source.first : source.end] - first <= share).sum())
        if count == 0:
            raise ValueError(
                f"no held-out document of {source.name} fits {share} tokens (the first has "
                f"{int(ends[source.first]) - first}): raise test_tokens or validation_tokens, or split long files into "
                "documents"
            )
        chosen += range(source.first, source.first + count)
    return chosen


def per_document(values: Tensor, windows: Windows) -> Tensor:
    """Sum values (windows, length) by document into (documents,) float64; padding is ignored."""
    owner = windows.documents.flatten()
    keep = owner >= 0
    sums = torch.zeros(windows.num_documents, dtype=torch.float64)
    return sums.index_add_(0, owner[keep], values.flatten()[keep].double())
