"""The evolutionary search on landscapes whose optimum is known and under noise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.merging_landscape import Fitness, Models, branched_models, quadratic
from training_core.phases.p2_evomerge import evolution, population
from training_core.phases.p2_evomerge.evolution import EvolutionConfig, EvolutionResult, evolve
from training_core.phases.p2_evomerge.methods import StateDict, task_vectors
from training_core.reporting import Figure, SilentReporter


def run(config: EvolutionConfig, fitness: Fitness | None = None) -> EvolutionResult:
    trunk, parents = branched_models()
    fitness = fitness or quadratic(trunk, parents, (0.6, 0.5, 0.3))
    return evolve(trunk, parents, fitness, config, SilentReporter())


# --- the search finds what it should ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_approaches_a_known_optimum_in_the_span_of_the_parents(seed: int) -> None:
    result = run(EvolutionConfig(generations=60, patience=60, seed=seed))
    best_parent = min(result.parents_bits_per_byte.values())
    # The optimum is 1. Of the best parent's excess less than a twentieth is left.
    assert 1.0 < result.champion_bits_per_byte < 1.0 + 0.05 * (best_parent - 1.0)
    trunk, parents = branched_models()
    assert quadratic(trunk, parents, (0.6, 0.5, 0.3))(result.champion, "") == result.champion_bits_per_byte


def test_mutation_alone_goes_beyond_the_first_population() -> None:
    """The optimum lies outside of the parents' convex hull: every initial merge is far from it."""
    trunk, parents = branched_models()
    result = run(EvolutionConfig(generations=60, patience=60), quadratic(trunk, parents, (1.2, 0.9, -0.4)))
    assert result.champion_bits_per_byte - 1 < 0.2 * (result.history[0].best - 1)


def test_nothing_is_gained_where_a_parent_is_the_optimum() -> None:
    trunk, parents = branched_models()
    result = run(EvolutionConfig(generations=4), quadratic(trunk, parents, (0.0, 1.0, 0.0)))
    assert result.champion_bits_per_byte == result.parents_bits_per_byte["memory"]
    assert all(torch.equal(result.champion[n], parents["memory"][n]) for n in trunk)
    assert result.lineage == "memory = parent"
    assert result.champion_settings == "memory"


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    noise=st.floats(0.0, 10.0),
    broken=st.integers(0, 3),
    diversity_floor=st.sampled_from([0.1, 10.0]),
)
def test_champion_is_never_worse_than_the_best_parent_on_any_landscape(
    seed: int, noise: float, broken: int, diversity_floor: float
) -> None:
    trunk, parents = branched_models(seed % 97)
    smooth = quadratic(trunk, parents, (0.6, 0.5, 0.3))
    generator = torch.Generator().manual_seed(seed)
    seen: list[float] = []

    def noisy(model: StateDict, settings_of: str) -> float:
        value = smooth(model, settings_of) + noise * float(torch.randn((), generator=generator))
        if len(seen) > 3 and int(torch.randint(4, (), generator=generator)) < broken:
            value = math.nan if len(seen) % 2 else math.inf
        seen.append(value)
        return value

    config = EvolutionConfig(generations=4, patience=2, seed=seed, diversity_floor=diversity_floor)
    result = evolve(trunk, parents, noisy, config, SilentReporter())
    assert result.champion_bits_per_byte <= min(result.parents_bits_per_byte.values())
    assert result.champion_bits_per_byte == min(value for value in seen if math.isfinite(value))
    assert list(result.parents_bits_per_byte.values()) == seen[:3]
    assert len(seen) == result.evaluations
    bests = [generation.best for generation in result.history]
    assert bests == sorted(bests, reverse=True)


# --- what the population is made of -------------------------------------------------------------------------


def collect(config: EvolutionConfig, fitness: Fitness | None = None) -> list[tuple[dict[str, torch.Tensor], str]]:
    trunk, parents = branched_models()
    measure = fitness or quadratic(trunk, parents, (0.6, 0.5, 0.3))
    seen: list[tuple[dict[str, torch.Tensor], str]] = []

    def recording(model: StateDict, settings_of: str) -> float:
        seen.append((population.copy_model(model), settings_of))
        return measure(model, settings_of)

    evolve(trunk, parents, recording, config, SilentReporter())
    return seen


