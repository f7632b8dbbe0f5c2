"""Bits per byte and next-token accuracy on held-out windows, accumulated per document."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training_core.evaluation.windows import Windows, per_document
from training_core.nn.cognate import Cognate


@dataclass(frozen=True, slots=True)
class DocumentCounts:
    """Sums per document: nats, correctly predicted tokens, tokens, bytes of text; all (documents,) float64."""

    nats: Tensor
    correct: Tensor
    tokens: Tensor
    num_bytes: Tensor
    mean_steps: float

    def bits_per_byte(self) -> float:
        """Return sum(nats) / ln 2 / sum(bytes), which is comparable across tokenizers."""
        return float(self.nats.sum() / self.num_bytes.sum()) / math.log(2)

    def accuracy(self) -> float:
        """Return the share of next tokens that the argmax predicts correctly."""
        return float(self.correct.sum() / self.tokens.sum())


@torch.no_grad()
def measure_windows(
    model: Cognate, windows: Windows, batch_size: int, progress: Callable[[int, int], None] | None = None
) -> DocumentCounts:
    """Run the model over all windows, halting included, and return its sums per document.

    Raises:
        ValueError: when the model's vocabulary is smaller than the windows' tokens need.
    """
    largest = max(int(windows.inputs.max()), int(windows.targets.max()))
    if largest >= model.config.vocab_size:
        raise ValueError(
            f"the evaluation suite has token {largest}, the model only {model.config.vocab_size}: it was made with "
            "another tokenizer; materialize the model again"
        )
    model.eval()
    device = next(model.buffers(), next(model.parameters(), torch.zeros(0))).device
    nats, correct, steps = [], [], []
    for start in range(0, windows.inputs.shape[0], batch_size):
        part = slice(start, start + batch_size)
        prediction = model(windows.inputs[part].to(device))
        targets = windows.targets[part].to(device)
        valid = targets >= 0
        logits = prediction.logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.clamp_min(0).flatten(), reduction="none")
        nats.append((loss.view(targets.shape) * valid).cpu())
        correct.append(((logits.argmax(-1) == targets) & valid).cpu())
        steps.append(prediction.steps.cpu()[valid.cpu()].double())
        if progress is not None:
            progress(min(start + batch_size, windows.inputs.shape[0]), windows.inputs.shape[0])
    tokens = per_document((windows.targets >= 0).double(), windows)
    return DocumentCounts(
        per_document(torch.cat(nats).double(), windows),
        per_document(torch.cat(correct).double(), windows),
        tokens,
        windows.num_bytes.double(),
        float(torch.cat(steps).mean()),
    )
