"""Windows of whole held-out documents, on which models and count-based baselines are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training_core.data.packing import TokenStream
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
    """Cut windows from the first whole documents that fit `max_tokens`; every token but the first is a target once.

    Raises:
        ValueError: when not even one document fits.
    """
    ends = np.append(stream.starts[1:], stream.num_tokens)
    count = int((ends <= max_tokens).sum())
    if count == 0:
        raise ValueError(
            f"no held-out document fits {max_tokens} tokens (the first has {int(ends[0])}): raise test_tokens or "
            "validation_tokens, or split long files into documents"
        )
    total = int(ends[count - 1])
    tokens = torch.from_numpy(stream.window(0, total))
    owner = torch.from_numpy(np.repeat(np.arange(count), np.diff(np.append(stream.starts[:count], total))))
    num = -(-(total - 1) // length)
    pad = num * length - (total - 1)
    inputs = torch.nn.functional.pad(tokens[:-1], (0, pad), value=END_OF_TEXT_ID)
    targets = torch.nn.functional.pad(tokens[1:], (0, pad), value=IGNORED)
    documents = torch.nn.functional.pad(owner[1:], (0, pad), value=IGNORED)
    shape = (num, length)
    num_bytes = torch.from_numpy(stream.num_bytes[:count].copy())
    return Windows(inputs.view(shape), targets.view(shape), documents.view(shape), num_bytes)


def per_document(values: Tensor, windows: Windows) -> Tensor:
    """Sum values (windows, length) by document into (documents,) float64; padding is ignored."""
    owner = windows.documents.flatten()
    keep = owner >= 0
    sums = torch.zeros(windows.num_documents, dtype=torch.float64)
    return sums.index_add_(0, owner[keep], values.flatten()[keep].double())
