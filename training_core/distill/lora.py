"""Low-rank adapters (LoRA: Hu et al., 2021, arXiv:2106.09685, eq. 3), applied inside the layer's weight.

    W = W0 + (alpha / rank) B A,      A (rank, in) Kaiming-uniform,  B (out, rank) zero at the start

Only A and B are trained. An adapter is a parametrisation of `weight`, so the layer sees the sum wherever it uses its
weight: a ternary layer ternarises W0 + (alpha / rank) B A, and merging into the latent weight preserves the trained
function exactly.

**Differs from peft**, which computes x W0^T + (alpha / rank) x A^T B^T. On a dense layer the two are equal. On a
ternary layer peft adds a full-precision branch to the product with ternary weights, and the branch cannot be merged
into the latents, because ternarising the sum gives a different function from the one that was trained.

**Differs from the paper**: every hidden linear layer is adapted, not only the attention's query and value, and there
is no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from training_core.nn.ternary_cognate import KEPT_PRECISE


class LowRank(nn.Module):
    """The parametrisation W0 -> W0 + scale * B A of a weight (out, in)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        a = torch.empty(rank, columns)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        self.A = nn.Parameter(a.to(weight))
        self.B = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight W (out, in) for W0 (out, in)."""
        return weight + self.scale * (self.B @ self.A)  # eq. 3


def hidden_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers to adapt, by name: those that `make_ternary` converts, and their ternary forms."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in KEPT_PRECISE)
    }


@contextmanager
def low_rank(
    model: nn.Module,
    rank: int,
    alpha: float,
    generator: torch.Generator,
    layers: Mapping[str, nn.Module] | None = None,
) -> Iterator[list[LowRank]]:
    """Train only adapters of `rank` within the context; on exit merge them, or discard them after an error.

    `layers` are the layers to adapt, by name; None means all hidden linear layers. `rank` 0 changes nothing. On exit
    the parameters have their former names, identities and `requires_grad`. Do not freeze the model or copy it for
    inference within the context.

    Raises:
        ValueError: when the rank exceeds what a matrix can have, or the model has no layer to adapt.
    """
    if rank == 0:
        yield []
        return
    adapted = hidden_linears(model) if layers is None else layers
    if not adapted:
        raise ValueError("the model has no hidden linear layer to adapt: set rank to 0")
    weights = {name: cast(Tensor, layer.weight) for name, layer in adapted.items()}
    name, narrowest = min(weights.items(), key=lambda item: min(item[1].shape))
    if rank > min(narrowest.shape):
        raise ValueError(
            f"rank = {rank} exceeds what {name}.weight of shape {tuple(narrowest.shape)} can have: lower it, or "
            "set it to 0 to train all weights"
        )
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in trained:
        parameter.requires_grad_(False)
    adapters = [LowRank(weight, rank, alpha, generator) for weight in weights.values()]
    for layer, adapter in zip(adapted.values(), adapters, strict=True):
        parametrize.register_parametrization(layer, "weight", adapter)
    finished = False
    try:
        yield adapters
        finished = True
    finally:
        for layer in adapted.values():
            merged = cast(Tensor, layer.weight).detach().clone()
            # Restore the original parameter and copy into it, so that optimizers and tied modules keep referring to it.
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            if finished:
                with torch.no_grad():
                    cast(Tensor, layer.weight).copy_(merged)
        for parameter, flag in trained.items():
            parameter.requires_grad_(flag)
