"""Evolutionary search for a merge of models that branched from one trunk.

Searching over merges by measured fitness follows Sakana AI (Akiba et al. 2024, arXiv:2403.13187, "parameter
space"). Fitness is bits per byte as measured by the caller's callback: lower is fitter. With the default
settings, one generation does the following:

1. each of the 2 fittest of 8 individuals (*elites*) gets 3 mutants;
2. the 6 *losers* form 2 groups of 3 in rank order, and each group is merged by a randomly drawn method;
3. the 8 fittest of the 2 elites (which are not measured again) and the 8 children survive;
4. if the survivors' diversity is below the floor, the 2 least fit are replaced by random merges of the parents.

The champion is the fittest survivor. Because the parents are part of the first population and elites survive,
the champion is never worse than the best parent *on the callback's data*. Whether this generalises has to be
measured on held-out data.

**Differs from the paper**: Sakana's CMA-ES over DARE-TIES' densities and weights is replaced by the scheme
above. **Does not cover** layer-wise recombination and data-flow-space search.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from training_core.phases.p2_evomerge.evolution_state import fingerprint, read_checkpoint, write_checkpoint
from training_core.phases.p2_evomerge.methods import StateDict, check_compatible, task_vectors
from training_core.phases.p2_evomerge.population import (
    METHODS,
    Individual,
    copy_model,
    distance,
    draw_method,
    draw_weights,
    is_same_model,
    mean_pairwise_distance,
    merge_by_method,
    mutate,
)
from training_core.reporting import Reporter
from training_core.training import distributed
from training_core.training.device import best_device

NUM_RESEEDED = 2
_MAX_DRAWS = 100


class EvolutionConfig(BaseModel):
    """Settings of the search. Every field changes the result, so all of them identify a search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(
        8, ge=3, le=256, description="Models in each generation; must exceed the number of parents."
    )
    generations: int = Field(50, ge=0, le=10_000, description="Most generations to breed after the initial population.")
    elites: int = Field(2, ge=1, le=64, description="Fittest models that survive each generation and are mutated.")
    mutants_per_elite: int = Field(3, ge=0, le=64, description="Mutants that each elite produces per generation.")
    mutation_scale: float = Field(
        0.1,
        gt=0.0,
        le=10.0,
        description="Standard deviation of a mutation's coefficients, in units of a parent's task vector.",
    )
    mutation_rate: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="Probability that a mutation moves a given tensor along a given parent's task vector.",
    )
    density: float = Field(0.5, gt=0.0, le=1.0, description="Share of a task vector's entries that TIES keeps.")
    drop_rate: float = Field(0.5, ge=0.0, lt=1.0, description="Share of a task vector's entries that DARE drops.")
    diversity_floor: float = Field(
        0.1,
        ge=0.0,
        le=10.0,
        description="Re-seed the population when its mean pairwise distance, divided by the parents' mean distance "
        "to the trunk, falls below this.",
    )
    patience: int = Field(10, ge=1, le=10_000, description="Stop after this many generations without improvement.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every random draw.")

    @property
    def num_merged(self) -> int:
        """The number of children in each generation that are merges of losers."""
        return self.population - self.elites * self.mutants_per_elite

    @model_validator(mode="after")
    def _counts_fit_together(self) -> Self:
        losers = self.population - self.elites
        if losers < max(NUM_RESEEDED, 2 * self.num_merged) or self.num_merged < 0:
            raise ValueError(
                f"{self.population} models, {self.elites} elites and {self.mutants_per_elite} mutants each "
                f"leave {losers} losers for {self.num_merged} merges: there must be {NUM_RESEEDED} losers or "
                "more, two for each merge, and no more mutants than models; change one of the three"
            )
        return self


@dataclass(frozen=True, slots=True)
class Generation:
    """Statistics of the survivors of one generation; generation 0 is the initial population.

    `best` and `mean` are bits per byte; the mean excludes models that diverged (non-finite bits per byte).
    `diversity` is the mean pairwise distance of the remaining models before any re-seeding, in units of the
    parents' mean distance to the trunk.
    """

    best: float
    mean: float
    diversity: float