def test_the_first_population_is_parents_binary_combinations_and_no_duplicates() -> None:
    trunk, parents = branched_models()
    seen = collect(EvolutionConfig(generations=0))
    assert len(seen) == 8
    for (model, settings_of), (name, parent) in zip(seen, parents.items(), strict=False):
        assert settings_of == name
        assert population.is_same_model(model, parent)
    for i, (a, _) in enumerate(seen):
        assert not any(population.is_same_model(a, b) for b, _ in seen[:i])
    # (0.6, 0.5, 0.3): "reasoning" is the fittest parent, so every merge runs with its settings.
    assert [settings_of for _, settings_of in seen[3:]] == ["reasoning"] * 5
    linear = {n: sum(p[n].double() for p in parents.values()) / 3 for n in ("embedding", "hidden", "gain")}
    for n, tensor in linear.items():
        torch.testing.assert_close(seen[7][0][n].double(), tensor, rtol=0, atol=2e-7)
    assert all(torch.equal(model["steps"], trunk["steps"]) for model, _ in seen)


def test_equal_first_merges_are_replaced_with_random_ones() -> None:
    """With parents on one ray, nothing dropped and nothing trimmed, several methods give the same model."""
    trunk = {"w": torch.zeros(4)}
    parents = {name: {"w": torch.full((4,), x)} for name, x in (("a", 1.0), ("b", 2.0))}
    seen: list[torch.Tensor] = []

    def measure(model: StateDict, _: str) -> float:
        seen.append(model["w"].clone())
        return 1.0

    config = EvolutionConfig(generations=0, density=1.0, drop_rate=0.0)
    evolve(trunk, parents, measure, config, SilentReporter())
    assert len({tuple(w.tolist()) for w in seen}) == len(seen) == 8


def test_random_merges_repeat_no_member_and_say_so_when_they_cannot() -> None:
    """Task vectors on disjoint axes: every TIES merge of both, whatever its weights, is their sum."""
    trunk = {"w": torch.zeros(2)}
    parents = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([0.0, 1.0])}}
    seen: list[tuple[float, ...]] = []

    def measure(model: StateDict, _: str) -> float:
        seen.append(tuple(model["w"].tolist()))
        return 1.0

    config = EvolutionConfig(population=60, elites=20, generations=0, density=1.0)
    evolve(trunk, parents, measure, config, SilentReporter())
    assert len(set(seen)) == len(seen) == 60
    smallest = {"w": torch.full((2,), 1e-45)}
    with pytest.raises(ValueError, match="the parents hardly differ"):
        evolve(trunk, {"a": smallest, "b": trunk}, measure, config, SilentReporter())


def test_the_fittest_of_elites_and_children_survive() -> None:
    trunk, parents = branched_models()
    measure = quadratic(trunk, parents, (0.6, 0.5, 0.3))
    values = [measure(model, name) for model, name in collect(EvolutionConfig(generations=1, diversity_floor=0.0))]
    survivors = sorted(sorted(values[:8])[:2] + values[8:])[:8]
    result = run(EvolutionConfig(generations=1, diversity_floor=0.0))
    assert result.history[1].best == survivors[0]
    assert result.history[1].mean == pytest.approx(sum(survivors) / 8, rel=1e-14)


