"""Small models branched from a trunk, and a fitness whose optimum among their merges is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Models = dict[str, dict[str, torch.Tensor]]
Fitness = Callable[[Mapping[str, torch.Tensor], str], float]


def branched_models(seed: int = 0) -> tuple[dict[str, torch.Tensor], Models]:
    """Return a trunk and three parents around it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding": (6, 5), "hidden": (5, 5), "gain": ()}
    trunk = {n: torch.randn(s, generator=generator) for n, s in shapes.items()} | {"steps": torch.tensor(7)}
    parents = {
        parent: {
            n: t + torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
            for n, t in trunk.items()
        }
        for parent in ("reasoning", "memory", "speed")
    }
    return trunk, parents


def quadratic(trunk: Mapping[str, torch.Tensor], parents: Models, coefficients: tuple[float, ...]) -> Fitness:
    """Return the fitness 1 + |W - (W_0 + sum_j c_j tau_j)|^2 / mean_j |tau_j|^2."""
    names = [n for n in trunk if trunk[n].is_floating_point()]
    vectors = [{n: parent[n].double() - trunk[n].double() for n in names} for parent in parents.values()]
    target = {n: trunk[n].double() + sum(c * v[n] for c, v in zip(coefficients, vectors, strict=True)) for n in names}
    unit = sum(float(v[n].square().sum()) for v in vectors for n in v) / len(vectors)
    return lambda model, _: 1.0 + sum(float((model[n].double() - target[n]).square().sum()) for n in target) / unit
