"""The straight-through estimator (Bengio et al., 2013, arXiv:1308.3432): value of one tensor, gradient of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, soft: Tensor, hard: Tensor) -> Tensor:
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """Return the value of `hard`, bit for bit, with the gradient of `soft`; both have the same shape."""
    out: Tensor = _StraightThrough.apply(soft, hard)  # type: ignore[no-untyped-call]
    return out
