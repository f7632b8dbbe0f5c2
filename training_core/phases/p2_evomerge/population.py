"""Operations of the evolutionary search on models: comparing, merging by a method, and mutating them.

A *method* is a pair (interpolation, sparsification): linear or SLERP blends the participants, then DARE or
TIES merges the blend (weighted as much as all participants together) with the participants, relative to the
trunk. Either stage can be left out, but not both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from training_core.phases.p2_evomerge.methods import StateDict, dare, linear, slerp, ties

# (interpolation, sparsification): the four binary combinations first.
METHODS = (
    ("linear", "dare"),
    ("linear", "ties"),
    ("slerp", "dare"),
    ("slerp", "ties"),
    ("linear", ""),
    ("slerp", ""),
    ("", "ties"),
    ("", "dare"),
)


@dataclass(frozen=True, slots=True)
class Individual:
    """A model with its measured fitness; `settings` names the parent whose recursion and halting it runs with."""

    name: str
    tensors: dict[str, torch.Tensor]
    settings: str
    bits_per_byte: float


def merge_by_method(
    method: tuple[str, str],
    trunk: StateDict,
    models: Sequence[StateDict],
    weights: Sequence[float],
    *,
    density: float,
    drop_rate: float,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Merge `models` by one of METHODS.

    Raises:
        ValueError: for an unknown method, or from the merge formulas.
    """
    if method not in METHODS:
        raise ValueError(f"a merge method is one of {METHODS}, got {method}")
    interpolation, sparsification = method
    if interpolation:
        blend = linear(models, weights) if interpolation == "linear" else _slerp_all(models, weights)
        if not sparsification:
            return blend
        models, weights = [blend, *models], [math.fsum(weights), *weights]
    if sparsification == "ties":
        return ties(trunk, models, weights, density)
    return dare(trunk, models, weights, drop_rate, generator)


def mutate(
    model: StateDict,
    task_vectors: Sequence[Mapping[str, torch.Tensor]],
    scale: float,
    rate: float,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Return W + sum_j c_j tau_j for every tensor W: a step in the span of the parents' task vectors tau_j.

    Each coefficient c_j of each tensor is drawn from N(0, scale^2) with probability `rate` and is 0 otherwise.
    At least one is drawn, so that a mutant always differs from `model`.

    **Differs from** the usual mutation, which adds independent noise to every weight. That moves a model of n
    weights in a random direction in n dimensions: near a minimum the expected loss rises by sigma^2 tr(H) / 2,
    and the probability of an improvement vanishes as n grows. The span has only tensors x parents dimensions,
    and within it models that share a trunk are linearly connected.
    """
    names = list(task_vectors[0])
    shape = (len(names), len(task_vectors))
    chosen = torch.rand(shape, generator=generator) < rate
    if not chosen.any():
        chosen.view(-1)[int(torch.randint(chosen.numel(), (), generator=generator))] = True
    steps = torch.randn(shape, generator=generator, dtype=torch.float64) * scale * chosen
    mutant = copy_model(model)
    for name, row in zip(names, steps.tolist(), strict=True):
        for vector, step in zip(task_vectors, row, strict=True):
            if step != 0.0:
                mutant[name] = (mutant[name] + step * vector[name]).to(mutant[name].dtype)
    return mutant


def draw_method(generator: torch.Generator) -> tuple[str, str]:
    """Draw one of METHODS uniformly."""
    return METHODS[int(torch.randint(len(METHODS), (), generator=generator))]


def draw_weights(count: int, generator: torch.Generator) -> list[float]:
    """Draw weights uniformly from the simplex (as normalised exponential variables)."""
    weights = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    normalised: list[float] = (weights / weights.sum()).tolist()
    return normalised


def distance(a: StateDict, b: StateDict) -> float:
    """Return the Euclidean distance between two models over all floating-point tensors."""
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    norms = [torch.linalg.vector_norm(a[n] - b[n], dtype=torch.float64) for n in names]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def mean_pairwise_distance(models: Sequence[StateDict]) -> float:
    """Return the mean of `distance` over all pairs of models, or 0 for fewer than two models."""
    distances = [distance(a, b) for a, b in itertools.combinations(models, 2)]
    return sum(distances) / len(distances) if distances else 0.0


def is_same_model(a: StateDict, b: StateDict) -> bool:
    """Return whether all tensors are equal, entry by entry."""
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def copy_model(model: StateDict) -> dict[str, torch.Tensor]:
    """Return a copy of `model` that shares no storage with it."""
    return {name: tensor.detach().clone() for name, tensor in model.items()}


def _slerp_all(models: Sequence[StateDict], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Blend several models by successive SLERP: model k is blended in with t = w_k / (w_1 + ... + w_k)."""
    blend = copy_model(models[0])
    for index in range(1, len(models)):
        blend = slerp(blend, models[index], weights[index] / math.fsum(weights[: index + 1]))
    return blend