def test_a_generation_is_six_mutants_in_the_span_and_two_merges_with_inherited_settings() -> None:
    trunk, parents = branched_models()
    vectors = task_vectors(trunk, list(parents.values()))
    measure = quadratic(trunk, parents, (0.6, 0.5, 0.3))
    seen = collect(EvolutionConfig(generations=1, diversity_floor=0.0))
    assert len(seen) == 16
    ranked = sorted(seen[:8], key=lambda pair: measure(*pair))
    for index, (mutant, settings_of) in enumerate(seen[8:14]):
        elite, elite_settings = ranked[index // 3]
        assert settings_of == elite_settings
        assert not population.is_same_model(mutant, elite)
        for n in ("embedding", "hidden"):
            step = (mutant[n].double() - elite[n].double()).reshape(-1)
            basis = torch.stack([v[n].double().reshape(-1) for v in vectors], dim=1)
            fitted = basis @ torch.linalg.lstsq(basis, step.unsqueeze(1)).solution.squeeze(1)
            assert float((step - fitted).abs().max()) < 1e-6  # float32 roundings of weights below 8
    losers = ranked[2:]
    for index, (_, settings_of) in enumerate(seen[14:]):
        fittest = min(losers[3 * index : 3 * index + 3], key=lambda pair: measure(*pair))
        assert settings_of == fittest[1]


# --- diversity, patience, every setting ---------------------------------------------------------------------


def test_a_collapsed_population_is_reseeded_and_a_diverse_one_is_not() -> None:
    never = run(EvolutionConfig(generations=5, diversity_floor=0.0))
    always = run(EvolutionConfig(generations=5, diversity_floor=10.0))
    assert never.evaluations == 8 + 5 * 8
    assert always.evaluations == 8 + 5 * (8 + 2)
    assert 0.0 < never.history[-1].diversity < never.history[0].diversity < 2.0
    floor = never.history[3].diversity + 1e-9
    sometimes = run(EvolutionConfig(generations=3, diversity_floor=floor))
    expected = sum(g.diversity < floor for g in never.history[1:4])
    assert 0 < expected < 3
    assert sometimes.evaluations == 8 + 3 * 8 + 2 * expected


def test_it_stops_after_patience_generations_without_improvement() -> None:
    trunk, parents = branched_models()
    at_parent = quadratic(trunk, parents, (1.0, 0.0, 0.0))
    result = run(EvolutionConfig(generations=50, patience=3), at_parent)
    assert len(result.history) == 1 + 3
    assert {generation.best for generation in result.history} == {1.0 + (at_parent(parents["reasoning"], "") - 1.0)}
    assert len(run(EvolutionConfig(generations=2, patience=3), at_parent).history) == 1 + 2


def test_every_setting_alone_changes_the_search() -> None:
    standard = EvolutionConfig(
        population=12, elites=4, generations=6, patience=3, diversity_floor=0.4, mutants_per_elite=3
    )
    trunk, parents = branched_models()
    measure = quadratic(trunk, parents, (0.6, 0.5, 0.3))

    def plateau(model: StateDict, settings_of: str) -> float:
        """Improves at first and then never again, so that patience matters."""
        return max(1.2, measure(model, settings_of))

    reference = run(standard, plateau)
    other = {
        "population": 13, "generations": 1, "elites": 3, "mutants_per_elite": 2, "mutation_scale": 0.2,
        "mutation_rate": 0.9, "density": 0.3, "drop_rate": 0.2, "diversity_floor": 0.0, "patience": 1,
        "seed": 5,
    }  # fmt: skip
    assert set(other) == set(EvolutionConfig.model_fields)
    for name, value in other.items():
        changed = run(EvolutionConfig(**(standard.model_dump() | {name: value})), plateau)
        assert changed.history != reference.history, name


# --- reporting and records ----------------------------------------------------------------------------------


class Recorder:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.done: list[tuple[int, int, str]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append((step, dict(values)))

    def progress(self, done: int, total: int, label: str) -> None:
        self.done.append((done, total, label))

    def figure(self, name: str, figure: Figure) -> None:
        raise AssertionError("no figure is made")


def test_every_generation_and_every_evaluation_is_reported() -> None:
    trunk, parents = branched_models()
    recorder = Recorder()
    config = EvolutionConfig(generations=3, diversity_floor=10.0)
    result = evolve(trunk, parents, quadratic(trunk, parents, (0.6, 0.5, 0.3)), config, recorder)
    assert [step for step, _ in recorder.steps] == [0, 1, 2, 3]
    assert [values["best_bits_per_byte"] for _, values in recorder.steps] == [g.best for g in result.history]
    assert [values["num_reseeded"] for _, values in recorder.steps] == [0.0, 2.0, 4.0, 6.0]
    assert recorder.done[0] == (1, 32, "merging")
    assert recorder.done[-1] == (38, 38, "merging")
    assert all(done <= total for done, total, _ in recorder.done)


def test_lineage_names_every_ancestor_once_before_it_is_used() -> None:
    result = run(EvolutionConfig(generations=12, patience=12))
    steps = dict(step.split(" = ", 1) for step in result.lineage.split("; "))
    assert len(steps) == len(result.lineage.split("; "))
    known: set[str] = set()
    for name, text in steps.items():
        operation, _, arguments = text.partition("(")
        assert operation == "parent" or operation == "mutate" or set(operation.split("+")) <= {
            "linear", "slerp", "ties", "dare",
        }  # fmt: skip
        for argument in arguments.rstrip(")").split(", ") if arguments else []:
            assert argument.split(" ")[0] in known
        known.add(name)
    assert {name for name, text in steps.items() if text == "parent"} <= {"reasoning", "memory", "speed"}


def test_a_diverged_candidate_is_ranked_last_and_counted() -> None:
    trunk, parents = branched_models()
    measure = quadratic(trunk, parents, (0.6, 0.5, 0.3))
    recorder = Recorder()

    def half_broken(model: StateDict, settings_of: str) -> float:
        if any(population.is_same_model(model, parent) for parent in parents.values()):
            return measure(model, settings_of)
        return math.nan

    result = evolve(trunk, parents, half_broken, EvolutionConfig(generations=1), recorder)
    assert recorder.steps[0][1]["num_diverged"] == 5.0
    assert result.champion_bits_per_byte == min(result.parents_bits_per_byte.values())
    assert all(math.isfinite(value) for _, values in recorder.steps for value in values.values())


# --- refusals -----------------------------------------------------------------------------------------------


def test_impossible_searches_are_refused() -> None:
    trunk, parents = branched_models()
    fitness = quadratic(trunk, parents, (0.6, 0.5, 0.3))
    config = EvolutionConfig(generations=1)

    def search(models: Models, measure: Fitness = fitness, settings_: EvolutionConfig = config) -> None:
        evolve(trunk, models, measure, settings_, SilentReporter())

    with pytest.raises(ValueError, match="at least 2 parents"):
        search({"reasoning": parents["reasoning"]})
    with pytest.raises(ValueError, match="3 parents and population 3"):
        search(parents, settings_=EvolutionConfig(population=3, elites=1, mutants_per_elite=2))
    with pytest.raises(ValueError, match="'reasoning' and 'twin' are equal"):
        search({**parents, "twin": population.copy_model(parents["reasoning"])})
    with pytest.raises(ValueError, match="is in only one of models 0 and 1"):
        search({"a": {"other": torch.ones(2)}, "b": parents["speed"]})
    with pytest.raises(ValueError, match="'reasoning' has no finite bits per byte"):
        search(parents, lambda model, name: math.nan)


@pytest.mark.parametrize(
    "values",
    [
        {"population": 8, "elites": 3, "mutants_per_elite": 3},  # 9 mutants
        {"population": 8, "elites": 1, "mutants_per_elite": 3},  # 5 merges of 7 losers
        {"population": 3, "elites": 2, "mutants_per_elite": 1},  # 1 loser
        {"mutation_scale": 0.0},
        {"mutation_rate": 1.5},
        {"density": 0.0},
        {"drop_rate": 1.0},
        {"patience": 0},
        {"unknown": 1},
    ],
)
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        EvolutionConfig(**values)  # type: ignore[arg-type]


def test_settings_are_frozen_flat_described_scalars() -> None:
    for name, field in EvolutionConfig.model_fields.items():
        assert field.annotation in (int, float), name
        assert field.description, name
    with pytest.raises(ValueError, match="frozen"):
        EvolutionConfig().seed = 1  # type: ignore[misc]
    assert evolution.NUM_RESEEDED == 2
