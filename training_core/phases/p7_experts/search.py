"""Multi-objective search over compositions of experts with NSGA-II, and a random search with as many evaluations.

References
    [1] Deb, Pratap, Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002).
    [2] Hu, Lu and Clune, "Automated Design of Agentic Systems" (2024, arXiv:2408.08435): a search over designs with an
        archive of all evaluations.

Every search asks for exactly population * generations evaluations; evaluations from the cache count as well. For each
seed, both methods start from the same population: the unadapted model, every expert alone, all experts together, and
random genomes. After each generation, all evaluations are saved in one file. An interrupted search is replayed from its
seed over this file, with the same version of pymoo, and continues.

**Differs from the paper** [2]: designs are vectors, not programs, and no language model proposes them.

Shape legend: P population, n genes, M objectives, C constraints, N compositions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training_core.evaluation.harm import EXPERTS
from training_core.phases.p7_experts.evaluator import OBJECTIVES, Evaluator, Latency, Measured, Status
from training_core.phases.p7_experts.genome import Composition, Space, Structure
from training_core.phases.p7_experts.nsga2 import Method, Nsga2, RandomSearch, pymoo_version, replay
from training_core.phases.p7_experts.pareto import Box, Floats, hypervolume, knee, non_dominated
from training_core.reporting import Figure, Reporter
from training_core.store.bundle import canonical_json
from training_core.store.checkpoint import load_checkpoint, save_checkpoint, tensors_digest, weights_digest

TEXT_BOX = (0.95, 1.05)  # range of bits per byte in the box, relative to the unadapted model
METHODS = ("nsga2", "random")
_STATUSES: tuple[Status, ...] = ("measured", "too slow", "raced out")
_CONSTRAINTS = 2


class SearchConfig(BaseModel):
    """Length of the search, and the data of an evaluation. The defaults give 5,000 evaluations per search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(50, ge=4, description="Compositions per generation")
    generations: int = Field(100, ge=1, description="Generations per search, including the first population")
    seeds: int = Field(3, ge=1, le=20, description="Number of searches with NSGA-II, and of random searches")
    seed: int = Field(0, ge=0, description="Seed of the first search; the others follow it")
    questions: int = Field(64, ge=1, description="Validation questions of all families per evaluation")
    windows: int = Field(4, ge=1, description="Windows of validation text per evaluation")
    window_tokens: int = Field(128, ge=2, description="Length to which these windows are truncated, in tokens")
    racing_share: float = Field(
        0.5, gt=0, le=1, description="Share of the questions after which a bad composition is dropped; 1 drops none"
    )
    latency_bound: float = Field(
        4.0, ge=1, description="Maximum latency per question, relative to one pass of the unadapted model"
    )
    latency_questions: int = Field(4, ge=1, description="Questions in a timed batch")
    latency_repeats: int = Field(5, ge=1, description="Number of timings, of which the median is used")


