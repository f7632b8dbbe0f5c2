"""The pre-training loss: next-token cross-entropy with deep supervision, and halting trained on correctness."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.cognate import Carry, Cognate
from training_core.training.loop import StepResult

HALT_WEIGHT = 0.5


def next_token_objective(
    model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator
) -> StepResult:
    """Compute the loss of one supervision step of TRM (arXiv:2510.04871, figure 3): cross-entropy + 0.5 BCE(q,
    1[argmax is right]).

    `batch` is (batch, seq + 1) token ids. The returned carry is detached, because the next supervision step is a
    separate optimizer step. The halting target is the correctness of the *current* argmax for each token; q reads a
    detached y, so halting never affects the prediction.
    """
    cognate = cast(Cognate, model)
    inputs, targets = batch[:, :-1], batch[:, 1:]
    h = cognate.encode(inputs)
    after = cognate.supervise(h, carry if carry is not None else cognate.start(h))
    logits = cognate.logits(after.y).float()
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    correct = (logits.detach().argmax(-1) == targets).float()
    halting = F.binary_cross_entropy_with_logits(cognate.halt(after.y).float(), correct)
    metrics = {
        "cross_entropy": cross_entropy.detach(),
        "accuracy": correct.mean(),
        "halt_loss": halting.detach(),
    }
    loss = cross_entropy + HALT_WEIGHT * halting
    return StepResult(loss, logits, Carry(after.y.detach(), after.z.detach()), metrics)
