"""The definition of a phase, its inputs and its product, independent of what runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel
from tokenizers import Tokenizer
from torch import nn

from training_core.data.batches import TrainingData
from training_core.data.task_bank import Task, read_tasks
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.held_out import Suite, open_suite
from training_core.evaluation.suite import Measurement, measure_bundle
from training_core.evaluation.windows import Windows
from training_core.gates import Gate
from training_core.record import Record, record
from training_core.reporting import Reporter, SilentReporter
from training_core.store.bundle import Bundle, Product, canonical_json
from training_core.store.checkpoint import tensors_digest, weights_digest
from training_core.store.result_cache import ResultCache
from training_core.tasks.result import SandboxResult
from training_core.tasks.sandbox import Sandbox, SandboxUnavailableError

DATA = ("tokens", "task_bank", "evaluation_suite")
CONTROLS = "controls"
TITLES = {
    1: "cognate",
    2: "evomerge",
    3: "quiet_star",
    4: "bitnet",
    5: "curriculum",
    6: "baking",
    7: "experts",
    8: "compression",
}
NO_SANDBOX = (
    "this phase runs programs that the model wrote, and no sandbox was given: name one, for instance "
    "--sandbox forge_resources.sandbox:probed_sandbox where agent-forge is installed"
)
Kind = Literal["cognate", "ternary", "compressed"]

# Opens a sandbox for model-written programs and yields it with the metrics of its conformance probe.
OpenSandbox = Callable[[], AbstractContextManager[tuple[Sandbox, Mapping[str, float]]]]
# A part of the product that a phase fixes before it may read test data: weights, tensors, a file, or a JSON document.
Fixed = nn.Module | Mapping[str, torch.Tensor] | bytes | Mapping[str, Any] | Sequence[Any] | str | float | None


class SealedDataError(RuntimeError):
    """Test data was read before the product was fixed, or the product changed after that."""


@dataclass(frozen=True, slots=True)
class SelectionData:
    """Validation data, on which every choice of a phase is based."""

    text: Windows


@dataclass(frozen=True, slots=True)
class ReportData:
    """Test data, on which a phase's product is evaluated. It is available after `PhaseContext.fix`.

    `sources` maps the name of a source to its documents in `text`.
    """

    text: Windows
    tasks: Sequence[Task]
    sources: Mapping[str, torch.Tensor]


class PhaseContext:
    """The inputs of a phase: parents, data and a reporter. Data is opened lazily.

    parents: opened bundles by name. folders: data assets by name.
    checkpoint: a folder that survives a kill and is shared by a run and its retries; None disables resume points.
    sandbox: runs model-written programs, for phases that have any.
    data, suite: used instead of those in `folders` if given.

    Validation and test data are separate: `selection` is always available, `report` only after the product is fixed.
    Phases that ask questions use a `tasks.questions.context.QuestionContext`.
    """

    def __init__(
        self,
        *,
        parents: Mapping[str, Bundle] | None = None,
        folders: Mapping[str, Path] | None = None,
        reporter: Reporter | None = None,
        checkpoint: Path | None = None,
        sandbox: Sandbox | None = None,
        data: TrainingData | None = None,
        suite: Suite | None = None,
    ) -> None:
        self.parents: Mapping[str, Bundle] = parents if parents is not None else {}
        self.reporter: Reporter = reporter if reporter is not None else SilentReporter()
        self.checkpoint = checkpoint
        self._sandbox = sandbox
        self._folders = folders if folders is not None else {}
        self._data_given, self._suite_given = data, suite
        self._fixed: tuple[Fixed, ...] | None = None
        self._fixed_digest = b""

    @cached_property
    def training(self) -> TrainingData:
        """The training text and tasks, with the tokenizer that encoded them."""
        if self._data_given is not None:
            return self._data_given
        return TrainingData.open(self._folder("tokens"), self._folder("task_bank"))

    @cached_property
    def tasks(self) -> list[Task]:
        """The training tasks as text."""
        return list(read_tasks(self._folder("task_bank"), "train"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the training data."""
        return load_tokenizer(self.training.tokenizer_json)

    @property
    def batch_size(self) -> int:
        """The number of windows of held-out text per forward pass."""
        return self._suite.config.batch_size

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox in which model-written programs run.

        Raises:
            SandboxUnavailableError: when there is no sandbox, because such programs never run on the host.
        """
        if self._sandbox is None:
            raise SandboxUnavailableError(NO_SANDBOX)
        return self._sandbox

    @cached_property
    def selection(self) -> SelectionData:
        """The validation data, always available."""
        return SelectionData(self._suite.validation)

    @property
    def report(self) -> ReportData:
        """The test data.

        Raises:
            SealedDataError: before `fix`, and when the fixed product has changed since.
        """
        self.require_fixed()
        return self._report

    def fix(self, *product: Fixed) -> None:
        """Declare the product final, which makes `report` available.

        `product` is everything that later models inherit. It must not change any more, which every access to `report`
        verifies by its digest.

        Raises:
            SealedDataError: when a product has already been fixed.
        """
        if self._fixed is not None:
            raise SealedDataError("the product of a phase is fixed once")
        self._fixed, self._fixed_digest = product, _digest(product)

    def check_fixed(self) -> None:
        """Check that the product has not changed since it was fixed.

        Raises:
            SealedDataError: when it has.
        """
        if self._fixed is not None and _digest(self._fixed) != self._fixed_digest:
            raise SealedDataError("the product changed after it was fixed: call context.fix(...) when it is final")

    def cache(self, fingerprint: str) -> ResultCache:
        """Return the cache of this phase's intermediate results, which a retry with the same `fingerprint` reuses."""
        return ResultCache(self.checkpoint, fingerprint, self.reporter)

    def require_fixed(self) -> None:
        """Check that the product is fixed, before test data is generated instead of read from `report`.

        Raises:
            SealedDataError: as `report`.
        """
        if self._fixed is None:
            raise SealedDataError(
                "test data is sealed until the product is fixed: choose by context.selection, and call "
                "context.fix(...) before anything is reported"
            )
        self.check_fixed()

    @cached_property
    def _suite(self) -> Suite:
        return self._suite_given if self._suite_given is not None else open_suite(self._folder("evaluation_suite"))

    @cached_property
    def _report(self) -> ReportData:
        return ReportData(self._suite.test, self._suite.tasks, self._suite.sources)

    def _folder(self, name: str) -> Path:
        if name not in self._folders:
            raise ValueError(f"the phase asks for {name}, which is not among its data ({', '.join(self._folders)})")
        return self._folders[name]


