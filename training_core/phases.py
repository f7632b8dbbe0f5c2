"""What a phase is, what it is given and what it makes, independent of who runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel

from training_core.bundle import Bundle
from training_core.sandbox import Sandbox
from training_core.training.reporting import Reporter

DATA = ("tokens", "task_bank", "evaluation_suite")

# Opens a sandbox for model-written programs that was probed first, with the metrics of that probe.
OpenSandbox = Callable[[], AbstractContextManager[tuple[Sandbox, Mapping[str, float]]]]


@dataclass(frozen=True, slots=True)
class Product:
    """A finished model, ready to be written as a bundle (`training_core.bundle.write_bundle`).

    `tensors` is None for a compressed model, `payload` is None for a plain one. `metrics` holds what only the
    phase itself can measure (for instance a merge's gain over its best parent); the evaluation suite adds the
    rest. `exhibits` are what the phase shows to a person besides numbers: a name to a JSON document, which is
    kept beside the measurements (`training_core.bundle.Bundle.exhibits`).
    """

    kind: str
    model_config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] | None
    tokenizer_json: str
    payload: bytes | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    exhibits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the evaluation suite measured on a bundle as it lies on disk.

    `metrics` are flat scalars, `tasks` maps a task family to its scores, `counts` holds per-document counts
    so that two models can be compared on the same documents.
    """

    metrics: Mapping[str, float]
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PhaseRun:
    """What a phase's function is given.

    `checkpoint` is a folder that survives a kill and is shared by a run and its retries. `sandbox` is for the phases
    whose models write programs.
    """

    parents: Mapping[str, Bundle]
    data: Mapping[str, Path]
    reporter: Reporter
    checkpoint: Path
    profile: str
    sandbox: OpenSandbox | None = None


class Measure(Protocol):
    """Measures a bundle on the evaluation suite in `suite`; `parents` are what it is compared with."""

    def __call__(
        self, bundle: Bundle, suite: Path, parents: Mapping[str, Bundle], reporter: Reporter
    ) -> Measurement: ...


def measure_bundle(bundle: Bundle, suite: Path, parents: Mapping[str, Bundle], reporter: Reporter) -> Measurement:
    """Measure on the shared evaluation suite (`training_core.evaluation.suite.measure_bundle`)."""
    from training_core.evaluation import suite as evaluation

    return evaluation.measure_bundle(bundle, suite, parents, reporter)


@dataclass(frozen=True, slots=True)
class Phase:
    """One model of the graph: what it is made from, and by which function.

    name: of the model, and of its asset. number: 1 to 8, as in the graph. description: for a reader, in one sentence.
    compute: makes the model; `config` is the class of its configuration.
    parents: models, whose gates must be open. data: data assets, among them the evaluation `suite`.
    code: modules whose source makes the code version; that of the evaluation is always a part of it.
    parallel: whether several processes can share the work (`training_core.training.ranks`).
    module: where a worker process finds the phase, in `PHASES`.

    Raises:
        ValueError: when the suite is not among the data.
    """

    name: str
    number: int
    description: str
    config: type[BaseModel]
    compute: Callable[[PhaseRun, Any], Product]
    code: tuple[str, ...]
    parents: tuple[str, ...] = ()
    data: tuple[str, ...] = DATA
    suite: str = "evaluation_suite"
    measure: Measure = measure_bundle
    parallel: bool = False
    module: str = "training_core.graph"

    def __post_init__(self) -> None:
        if self.suite not in self.data:
            raise ValueError(f"data must include {self.suite!r}, on which the model is measured, got {self.data}")

    def sources(self) -> list[str]:
        """The modules whose source decides what is made and measured."""
        judge = "training_core.evaluation" if self.measure is measure_bundle else self.measure.__module__
        return [*self.code, judge]