@dataclass(frozen=True, slots=True)
class EvolutionResult:
    """The fittest model found, the parent whose settings it runs with, and the course of the search."""

    champion: dict[str, torch.Tensor]
    champion_settings: str
    champion_bits_per_byte: float
    parents_bits_per_byte: dict[str, float]
    history: tuple[Generation, ...]
    lineage: str
    evaluations: int


def evolve(
    trunk: StateDict,
    parents: Mapping[str, StateDict],
    bits_per_byte: Callable[[StateDict, str], float],
    config: EvolutionConfig,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> EvolutionResult:
    """Search for the merge of `parents` with the lowest measured bits per byte.

    Args:
        trunk: the model that every parent was fine-tuned from; the origin of the task vectors.
        parents: at least two distinct models with the trunk's tensors, by name.
        bits_per_byte: measures a model under the settings (recursion, halting) of the named parent. A parent
            runs with its own settings, a mutant with those of its elite, a merge with those of its fittest
            participant. It must be deterministic, or a resumed search will not reproduce an uninterrupted one.
            A candidate with a non-finite result (a diverged model) gets infinite loss; a parent's result must
            be finite.
        checkpoint: the resume point, which holds the whole population and is replaced atomically after each
            generation. If it exists, the search resumes from it and its result is bit-identical to that of an
            uninterrupted search.

    Random draws come from a CPU generator seeded with (seed, generation). Under distributed training, the ranks
    share the evaluation of each generation.

    Raises:
        ValueError: when the models are incompatible, a parent's result is not finite, or the checkpoint is
            damaged or belongs to another search.
        OSError: when the checkpoint cannot be written.
    """
    search = _Search(trunk, parents, bits_per_byte, config, reporter)
    distributed.wait_for_all()
    resume_point = None if checkpoint is None or not checkpoint.exists() else checkpoint
    distributed.require_same(int(resume_point is not None), "whether there is a search to go on with", best_device())
    if resume_point is not None:
        search.restore(resume_point)
    else:
        search.found()
        search.save(checkpoint)
    while len(search.history) <= config.generations and search.stale() < config.patience:
        search.breed()
        search.save(checkpoint)
    return search.result()


class _Search:
    """The state of one search; `population` is sorted by fitness, fittest first."""

    def __init__(
        self,
        trunk: StateDict,
        parents: Mapping[str, StateDict],
        bits_per_byte: Callable[[StateDict, str], float],
        config: EvolutionConfig,
        reporter: Reporter,
    ) -> None:
        check_compatible([trunk, *parents.values()])
        if not 2 <= len(parents) < config.population:
            raise ValueError(
                f"evolution needs at least 2 parents and a larger population, got {len(parents)} parents and "
                f"population {config.population}"
            )
        for first, second in itertools.combinations(parents, 2):
            if is_same_model(parents[first], parents[second]):
                raise ValueError(f"parents {first!r} and {second!r} are equal; train them apart before merging them")
        self.trunk, self.config, self.reporter, self.measure = trunk, config, reporter, bits_per_byte
        self.parents = {name: copy_model(tensors) for name, tensors in parents.items()}
        self.task_vectors = task_vectors(trunk, list(parents.values()))
        self.radius = sum(distance(trunk, tensors) for tensors in parents.values()) / len(parents)
        self.parents_bits_per_byte: dict[str, float] = {}
        self.population: list[Individual] = []
        self.history: list[Generation] = []
        self.origins: dict[str, tuple[str, list[str]]] = {}  # individual -> how it was made, from whom
        self.evaluations = 0
        self.reseeded = 0

    def found(self) -> None:
        """Create generation 0: the parents, equal-weight merges of all parents by METHODS, then random merges."""
        generator = self._generator()
        founders = self._measured([_Candidate(name, t, name, "parent", []) for name, t in self.parents.items()])
        for parent in founders:
            if not math.isfinite(parent.bits_per_byte):
                raise ValueError(
                    f"parent {parent.name!r} has no finite bits per byte; retrain it, or fix the measurement"
                )
            self.parents_bits_per_byte[parent.name] = parent.bits_per_byte
        first: list[_Candidate] = []
        for method in METHODS[: self.config.population - len(founders)]:
            weights = [1.0 / len(founders)] * len(founders)
            tensors = self._merge(method, founders, weights, generator)
            others = [member.tensors for member in founders] + [candidate.tensors for candidate in first]
            if not any(is_same_model(tensors, other) for other in others):
                first.append(_merge_candidate(f"g0.{len(founders) + len(first)}", tensors, method, founders, weights))
        while len(founders) + len(first) < self.config.population:
            first.append(self._fresh_merge(f"g0.{len(founders) + len(first)}", [*founders, *first], generator))
        self.population = sorted([*founders, *self._measured(first)], key=_fitness)
        self._record(self._diversity())

    def breed(self) -> None:
        """Mutate the elites, merge the losers, keep the fittest, and re-seed the population if it has collapsed."""
        config, number, generator = self.config, len(self.history), self._generator()
        elites, losers = self.population[: config.elites], self.population[config.elites :]
        children: list[_Candidate] = []
        for elite in itertools.chain.from_iterable([elite] * config.mutants_per_elite for elite in elites):
            scale, rate, name = config.mutation_scale, config.mutation_rate, f"g{number}.{len(children)}"
            tensors = mutate(elite.tensors, self.task_vectors, scale, rate, generator)
            children.append(_Candidate(name, tensors, elite.settings, f"mutate({elite.name})", [elite.name]))
        for index in range(config.num_merged):
            start, stop = (len(losers) * i // config.num_merged for i in (index, index + 1))
            method, weights = draw_method(generator), draw_weights(stop - start, generator)
            tensors = self._merge(method, losers[start:stop], weights, generator)
            name = f"g{number}.{len(children)}"
            children.append(_merge_candidate(name, tensors, method, losers[start:stop], weights))
        self.population = sorted([*elites, *self._measured(children)], key=_fitness)[: config.population]
        diversity = self._diversity()
        if diversity < config.diversity_floor:
            del self.population[-NUM_RESEEDED:]
            fresh: list[_Candidate] = []
            for index in range(NUM_RESEEDED):
                name = f"g{number}.{len(children) + index}"
                fresh.append(self._fresh_merge(name, [*self.population, *fresh], generator))
            self.reseeded += NUM_RESEEDED
            self.population = sorted([*self.population, *self._measured(fresh)], key=_fitness)
        self._record(diversity)

    def stale(self) -> int:
        """Return the number of generations since the champion last improved."""
        best = [generation.best for generation in self.history]
        return len(best) - 1 - best.index(min(best))

    def result(self) -> EvolutionResult:
        champion = self.population[0]
        self.reporter.progress(self.evaluations, self.evaluations, "merging")
        return EvolutionResult(
            champion=copy_model(champion.tensors),
            champion_settings=champion.settings,
            champion_bits_per_byte=champion.bits_per_byte,
            parents_bits_per_byte=dict(self.parents_bits_per_byte),
            history=tuple(self.history),
            lineage=self._lineage(champion.name),
            evaluations=self.evaluations,
        )

    def save(self, path: Path | None) -> None:
        """Write the resume point to `path`, if one is given; only the first rank writes."""
        if path is None or not distributed.is_first():
            return
        state = {
            "members": [(member.name, member.settings, member.bits_per_byte) for member in self.population],
            "parents": self.parents_bits_per_byte,
            "history": [asdict(generation) for generation in self.history],
            "origins": self.origins,
            "evaluations": self.evaluations,
            "reseeded": self.reseeded,
        }
        write_checkpoint(path, self._fingerprint(), state, [member.tensors for member in self.population])

    def restore(self, path: Path) -> None:
        """Load the state of the search from the checkpoint at `path`."""
        state, models = read_checkpoint(path, self._fingerprint())
        for (name, settings, bits_per_byte), model in zip(state["members"], models, strict=True):
            tensors = {key: model[key].to(tensor.device) for key, tensor in self.trunk.items()}
            self.population.append(Individual(name, tensors, settings, bits_per_byte))
        self.parents_bits_per_byte = state["parents"]
        self.history = [Generation(**generation) for generation in state["history"]]
        self.origins = {name: (text, ancestors) for name, (text, ancestors) in state["origins"].items()}
        self.evaluations, self.reseeded = state["evaluations"], state["reseeded"]

    def _generator(self) -> torch.Generator:
        digest = hashlib.sha256(f"{self.config.seed}|{len(self.history)}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))

    def _measured(self, candidates: Sequence[_Candidate]) -> list[Individual]:
        """Measure the candidates, distributed over the ranks, and record their origins for the lineage."""
        planned = self.config.population * (self.config.generations + 1) + self.reseeded
        done = itertools.count(self.evaluations + 1, distributed.world_size())

        def measure(candidate: _Candidate) -> float:
            measured = float(self.measure(candidate.tensors, candidate.settings))
            self.reporter.progress(next(done), planned, "merging")
            return measured if math.isfinite(measured) else math.inf

        values = distributed.measured_by_all(measure, candidates, best_device())
        self.evaluations += len(candidates)
        for candidate in candidates:
            self.origins[candidate.name] = (candidate.origin, candidate.ancestors)
        return [Individual(c.name, c.tensors, c.settings, v) for c, v in zip(candidates, values, strict=True)]

    def _fresh_merge(
        self, name: str, others: Sequence[Individual | _Candidate], generator: torch.Generator
    ) -> _Candidate:
        """Return a merge with randomly drawn parents, method and weights that differs from all `others`."""
        parents = [Individual(n, t, n, self.parents_bits_per_byte[n]) for n, t in self.parents.items()]
        for _ in range(_MAX_DRAWS):
            count = int(torch.randint(2, len(parents) + 1, (), generator=generator))
            drawn = torch.randperm(len(parents), generator=generator)[:count].tolist()
            participants = [parents[index] for index in drawn]
            method, weights = draw_method(generator), draw_weights(count, generator)
            tensors = self._merge(method, participants, weights, generator)
            if not any(is_same_model(tensors, other.tensors) for other in others):
                return _merge_candidate(name, tensors, method, participants, weights)
        raise ValueError(f"{_MAX_DRAWS} random merges all equal a member of the population: the parents hardly differ")

    def _merge(
        self,
        method: tuple[str, str],
        participants: Sequence[Individual],
        weights: Sequence[float],
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        models = [participant.tensors for participant in participants]
        density, drop_rate = self.config.density, self.config.drop_rate
        return merge_by_method(
            method, self.trunk, models, weights, density=density, drop_rate=drop_rate, generator=generator
        )

    def _diversity(self) -> float:
        """Mean pairwise distance in units of the parents' mean distance to the trunk; diverged models are excluded."""
        alive = [member.tensors for member in self.population if math.isfinite(member.bits_per_byte)]
        return mean_pairwise_distance(alive) / self.radius

    def _record(self, diversity: float) -> None:
        finite = [m.bits_per_byte for m in self.population if math.isfinite(m.bits_per_byte)]
        generation = Generation(best=finite[0], mean=math.fsum(finite) / len(finite), diversity=diversity)
        self.history.append(generation)
        values = {
            "best_bits_per_byte": generation.best,
            "mean_bits_per_byte": generation.mean,
            "diversity": diversity,
            "num_diverged": float(len(self.population) - len(finite)),
            "num_reseeded": float(self.reseeded),
        }
        self.reporter.metrics(len(self.history) - 1, values)

    def _lineage(self, name: str) -> str:
        """Describe how `name` was made, ancestors first: "g0.3 = ...; g1.2 = mutate(g0.3)"."""
        # `origins` is in order of creation, so filtering it lists every ancestor before its descendants.
        needed, waiting = set[str](), [name]
        while waiting:
            current = waiting.pop()
            if current not in needed:
                needed.add(current)
                waiting.extend(self.origins[current][1])
        return "; ".join(f"{n} = {text}" for n, (text, _) in self.origins.items() if n in needed)

    def _fingerprint(self) -> str:
        return fingerprint(self.config, {"": self.trunk, **self.parents})


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that has not been measured yet, the parent whose settings it runs with, and its origin."""

    name: str
    tensors: dict[str, torch.Tensor]
    settings: str
    origin: str
    ancestors: list[str]


def _merge_candidate(
    name: str,
    tensors: dict[str, torch.Tensor],
    method: tuple[str, str],
    participants: Sequence[Individual],
    weights: Sequence[float],
) -> _Candidate:
    shares = ", ".join(f"{p.name} {w:.3f}" for p, w in zip(participants, weights, strict=True))
    origin = f"{'+'.join(part for part in method if part)}({shares})"
    settings = min(participants, key=_fitness).settings
    return _Candidate(name, tensors, settings, origin, [p.name for p in participants])


def _fitness(individual: Individual) -> float:
    return individual.bits_per_byte
