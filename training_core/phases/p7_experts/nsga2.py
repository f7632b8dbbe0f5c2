"""Search methods with an ask-and-tell interface: NSGA-II, and random search.

Their state is not stored: an interrupted search is replayed from its seed over cached evaluations (`replay`).

Reference
    [1] Deb, Pratap, Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002),
        as implemented in pymoo: binary tournaments, simulated binary crossover, polynomial mutation.

Shape legend: P population, n genes, M objectives, C constraints.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from training_core.phases.p7_experts.pareto import PYMOO, Floats


class Method(Protocol):
    """A search method with an ask-and-tell interface."""

    def ask(self) -> Floats:
        """Return the next genomes to evaluate, (P, n)."""

    def tell(self, objectives_PM: Floats, constraints_PC: Floats) -> None:
        """Pass the objectives and constraints of the last genomes asked for; NaN where they were not measured."""


def replay(method: Method, generations: int, answer: Callable[[Floats], tuple[Floats, Floats]]) -> None:
    """Advance a new search by `generations`, with evaluations looked up by `answer`.

    All draws of a search come from its seed, so the same evaluations lead to the same genomes, bit for bit.
    """
    for _ in range(generations):
        method.tell(*answer(method.ask()))


def pymoo_version() -> str:
    """Return the installed version of pymoo; another version may draw different genomes from the same seed.

    Raises:
        ValueError: when pymoo is not installed.
    """
    try:
        return version("pymoo")
    except PackageNotFoundError as error:
        raise ValueError("NSGA-II is pymoo's, which is not installed: " + PYMOO) from error


class Nsga2:
    """pymoo's NSGA-II, one generation at a time; it equals `pymoo.optimize.minimize` draw for draw.

    `identity` maps equivalent genomes to equal vectors, and only one genome of each is kept. `start` (P, n) is the
    first population, which is drawn at random if not given.
    """

    def __init__(
        self,
        num_genes: int,
        num_objectives: int,
        num_constraints: int,
        population: int,
        seed: int,
        start: Floats | None = None,
        identity: Callable[[Floats], Floats] | None = None,
    ) -> None:
        """Raises:
        ValueError: when pymoo is not installed.
        """
        try:
            from pymoo.algorithms.moo.nsga2 import NSGA2  # type: ignore[import-untyped]
            from pymoo.core.duplicate import DefaultDuplicateElimination  # type: ignore[import-untyped]
            from pymoo.core.problem import Problem  # type: ignore[import-untyped]
            from pymoo.core.termination import NoTermination  # type: ignore[import-untyped]
        except ImportError as error:
            raise ValueError("NSGA-II is pymoo's, which is not installed: " + PYMOO) from error
        means = None if identity is None else lambda individuals: identity(individuals.get("X"))
        options: dict[str, Any] = {} if start is None else {"sampling": start}
        self._algorithm: Any = NSGA2(
            pop_size=population, eliminate_duplicates=DefaultDuplicateElimination(func=means), **options
        )
        self._problem = Problem(
            n_var=num_genes, n_obj=num_objectives, n_ieq_constr=num_constraints, xl=np.zeros(num_genes), xu=1.0
        )
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=seed)
        self._asked: Any = None
        self._population = population

    def ask(self) -> Floats:
        """Return the next genomes (P, n). If mating yields too few new ones, random genomes fill the population."""
        from pymoo.core.population import Population  # type: ignore[import-untyped]

        offspring = self._algorithm.ask()
        self._algorithm.termination.force_termination = False  # pymoo sets it when mating yields none
        offspring = Population.empty() if offspring is None else offspring
        missing = (self._population - len(offspring), self._problem.n_var)
        if missing[0]:
            offspring = Population.merge(offspring, Population.new(X=self._algorithm.random_state.random(missing)))
        self._asked = offspring
        genomes: Floats = offspring.get("X").astype(np.float64)
        return genomes

    def tell(self, objectives_PM: Floats, constraints_PC: Floats) -> None:
        """Pass the results of the last genomes asked for, from which the survivors are selected."""
        from pymoo.core.evaluator import Evaluator as Filler  # type: ignore[import-untyped]
        from pymoo.problems.static import StaticProblem  # type: ignore[import-untyped]

        Filler().eval(StaticProblem(self._problem, F=objectives_PM, G=constraints_PC), self._asked)
        self._algorithm.tell(infills=self._asked)


class RandomSearch:
    """Random search: the given first population, then genomes drawn uniformly."""

    def __init__(self, start: Floats, seed: int) -> None:
        self._start, self._begun = start, False
        self._random = np.random.default_rng((seed, 1))  # a different stream from that of the start

    def ask(self) -> Floats:
        """Return the first population, and uniformly drawn genomes (P, n) after that."""
        return self._random.random(self._start.shape) if self._begun else self._start

    def tell(self, objectives_PM: Floats, constraints_PC: Floats) -> None:
        """Ignore the results, which do not influence later draws."""
        self._begun = True