class Measure(Protocol):
    """Evaluates a bundle on the suite in a folder and compares it with its parents, given by name."""

    def __call__(
        self, bundle: Bundle, suite_folder: Path, parents: Mapping[str, Bundle], reporter: Reporter, /
    ) -> Measurement: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """One model of the graph: its inputs, its configuration, and the function that makes it.

    name: name of the model and of its asset. number: 1 to 8, as in the graph. description: one sentence for the UI.
    compute: makes the model from a `context`; `config` is the class of its configuration.
    parents: models whose gates must be open. data: data assets, including the evaluation `suite`.
    gates: the gates and claims of the model. result: the record of the metrics that `compute` returns.
    parallel: whether several processes can share the work (`training_core.training.distributed`).
    sandboxed: whether model-written programs run, so that a sandbox is opened and probed.
    kind: kind of the resulting bundle (`training_core.store.bundle`).
    module: the module in whose `PHASES` a worker process finds the phase.
    group: the asset group, by default that of the phase, such as phase_1_cognate. Models in `CONTROLS` are no part of
    the chain: they have no gates, and are made only when asked for.

    Raises:
        ValueError: when the suite is not among the data.
    """

    name: str
    number: int
    description: str
    config: type[BaseModel]
    compute: Callable[[Any, Any], Product]
    parents: tuple[str, ...] = ()
    data: tuple[str, ...] = DATA
    gates: tuple[Gate, ...] = ()
    result: type[Record] | None = None
    suite: str = "evaluation_suite"
    measure: Measure = measure_bundle
    parallel: bool = False
    sandboxed: bool = False
    kind: Kind = "cognate"
    context: type[PhaseContext] = PhaseContext
    module: str = "training_core.registry"
    group: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", f"phase_{self.number}_{TITLES[self.number]}")
        if self.suite not in self.data:
            raise ValueError(f"data must include {self.suite!r}, on which the model is measured, got {self.data}")

    def make(
        self,
        config: BaseModel,
        parents: Mapping[str, Bundle],
        folders: Mapping[str, Path],
        reporter: Reporter,
        checkpoint: Path,
        sandbox: OpenSandbox | None = None,
    ) -> Product:
        """Make the model from parents and data.

        If the phase runs model-written programs, the product's metrics include the sandbox's conformance probe.

        Raises:
            SandboxUnavailableError: when the phase is `sandboxed` and there is no sandbox.
            SealedDataError: when the phase read test data before fixing its product, or changed the product after that.
            ValueError: when the metrics do not match those that `result` declares.
        """
        context = partial(self.context, parents=parents, folders=folders, reporter=reporter, checkpoint=checkpoint)
        if not self.sandboxed:
            return self._made(context(), config)
        if sandbox is None:
            raise SandboxUnavailableError(NO_SANDBOX)
        with sandbox() as (opened, conformance):
            product = self._made(context(sandbox=opened), config)
        return replace(product, metrics={**product.metrics, **record(SandboxResult, conformance).metrics()})

    def _made(self, context: PhaseContext, config: BaseModel) -> Product:
        product = self.compute(context, config)
        context.check_fixed()
        if self.result is not None:
            record(self.result, product.metrics)
        return product

    def roots(self) -> list[str]:
        """Return the modules whose import closure is the code that makes and measures the model.

        `store.identity.code_digest` derives the code version from them.
        """
        compute = self.compute.func if isinstance(self.compute, partial) else self.compute
        measure = self.measure.func if isinstance(self.measure, partial) else self.measure
        return sorted({compute.__module__, getattr(measure, "__module__", ""), "training_core.worker"} - {""})


def _digest(parts: Sequence[Fixed]) -> bytes:
    hasher = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            hasher.update(weights_digest(part))
        elif isinstance(part, bytes):
            hasher.update(hashlib.sha256(part).digest())
        elif isinstance(part, Mapping) and any(isinstance(value, torch.Tensor) for value in part.values()):
            hasher.update(tensors_digest(part))
        else:
            hasher.update(hashlib.sha256(canonical_json(part)).digest())
    return hasher.digest()
