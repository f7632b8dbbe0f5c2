"""Making of one model from a job, which names a phase, its inputs and the folder of the finished bundle.

The same function makes a model inside a Dagster step, in a process that a launcher started on another machine, and
from the command line (`python -m training_core`). The bundle in `out` is complete: weights, measurements taken on the
stored files, and lineage.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from training_core.phase import OpenSandbox, Phase
from training_core.reporting import Reporter, SilentReporter
from training_core.store.bundle import Bundle, Lineage, open_bundle, write_bundle, write_measurements
from training_core.training import distributed


class Input(BaseModel):
    """An input folder of a model, and the expected digest of its contents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    digest: str


class Job(BaseModel):
    """The model to make, its inputs and the output folder. Paths are absolute and visible to every process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str = Field(description="Name of the model, a key of PHASES")
    module: str = Field("training_core.registry", description="Module that defines PHASES")
    profile: str
    config: dict[str, Any] = Field(description="Complete configuration of the phase")
    parents: dict[str, Input]
    data: dict[str, Input]
    checkpoint: Path = Field(description="Folder for resume points, which must survive a kill")
    out: Path = Field(description="Folder for the bundle, which must not exist yet")
    code_version: str


def find_phase(job: Job) -> Phase:
    """Return the phase that `job` names.

    Raises:
        ValueError: when there is no such phase.
    """
    phases: Mapping[str, Phase] = import_module(job.module).PHASES
    if job.phase not in phases:
        raise ValueError(f"there is no model {job.phase!r}: choose {', '.join(phases)}")
    return phases[job.phase]


def make(phase: Phase, job: Job, reporter: Reporter, sandbox: OpenSandbox | None = None) -> Bundle | None:
    """Make the model, write it to `job.out` and measure it there; return None on every rank but the first.

    Raises:
        BundleError: when a parent is missing, damaged or not the one that the job names.
        ValueError: for a configuration value out of bounds, for several ranks if the phase is not `parallel`, and from
            the phase itself.
        OSError: from the file system (disk full, no permission).
    """
    if distributed.world_size() > 1 and not phase.parallel:
        raise ValueError(f"{phase.name} cannot be made by {distributed.world_size()} processes together: launch one")
    config = phase.config.model_validate(job.config)
    parents = {
        name: open_bundle(given.folder, expected_digest=given.digest)
        for name in phase.parents
        for given in [_given(job.parents, name, "parent")]
    }
    data = {name: _given(job.data, name, "data").folder for name in phase.data}
    first = distributed.is_first()
    reporter = reporter if first else SilentReporter()
    product = phase.make(config, parents, data, reporter, job.checkpoint, sandbox)
    if not first:
        return None
    bundle = write_bundle(
        job.out,
        kind=product.kind,
        model_config=product.model_config,
        tensors=product.tensors,
        tokenizer_json=product.tokenizer_json,
        payload=product.payload,
    )
    measured = phase.measure(bundle, data[phase.suite], parents, reporter)
    tokens = job.data.get("tokens")
    lineage = Lineage(
        asset=phase.name,
        phase=phase.number,
        profile=job.profile,
        digest=bundle.digest(),
        code_version=job.code_version,
        corpus_digest="" if tokens is None else tokens.digest,
        parents={name: job.parents[name].digest for name in phase.parents},
        config=config.model_dump(mode="json"),
        metrics={**product.metrics, **measured.metrics},
        tasks=measured.tasks,
        data={name: job.data[name].digest for name in phase.data},
    )
    write_measurements(bundle, lineage, measured.counts, product.exhibits)
    return bundle


def _given(inputs: Mapping[str, Input], name: str, kind: str) -> Input:
    if name not in inputs:
        raise ValueError(f"the {kind} {name} is missing: give its folder with --{kind} {name}=FOLDER")
    return inputs[name]
