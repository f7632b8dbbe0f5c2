"""What a phase is, what it is given and what it makes, independent of who runs it."""

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

# Opens a sandbox for model-written programs that was probed first, with the metrics of that probe.
OpenSandbox = Callable[[], AbstractContextManager[tuple[Sandbox, Mapping[str, float]]]]
# What a phase fixes before it may read test data: weights, tensors, a file, or a JSON document.
Fixed = nn.Module | Mapping[str, torch.Tensor] | bytes | Mapping[str, Any] | Sequence[Any] | str | float | None


class SealedDataError(RuntimeError):
    """Test data was read before the product was fixed, or the product changed after that."""


@dataclass(frozen=True, slots=True)
class SelectionData:
    """Validation data: whatever a phase chooses, it chooses by this."""

    text: Windows


@dataclass(frozen=True, slots=True)
class ReportData:
    """Test data: whatever a phase says of its product, it measures on this. `PhaseContext.fix` hands it out."""

    text: Windows
    tasks: Sequence[Task]


class PhaseContext:
    """What a phase is given: parents, data, and who hears of its progress. Data is opened when it is asked for.

    parents: opened bundles by name. folders: data assets by name.
    checkpoint: a folder that survives a kill and is shared by a run and its retries; None keeps nothing.
    sandbox: where model-written programs run, for phases that have any.
    data, suite: given in place of what lies in `folders`.

    Validation and test data are handed out apart: `selection` at any time, `report` only when the product is fixed.
    A phase that asks questions has a `tasks.questions.context.QuestionContext`.
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
        """Text and tasks to train on, and the tokenizer that encoded them."""
        if self._data_given is not None:
            return self._data_given
        return TrainingData.open(self._folder("tokens"), self._folder("task_bank"))

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks to train on, as text."""
        return list(read_tasks(self._folder("task_bank"), "train"))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the training data."""
        return Tokenizer.from_str(self.training.tokenizer_json)

    @property
    def batch_size(self) -> int:
        """Windows of held-out text in one forward pass."""
        return self._suite.config.batch_size

    @property
    def sandbox(self) -> Sandbox:
        """Where model-written programs run.

        Raises:
            SandboxUnavailableError: when there is no sandbox: such programs never run on the host.
        """
        if self._sandbox is None:
            raise SandboxUnavailableError(NO_SANDBOX)
        return self._sandbox

    @cached_property
    def selection(self) -> SelectionData:
        """Validation data."""
        return SelectionData(self._suite.validation)

    @property
    def report(self) -> ReportData:
        """Test data.

        Raises:
            SealedDataError: before `fix`, and when what was fixed has changed since.
        """
        self.require_fixed()
        return self._report

    def fix(self, *product: Fixed) -> None:
        """Declare the product final, which opens `report`. `product` is all that later models inherit: it may not
        change any more, which every reading of `report` verifies.

        Raises:
            SealedDataError: when a product was fixed before.
        """
        if self._fixed is not None:
            raise SealedDataError("the product of a phase is fixed once")
        self._fixed, self._fixed_digest = product, _digest(product)

    def check_fixed(self) -> None:
        """Refuse a product that has changed since it was fixed.

        Raises:
            SealedDataError: when it has.
        """
        if self._fixed is not None and _digest(self._fixed) != self._fixed_digest:
            raise SealedDataError("the product changed after it was fixed: call context.fix(...) when it is final")

    def cache(self, fingerprint: str) -> ResultCache:
        """Results of this phase that a retry finds again, as long as `fingerprint` is the same."""
        return ResultCache(self.checkpoint, fingerprint, self.reporter)

    def require_fixed(self) -> None:
        """Refuse to go on to test data that is made, not read, before `fix`.

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
        return ReportData(self._suite.test, self._suite.tasks)

    def _folder(self, name: str) -> Path:
        if name not in self._folders:
            raise ValueError(f"the phase asks for {name}, which is not among its data ({', '.join(self._folders)})")
        return self._folders[name]


class Measure(Protocol):
    """Measures a bundle on the evaluation suite in a folder, compared with its parents by name."""

    def __call__(
        self, bundle: Bundle, suite_folder: Path, parents: Mapping[str, Bundle], reporter: Reporter, /
    ) -> Measurement: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """One model of the graph: what it is made from, and by which function.

    name: of the model, and of its asset. number: 1 to 8, as in the graph. description: for a reader, in one sentence.
    compute: makes the model from a `context`; `config` is the class of its configuration.
    parents: models, whose gates must be open. data: data assets, among them the evaluation `suite`.
    gates: what the model must fulfil and what it promises. result: the record of what `compute` measures.
    parallel: whether several processes can share the work (`training_core.training.distributed`).
    sandboxed: whether model-written programs run, and so a sandbox is opened and probed.
    kind: of the bundle that is made (`training_core.store.bundle`).
    module: where a worker process finds the phase, in `PHASES`.

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

    def __post_init__(self) -> None:
        if self.suite not in self.data:
            raise ValueError(f"data must include {self.suite!r}, on which the model is measured, got {self.data}")

    @property
    def group(self) -> str:
        """The phase, as assets are grouped by it, such as phase_1_cognate."""
        return f"phase_{self.number}_{TITLES[self.number]}"

    def make(
        self,
        config: BaseModel,
        parents: Mapping[str, Bundle],
        folders: Mapping[str, Path],
        reporter: Reporter,
        checkpoint: Path,
        sandbox: OpenSandbox | None = None,
    ) -> Product:
        """The model, from parents and data; with it, where programs ran, whether the sandbox held here and now.

        Raises:
            SandboxUnavailableError: when the phase is `sandboxed` and there is no sandbox.
            SealedDataError: when the phase chose by test data, or changed its product after reading it.
            ValueError: when what was measured is not what `result` declares.
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
        """The modules from which everything that makes and measures the model is reached by imports
        (`store.identity.code_digest`)."""
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