@dataclass(slots=True)
class Run:
    """The state of one search.

    `front` holds the codes of its non-dominated compositions, `hypervolumes` the hypervolume of all its compositions
    after every generation. `outcomes` counts evaluations by status, and `measured` those that were not cached.
    """

    method: str
    seed: int
    hypervolumes: list[float] = field(default_factory=list)
    front: list[list[int]] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    measured: int = 0

    @property
    def asked(self) -> int:
        """The number of evaluations that the search has asked for."""
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of all searches.

    `front` holds the compositions that none of any search dominates; `knee` is the one that is used, which may be the
    unadapted model.
    """

    runs: tuple[Run, ...]
    front: tuple[tuple[Composition, Measured], ...]
    knee: tuple[Composition, Measured]
    unadapted: tuple[Composition, Measured]
    box: Box
    latencies: Mapping[Structure, Latency]
    measured: int

    def differences(self) -> list[float]:
        """Return the final hypervolume of NSGA-II minus that of the random search, for each seed."""
        last = {(run.method, run.seed): run.hypervolumes[-1] for run in self.runs}
        return [value - last["random", seed] for (method, seed), value in last.items() if method == "nsga2"]

    def metrics(self) -> dict[str, float]:
        """Return hypervolumes, counts and the objectives of the knee as the flat metrics of a bundle."""
        differences = self.differences()
        asked = sum(run.asked for run in self.runs)
        values = {f"search_{method}_hypervolume": self._mean(method) for method in METHODS}
        return values | {
            "search_hypervolume_gain": sum(differences) / len(differences),
            "search_hypervolume_gain_lowest": min(differences),
            "search_evaluations": float(asked),
            "search_measured": float(self.measured),
            "search_front": float(len(self.front)),
            **{f"search_knee_{name}": value for name, value in zip(OBJECTIVES, _objectives(self.knee[1]), strict=True)},
        }

    def document(self) -> dict[str, Any]:
        """Return the result as JSON; `Composition.from_document` loads any point of the front."""
        return {
            "runs": [asdict(run) | {"asked": run.asked} for run in self.runs],
            "front": [_point(*point) for point in self.front],
            "knee": _point(*self.knee),
            "unadapted": _point(*self.unadapted),
            "box": self.box.document() | {"objectives": list(OBJECTIVES)},
            "latencies": _latencies(self.latencies),
            "differences": self.differences(),
            "measured": self.measured,
        }

    def figure(self) -> Figure:
        """Return a figure of the hypervolume by generation, averaged over seeds."""
        series: dict[str, tuple[list[float], list[float]]] = {}
        for method in METHODS:
            curves = np.array([run.hypervolumes for run in self.runs if run.method == method])
            series[method] = ([float(g + 1) for g in range(curves.shape[1])], curves.mean(0).tolist())
        return Figure("Search over compositions", "generation", "share of the box that is dominated", series)

    def _mean(self, method: str) -> float:
        return float(np.mean([run.hypervolumes[-1] for run in self.runs if run.method == method]))


def search(
    evaluator: Evaluator,
    config: SearchConfig,
    reporter: Reporter,
    checkpoint: Path | None = None,
    identity: str = "",
) -> SearchResult:
    """Search with NSGA-II and at random, for every seed.

    An interrupted search resumes from `checkpoint` after its last generation, with all evaluations and timings.
    `identity` is a digest of everything else that determines the result.

    Raises:
        ValueError: when the population is too small for its fixed first members.
    """
    space = evaluator.space
    progress = _Progress(evaluator, config, checkpoint, _fingerprint(evaluator, config, identity))
    unadapted = evaluator.evaluate(space.unadapted)
    box = _box(evaluator, unadapted)
    plan = [(m, config.seed + i) for i in range(config.seeds) for m in METHODS]
    for place, (name, seed) in enumerate(plan):
        method = _method(name, seed, space, config)
        run = progress.begin(place, method, Run(name, seed))
        label = f"search {place + 1} of {len(plan)}"
        total = config.population * config.generations
        for generation in range(len(run.hypervolumes), config.generations):
            evaluated: list[tuple[Composition, Measured]] = []
            before = len(evaluator.known)
            for genome in method.ask():
                composition = space.decode(genome.tolist())
                evaluated.append((composition, evaluator.evaluate(composition)))
                reporter.progress(run.asked + len(evaluated), total, label)
            method.tell(*_told([measured for _, measured in evaluated]))
            _record(run, evaluated, space, evaluator, box)
            run.measured += len(evaluator.known) - before
            values = {"hypervolume": run.hypervolumes[-1], "measured": float(run.measured)}
            reporter.metrics(generation, {f"search/{name}_{seed}_{key}": value for key, value in values.items()})
            progress.save()
    return _result(evaluator, tuple(progress.runs), unadapted, box)


def knee_of(
    front: Sequence[tuple[Composition, Measured]], unadapted: tuple[Composition, Measured]
) -> tuple[Composition, Measured]:
    """Return the `pareto.knee` of a front together with the unadapted model.

    Only points are allowed whose accuracy is not below the unadapted model's and whose bits per byte are at most 1 %
    above it. The unadapted model itself qualifies, so there always is a knee.
    """
    candidates = [*front, *([] if unadapted in front else [unadapted])]
    objectives = np.array([_objectives(measured) for _, measured in candidates])
    own = _objectives(unadapted[1])
    loss, text = OBJECTIVES.index("loss"), OBJECTIVES.index("bits_per_byte")
    allowed = (objectives[:, loss] <= own[loss]) & (objectives[:, text] <= EXPERTS.text_ratio * own[text])
    return candidates[knee(objectives, allowed.tolist(), candidates.index(unadapted))]


def starting_population(space: Space, population: int, seed: int) -> Floats:
    """Return genomes (P, n) of distinct compositions: unadapted, every expert alone, all together, then random ones.

    Raises:
        ValueError: when the population is too small for the fixed compositions.
    """
    known = [space.unadapted, *(space.alone(k) for k in range(space.num_experts)), space.together()]
    genomes = {composition: space.encode(composition) for composition in known}
    if population < len(genomes):
        raise ValueError(
            f"a population of {population} has no room for the {len(genomes)} compositions that a search of "
            f"{space.num_experts} experts begins with: raise search.population"
        )
    random = np.random.default_rng((seed, 0))
    while len(genomes) < population:
        genome = random.random(space.num_genes).tolist()
        genomes.setdefault(space.decode(genome), genome)
    return np.array(list(genomes.values()))


def _method(name: str, seed: int, space: Space, config: SearchConfig) -> Method:
    start = starting_population(space, config.population, seed)
    if name == "random":
        return RandomSearch(start, seed)

    def identity(genomes: Floats) -> Floats:
        return np.array([space.codes(space.decode(genome)) for genome in genomes.tolist()], dtype=np.float64)

    return Nsga2(space.num_genes, len(OBJECTIVES), _CONSTRAINTS, config.population, seed, start, identity)


def _told(evaluations: list[Measured]) -> tuple[Floats, Floats]:
    """Return objectives (P, M), NaN for infeasible compositions, and constraints (P, C)."""
    nothing = (float("nan"),) * len(OBJECTIVES)
    objectives = [nothing if one.objectives is None else one.objectives for one in evaluations]
    return np.array(objectives), np.array([one.constraints for one in evaluations])


def _record(
    run: Run, evaluated: list[tuple[Composition, Measured]], space: Space, evaluator: Evaluator, box: Box
) -> None:
    """Update the outcomes, the front and the hypervolumes of a search by one generation."""
    run.outcomes = dict(Counter(run.outcomes) + Counter(measured.status for _, measured in evaluated))
    known = [(space.of_codes(codes), codes) for codes in run.front]
    known += [(c, space.codes(c)) for c, measured in evaluated if measured.objectives is not None]
    objectives = np.array([_objectives(evaluator.known[composition]) for composition, _ in known])
    first = non_dominated(objectives)
    run.front = [known[i][1] for i in first]
    run.hypervolumes.append(hypervolume(objectives[first], box))


def _result(evaluator: Evaluator, runs: tuple[Run, ...], unadapted: Measured, box: Box) -> SearchResult:
    space = evaluator.space
    candidates = list(dict.fromkeys(space.of_codes(codes) for run in runs for codes in run.front))
    first = non_dominated(np.array([_objectives(evaluator.known[c]) for c in candidates]))
    front = [(candidates[i], evaluator.known[candidates[i]]) for i in first]
    own = (space.unadapted, unadapted)
    return SearchResult(runs, tuple(front), knee_of(front, own), own, box, evaluator.latencies, len(evaluator.known))


def _box(evaluator: Evaluator, unadapted: Measured) -> Box:
    """Return the box: all accuracies, latency up to the bound, bytes up to all experts, text within 5 %."""
    text = _objectives(unadapted)[OBJECTIVES.index("bits_per_byte")]
    most = float(evaluator.num_bytes(evaluator.space.together()))
    low, high = (share * text for share in TEXT_BOX)
    return Box((0.0, 0.0, 0.0, low), (1.0, evaluator.latency_bound, most, high))


class _Progress:
    """The searches so far, and their resume point."""

    def __init__(self, evaluator: Evaluator, config: SearchConfig, path: Path | None, fingerprint: str) -> None:
        self.evaluator, self.path, self.fingerprint = evaluator, path, fingerprint
        self.runs: list[Run] = []
        checkpoint = None if path is None else load_checkpoint(path, fingerprint)
        if checkpoint is not None:
            self._load(*checkpoint)

    def begin(self, place: int, method: Method, run: Run) -> Run:
        """Return the search at a place in the plan, as far as it has come, and replay `method` up to that point."""

        def known(genomes: Floats) -> tuple[Floats, Floats]:
            space, evaluator = self.evaluator.space, self.evaluator
            return _told([evaluator.evaluate(space.decode(genome)) for genome in genomes.tolist()])

        if place == len(self.runs):
            self.runs.append(run)
        elif place + 1 == len(self.runs):  # earlier searches are finished and need no replay
            replay(method, len(self.runs[place].hypervolumes), known)
        return self.runs[place]

    def save(self) -> None:
        """Write the resume point, with all evaluations, timings and searches."""
        if self.path is None:
            return
        space, known = self.evaluator.space, self.evaluator.known
        objectives, constraints = _told(list(known.values()))
        arrays = {
            "known.codes": np.array([space.codes(composition) for composition in known]),
            "known.status": np.array([_STATUSES.index(measured.status) for measured in known.values()]),
            "known.objectives": objectives,
            "known.constraints": constraints,
        }
        state = {
            "fingerprint": self.fingerprint,
            "runs": [asdict(run) for run in self.runs],
            "latencies": _latencies(self.evaluator.latencies),
        }
        save_checkpoint(self.path, {name: torch.from_numpy(array) for name, array in arrays.items()}, state)

    def _load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        space = self.evaluator.space
        self.runs = [Run(**run) for run in state["runs"]]
        self.evaluator.latencies.update(
            {Structure(*entry["structure"]): Latency(*entry["seconds"]) for entry in state["latencies"]}
        )
        columns = ("codes", "status", "objectives", "constraints")
        rows = zip(*(tensors[f"known.{column}"].tolist() for column in columns), strict=True)
        for codes, status, objectives, constraints in rows:
            values = tuple(objectives) if _STATUSES[status] == "measured" else None
            self.evaluator.known[space.of_codes(codes)] = Measured(_STATUSES[status], values, tuple(constraints))


def _fingerprint(evaluator: Evaluator, config: SearchConfig, identity: str) -> str:
    hasher = hashlib.sha256(canonical_json([config.model_dump(), evaluator.model.config.model_dump(), identity]))
    hasher.update(weights_digest(evaluator.model))
    given = evaluator.given
    experts = {f"{i}.{name}": t for i, e in enumerate(evaluator.experts) for name, t in e.tensors("").items()}
    hasher.update(tensors_digest({name: layer.weight for name, layer in evaluator.svf.layers.items()} | experts))
    asked = [evaluator.probabilities_QN, evaluator.text_probabilities_WN, given.inputs_WS, given.targets_WS]
    asked += [t for part in given.parts for _, rows in part.batches for t in (rows.inputs_BS, rows.mask_BS)]
    hasher.update(tensors_digest({str(place): tensor for place, tensor in enumerate(asked)}))
    with_versions = [evaluator.router_bytes, evaluator.latency_bound, given.tokens_per_byte, pymoo_version()]
    hasher.update(canonical_json(with_versions))
    return hasher.hexdigest()


def _latencies(latencies: Mapping[Structure, Latency]) -> list[dict[str, Any]]:
    return [{"structure": list(structure), "seconds": list(latency)} for structure, latency in latencies.items()]


def _objectives(measured: Measured) -> tuple[float, ...]:
    if measured.objectives is None:
        raise ValueError(f"a composition that is {measured.status!r} has no objectives: leave it out of the front")
    return measured.objectives


def _point(composition: Composition, measured: Measured) -> dict[str, Any]:
    return {"composition": composition.document(), **measured.document()}
