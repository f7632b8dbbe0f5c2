"""The operators of the evolutionary search: mutation, merge methods, random draws, distances."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles.merging_landscape import branched_models
from training_core.phases.p2_evomerge import population
from training_core.phases.p2_evomerge.methods import task_vectors


def test_mutation_coefficients_have_the_scale_and_rate_asked_for() -> None:
    trunk = {f"t{i}": torch.zeros(2) for i in range(50)}
    vectors = [{n: torch.tensor([1.0, 0.0]) for n in trunk}, {n: torch.tensor([0.0, 1.0]) for n in trunk}]
    generator = torch.Generator().manual_seed(0)
    draws = [population.mutate(trunk, vectors, 0.3, 0.25, generator) for _ in range(40)]
    steps = torch.stack([draw[n] for draw in draws for n in trunk]).double().reshape(-1)
    count = steps.numel()  # 4000 coefficients
    drawn = steps[steps != 0]
    assert abs(drawn.numel() / count - 0.25) < 3 * math.sqrt(0.25 * 0.75 / count)
    assert abs(float(drawn.std()) - 0.3) < 3 * 0.3 / math.sqrt(2 * drawn.numel())
    assert abs(float(drawn.mean())) < 3 * 0.3 / math.sqrt(drawn.numel())


def test_a_tiny_mutation_rate_still_moves_exactly_one_coefficient() -> None:
    trunk, parents = branched_models()
    vectors = task_vectors(trunk, list(parents.values()))
    mutant = population.mutate(trunk, vectors, 0.1, 1e-9, torch.Generator().manual_seed(3))
    assert sum(not torch.equal(mutant[n], trunk[n]) for n in trunk) == 1


def test_weights_are_uniform_on_the_simplex() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([population.draw_weights(3, generator) for _ in range(4000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(4000))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18.
    assert float((draws.mean(0) - 1 / 3).abs().max()) < 3 * math.sqrt(1 / 18 / 4000)
    assert float((draws.var(0) * 18 - 1).abs().max()) < 0.1
    methods = {population.draw_method(generator) for _ in range(200)}
    assert methods == set(population.METHODS)


def test_merge_by_method_composes_the_stages() -> None:
    trunk = {"w": torch.tensor([0.0, 0.0])}
    models = [
        {"w": torch.tensor([2.0, 0.0])},
        {"w": torch.tensor([0.0, 4.0])},
        {"w": torch.tensor([0.0, 4.0])},
    ]

    def merged(interpolation: str, sparsification: str, drop_rate: float = 0.0) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        result = population.merge_by_method(
            (interpolation, sparsification), trunk, models, [1.0, 0.5, 0.5],
            density=1.0, drop_rate=drop_rate, generator=generator,
        )  # fmt: skip
        return result["w"].tolist()

    assert merged("linear", "") == [1.0, 2.0]
    assert merged("", "dare") == [1.0, 2.0]
    assert merged("linear", "dare") == [1.0, 2.0]  # the blend, weight 2, and the models, weights 2 together
    assert merged("", "ties") == [2.0, 4.0]  # disjoint means
    assert merged("linear", "ties") == pytest.approx([(2 * 1 + 1 * 2) / 3, (2 * 2 + 1 * 4) / 3])
    # slerp: t = 1/3 of a quarter turn, then t = 1/4 towards (0, 4)
    first = [2 * math.sin(math.pi / 3), 4 * math.sin(math.pi / 6)]
    theta = math.acos(first[1] / math.hypot(*first))
    turn = [math.sin(0.75 * theta) / math.sin(theta), math.sin(0.25 * theta) / math.sin(theta)]
    slerped = [turn[0] * first[0], turn[0] * first[1] + turn[1] * 4]
    assert merged("slerp", "") == pytest.approx(slerped, rel=1e-6)
    assert merged("slerp", "dare") == pytest.approx([(slerped[0] + 1) / 2, (slerped[1] + 2) / 2], rel=1e-6)
    assert merged("", "dare", 0.5) != [1.0, 2.0]
    with pytest.raises(ValueError, match="a merge method is one of"):
        merged("", "")


def test_mean_pairwise_distance_by_hand() -> None:
    models = [{"a": torch.tensor([x, 0.0]), "b": torch.tensor([y])} for x, y in ((0.0, 0.0), (3.0, 4.0), (3.0, 0.0))]
    assert population.mean_pairwise_distance(models) == (5.0 + 3.0 + 4.0) / 3
    assert population.mean_pairwise_distance(models[:1]) == 0.0
