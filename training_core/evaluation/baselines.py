"""Count-based baselines: unigram and interpolated bigram models, which a trained model must beat."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training_core.data.packing import TokenStream
from training_core.evaluation.windows import Windows

INTERPOLATION_GRID = tuple(round(0.05 * k, 2) for k in range(1, 20))


def counting_baselines(train: TokenStream, validation: Windows, test: Windows) -> dict[str, Tensor]:
    """Return the nats of each test document under two models estimated from the training stream.

    unigram: p(b) = (c(b) + 1) / (N + V);  bigram (Jelinek & Mercer, 1980): w c(ab) / c(a) + (1 - w) p(b), where the
    weight w is selected on the validation windows.
    """
    tokens = train.window(0, train.num_tokens)
    vocab = int(max(tokens.max(), int(validation.inputs.max()), int(test.inputs.max()))) + 1
    counts = np.bincount(tokens, minlength=vocab)
    unigram = (counts + 1) / (len(tokens) + vocab)
    codes, pair_counts = np.unique(tokens[:-1] * vocab + tokens[1:], return_counts=True)

    def conditional(windows: Windows) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        valid = windows.targets.numpy() >= 0
        first, second = windows.inputs.numpy(), np.where(valid, windows.targets.numpy(), 0)
        wanted = first * vocab + second
        index = np.clip(np.searchsorted(codes, wanted), 0, len(codes) - 1)
        bigram_counts = np.where(codes[index] == wanted, pair_counts[index], 0)
        return bigram_counts / np.maximum(counts[first], 1), unigram[second], valid

    def nats(windows: Windows, weight: float) -> NDArray[np.float64]:
        pair, single, valid = conditional(windows)
        return np.where(valid, -np.log(weight * pair + (1 - weight) * single), 0.0)

    best = min(INTERPOLATION_GRID, key=lambda weight: float(nats(validation, weight).sum()))
    return {
        "unigram": per_document(torch.from_numpy(nats(test, 0.0)), test),
        "bigram": per_document(torch.from_numpy(nats(test, best)), test),
    }


def per_document(values: Tensor, windows: Windows) -> Tensor:
    """Sum values (windows, length) by document into (documents,) float64; padding is ignored."""
    owner = windows.documents.flatten()
    keep = owner >= 0
    sums = torch.zeros(windows.num_documents, dtype=torch.float64)
    return sums.index_add_(0, owner[keep], values.flatten()[keep].double())
