"""What an evolutionary search does with models: compare them, merge them by a method, mutate them.

A *method* is a pair interpolation x sparsification: linear or SLERP blends the participants, then DARE or
TIES merges the blend (which weighs as much as all participants together) and the participants on the trunk.
Either stage can be left out, not both.
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
    """A measured model; `settings` names the parent whose recursion and halting it runs with."""

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
        ValueError: for an unknown method, or as the merge formulas raise it.
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
    """W + sum_j c_j tau_j for every tensor W: a step in the span of the parents' task vectors tau_j.

    Every coefficient c_j of every tensor is drawn from N(0, scale^2) with probability `rate` and is 0
    otherwise; at least one is drawn, so that a mutant differs from its model.

    **Differs from** the usual mutation, independent noise on single weights. That moves a model of n weights
    in a random direction of n dimensions: near a minimum the expected loss rises by sigma^2 tr(H) / 2, and
    the chance of an improvement vanishes with n. The span has tensors x parents dimensions, and it is where
    models that share a trunk are linearly connected.
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
    """One of METHODS, all equally likely."""
    return METHODS[int(torch.randint(len(METHODS), (), generator=generator))]


def draw_weights(count: int, generator: torch.Generator) -> list[float]:
    """Weights that are uniform on the simplex (normalised exponential variables)."""
    weights = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    normalised: list[float] = (weights / weights.sum()).tolist()
    return normalised


def distance(a: StateDict, b: StateDict) -> float:
    """Euclidean distance over all floating-point tensors."""
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    norms = [torch.linalg.vector_norm(a[n] - b[n], dtype=torch.float64) for n in names]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def mean_pairwise_distance(models: Sequence[StateDict]) -> float:
    """The mean of `distance` over all pairs, and 0 for fewer than two models."""
    distances = [distance(a, b) for a, b in itertools.combinations(models, 2)]
    return sum(distances) / len(distances) if distances else 0.0


def is_same_model(a: StateDict, b: StateDict) -> bool:
    """Whether all tensors are equal, entry by entry."""
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def copy_model(model: StateDict) -> dict[str, torch.Tensor]:
    """Tensors that share no storage with those of `model`."""
    return {name: tensor.detach().clone() for name, tensor in model.items()}


def _slerp_all(models: Sequence[StateDict], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """SLERP of several models, one after the other: model k joins with t = w_k / (w_1 + ... + w_k)."""
    blend = copy_model(models[0])
    for index in range(1, len(models)):
        blend = slerp(blend, models[index], weights[index] / math.fsum(weights[: index + 1]))
    return blend
