"""Searches that are asked for genomes and told what they gave: NSGA-II, and a random one.

Neither is stored: an interrupted search is replayed from its seed over what was measured before (`replay`).

Reference
    [1] Deb, Pratap, Agarwal and Meyarivan, "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002),
        as pymoo has it: binary tournaments, simulated binary crossover, polynomial mutation.

Shape legend: P population, n genes, M objectives, C constraints.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from training_core.phases.p7_experts.pareto import PYMOO, Floats


class Method(Protocol):
    """A search that is asked for genomes and told what they gave."""

    def ask(self) -> Floats:
        """The next genomes (P, n)."""

    def tell(self, objectives_PM: Floats, constraints_PC: Floats) -> None:
        """Objectives and constraints of the genomes that were asked for last, NaN where they were not measured."""


def replay(method: Method, generations: int, answer: Callable[[Floats], tuple[Floats, Floats]]) -> None:
    """Bring a new search to where it was behind so many generations. `answer` looks up what genomes gave.

    A search draws from its seed alone, so that the same answers lead to the same genomes, bit for bit.
    """
    for _ in range(generations):
        method.tell(*answer(method.ask()))


def pymoo_version() -> str:
    """The installed version of pymoo: another one may draw other genomes from the same seed.

    Raises:
        ValueError: when pymoo is not installed.
    """
    try:
        return version("pymoo")
    except PackageNotFoundError as error:
        raise ValueError("NSGA-II is pymoo's, which is not installed: " + PYMOO) from error


class Nsga2:
    """pymoo's NSGA-II one generation at a time. What it does is what `pymoo.optimize.minimize` does, draw for draw.

    `identity` gives vectors that are equal for genomes that mean the same: of them, one lives. `start` (P, n) is the
    first population; without it that is drawn.
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
        """The next genomes (P, n). Where mating finds too few that mean something new, random ones fill the rest."""
        from pymoo.core.population import Population  # type: ignore[import-untyped]

        found = self._algorithm.ask()
        self._algorithm.termination.force_termination = False  # set where it found none
        found = Population.empty() if found is None else found
        missing = (self._population - len(found), self._problem.n_var)
        if missing[0]:
            found = Population.merge(found, Population.new(X=self._algorithm.random_state.random(missing)))
        self._asked = found
        genomes: Floats = found.get("X").astype(np.float64)
        return genomes

    def tell(self, objectives_PM: Floats, constraints_PC: Floats) -> None:
        """Let the fittest survive."""
        from pymoo.core.evaluator import Evaluator as Filler  # type: ignore[import-untyped]
        from pymoo.problems.static import StaticProblem  # type: ignore[import-untyped]

        Filler().eval(StaticProblem(self._problem, F=objectives_PM, G=constraints_PC), self._asked)
        self._algorithm.tell(infills=self._asked)


class RandomSearch:
    """Genomes drawn uniformly, after a first population."""

    def __init__(self, start: Floats, seed: int) -> None:
        self._start, self._begun = start, False
        self._random = np.random.default_rng((seed, 1))  # not the numbers of the start

    def ask(self) -> Floats:
        """The next genomes (P, n)."""
        return self._random.random(self._start.shape) if self._begun else self._start

    def tell(self, objectives_PM: Floats, constraints_PC: Floats) -> None:
        """Learn nothing."""
        self._begun = True
