"""`phase_asset` and `data_asset`: from a function that does the work to a guarded, measured, stored asset.

A phase is refused unless every parent's gate is open, reads exactly the bundles that the gates judged, and
hands on a bundle that was measured as it lies on disk. What cannot succeed by trying again (a closed gate, a
wrong configuration, a full disk, a cancelled run) is not tried again; a crash is, once, from the run's
checkpoint.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dagster as dg
from pydantic import BaseModel
from safetensors import SafetensorError

from forge_assets import exhibits
from forge_assets.gates import gate_checks
from forge_assets.launchpad import code_digest, inputs_digest, launchpad_fields, selected_profile
from forge_resources.gatekeeping import judge_latest, latest_materialization
from forge_resources.model_store import ModelStore, digest_folder, disk_full, measurements_digest, recorded_text
from forge_resources.reporters import (
    CompositeReporter,
    CurveReporter,
    LogReporter,
    ProgressReporter,
    TrackingReporter,
    figure_markdown,
)
from forge_resources.tracking import MlflowTracking, TrackedRun
from training_core.bundle import Bundle, Lineage, open_bundle, write_bundle, write_measurements
from training_core.phases import Measurement, Product
from training_core.training.reporting import Reporter

ACCELERATOR_POOL = "accelerator"
CONFIG_CLASS = "forge/config"  # metadata of the definition: the configuration's class, "module:class"
RESOURCES = frozenset({"store", "tracking"})
_HEADLINES = ("params", "bits_per_byte", "next_token_accuracy")


class Measure(Protocol):
    """Measures a bundle on the evaluation suite in `suite`; `parents` are what it is compared with."""

    def __call__(
        self, bundle: Bundle, suite: Path, parents: Mapping[str, Bundle], reporter: Reporter
    ) -> Measurement: ...


Preset = Callable[[str, str], BaseModel | None]


@dataclass(frozen=True, slots=True)
class PhaseRun:
    """What a phase's function is given.

    `checkpoint` is a folder that survives a kill and is shared by a run and its retries.
    """

    parents: Mapping[str, Bundle]
    data: Mapping[str, Path]
    reporter: Reporter
    checkpoint: Path
    profile: str


@dataclass(frozen=True, slots=True)
class DataRun:
    """What a data asset's function is given. It fills the empty folder `out`."""

    inputs: Mapping[str, Path]
    out: Path
    reporter: Reporter
    profile: str


def measure_bundle(bundle: Bundle, suite: Path, parents: Mapping[str, Bundle], reporter: Reporter) -> Measurement:
    """Measure on the shared evaluation suite (`training_core.evaluation.suite.measure_bundle`)."""
    from training_core.evaluation import suite as evaluation

    return evaluation.measure_bundle(bundle, suite, parents, reporter)


def profile_preset(profile: str, asset: str) -> BaseModel | None:
    """The configuration of `asset` in `profile` (`training_core.profiles.preset`)."""
    from training_core.profiles import preset

    return preset(profile, asset)


@dataclass(frozen=True, slots=True)
class _Phase:
    """A phase as its decorator describes it."""

    name: str
    number: int
    parents: tuple[str, ...]
    data: tuple[str, ...]
    suite: str
    compute: Callable[[PhaseRun, Any], Product]
    config: type[BaseModel]
    measure: Measure
    code_version: str
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]]


def phase_asset(
    *,
    phase: int,
    parents: Sequence[str] = (),
    data: Sequence[str] = ("tokens", "task_bank", "evaluation_suite"),
    code: Sequence[str],
    description: str,
    kinds: set[str] | None = None,
    suite: str = "evaluation_suite",
    measure: Measure = measure_bundle,
    preset: Preset = profile_preset,
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]] | None = None,
) -> Callable[[Callable[[PhaseRun, Any], Product]], dg.AssetsDefinition]:
    """Make a model asset of a function `(run: PhaseRun, config: SomeConfig) -> Product`.

    `parents` are model assets, whose gates must be open; `data` are data assets, among them the evaluation
    `suite`. `code` names the modules whose source makes the asset's code version; the evaluation's source is
    always a part of it. `checks` is the gate table in use.

    Raises:
        ValueError: at import, when the function has no configuration model or the suite is not among `data`.
    """
    if suite not in data:
        raise ValueError(f"data must include {suite!r}, on which the model is measured, got {tuple(data)}")

    def decorate(compute: Callable[[PhaseRun, Any], Product]) -> dg.AssetsDefinition:
        name, config = compute.__name__, _config_class(compute)
        fields = launchpad_fields(config, _defaults(preset, name))
        judge_module = "training_core.evaluation" if measure is measure_bundle else measure.__module__
        version = code_digest([*code, judge_module], extra={"config": config.model_json_schema()})
        table = gate_checks() if checks is None else checks
        spec = _Phase(name, phase, tuple(parents), tuple(data), suite, compute, config, measure, version, table)

        @dg.asset(
            name=name,
            deps=[*parents, *data],
            description=description,
            group_name="forge",
            owners=["team:agent-forge"],
            kinds=kinds or {"pytorch"},
            code_version=version,
            metadata={CONFIG_CLASS: f"{config.__module__}:{config.__qualname__}"},
            pool=ACCELERATOR_POOL,
            retry_policy=dg.RetryPolicy(max_retries=1),
            config_schema=fields,
            required_resource_keys=set(RESOURCES),
        )
        def materialize(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            with not_retried(), context.resources.store.alone(name, context.run.run_id, context.log.warning):
                return _run_phase(context, spec)

        return materialize

    return decorate


def data_asset(
    *,
    inputs: Sequence[str] = (),
    code: Sequence[str],
    description: str = "",
    kinds: set[str] | None = None,
    preset: Preset = profile_preset,
) -> Callable[[Callable[[DataRun, Any], Mapping[str, float | str]]], dg.AssetsDefinition]:
    """Make a data asset of `(run: DataRun, config: SomeConfig) -> metadata`, which fills `run.out`."""

    def decorate(compute: Callable[[DataRun, Any], Mapping[str, float | str]]) -> dg.AssetsDefinition:
        name, config = compute.__name__, _config_class(compute)
        version = code_digest(code, extra={"config": config.model_json_schema()})

        @dg.asset(
            name=name,
            deps=list(inputs),
            description=description or inspect.getdoc(compute) or "",
            group_name="forge",
            owners=["team:agent-forge"],
            kinds=kinds or {"python"},
            code_version=version,
            metadata={CONFIG_CLASS: f"{config.__module__}:{config.__qualname__}"},
            config_schema=launchpad_fields(config, _defaults(preset, name)),
            required_resource_keys=set(RESOURCES),
        )
        def materialize(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            with not_retried(), context.resources.store.alone(name, context.run.run_id, context.log.warning):
                return _run_data(context, name, inputs, compute, config, version)

        return materialize

    return decorate


def _run_phase(context: dg.AssetExecutionContext, spec: _Phase) -> dg.MaterializeResult[Any]:
    store: ModelStore = context.resources.store
    tracking: MlflowTracking = context.resources.tracking
    config = spec.config(**context.op_execution_context.op_config)
    parents, digests, overridden = _judged_parents(context, store, spec)
    data, data_digests = _data_folders(context, store, spec.data)
    digests |= data_digests
    root_run_id = context.run.root_run_id or context.run.run_id
    inputs = inputs_digest(spec.code_version, config, digests)
    parameters = config.model_dump(mode="json")
    curves, profile = CurveReporter(), selected_profile()
    with (
        tracking.run(
            asset=spec.name, run_id=context.run.run_id, root_run_id=root_run_id, parameters=parameters
        ) as tracked,
        _reporter(context, spec.name, curves, tracked) as reporter,
    ):
        checkpoint = store.checkpoint(spec.name, root_run_id, inputs)
        product = spec.compute(PhaseRun(parents, data, reporter, checkpoint, profile), config)
        shown = {name: exhibits.markdown(name, document) for name, document in product.exhibits.items()}
        folder, lineage = _store(store, spec, product, parents, data, reporter, digests, parameters, profile)
        reporter.metrics(0, {f"final/{name}": value for name, value in lineage.metrics.items()})
        tracking.register(tracked, asset=spec.name, digest=lineage.digest, folder=folder)
        store.finish(checkpoint)
    metadata = _phase_metadata(folder, lineage, curves, tracked)
    metadata["forge/inputs"] = inputs
    metadata |= overridden
    metadata |= {f"exhibit/{name}": dg.MetadataValue.md(text) for name, text in shown.items()}
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(lineage.digest))


def _store(
    store: ModelStore,
    spec: _Phase,
    product: Product,
    parents: Mapping[str, Bundle],
    data: Mapping[str, Path],
    reporter: Reporter,
    digests: Mapping[str, str],
    parameters: Mapping[str, Any],
    profile: str,
) -> tuple[Path, Lineage]:
    """Write the product, measure it as it lies on disk, and commit it to the store."""
    with store.stage(spec.name) as staged:
        bundle = write_bundle(
            staged,
            kind=product.kind,
            model_config=product.model_config,
            tensors=product.tensors,
            tokenizer_json=product.tokenizer_json,
            payload=product.payload,
        )
        measured = spec.measure(bundle, data[spec.suite], parents, reporter)
        lineage = Lineage(
            asset=spec.name,
            phase=spec.number,
            profile=profile,
            digest=bundle.digest(),
            code_version=spec.code_version,
            corpus_digest=digests.get("tokens", ""),
            parents={name: digests[name] for name in spec.parents},
            config=parameters,
            metrics={**product.metrics, **measured.metrics},
            tasks=measured.tasks,
        )
        write_measurements(bundle, lineage, measured.counts, product.exhibits)
        return store.commit(spec.name, staged, lineage.digest), lineage


def _judged_parents(
    context: dg.AssetExecutionContext, store: ModelStore, spec: _Phase
) -> tuple[dict[str, Bundle], dict[str, str], dict[str, Any]]:
    """The guard: open the parents' bundles, exactly those that passed their gates, or refuse.

    The last value says, as metadata, which parents' gates failed and were overridden.
    """
    judged = {
        name: judge_latest(context.instance, key, spec.checks.get(key, ()))
        for name in spec.parents
        for key in [dg.AssetKey(name)]
    }
    if reasons := [reason for parent in judged.values() for reason in parent.closed]:
        raise dg.Failure(
            "refused, quality gate closed: " + "; ".join(reasons),
            metadata={"closed": dg.MetadataValue.json(reasons)},
            allow_retries=False,
        )
    bundles = {name: store.open_materialized(name, parent.record) for name, parent in judged.items()}
    digests = {name: recorded_text(name, parent.record, "digest") for name, parent in judged.items()}
    used = {name: parent.override for name, parent in judged.items() if parent.override is not None}
    for name, override in used.items():
        context.log.warning(f"the gate of {name} FAILED and was {override.describe()}")
    return bundles, digests, {f"overridden/{name}": dg.MetadataValue.text(o.describe()) for name, o in used.items()}


def _data_folders(
    context: dg.AssetExecutionContext, store: ModelStore, names: Sequence[str]
) -> tuple[dict[str, Path], dict[str, str]]:
    records = {name: latest_materialization(context.instance, dg.AssetKey(name)) for name in names}
    digests = {name: recorded_text(name, record, "digest") for name, record in records.items()}
    return {name: store.folder(name, digest, verify=True) for name, digest in digests.items()}, digests


def _run_data(
    context: dg.AssetExecutionContext,
    name: str,
    inputs: Sequence[str],
    compute: Callable[[DataRun, Any], Mapping[str, float | str]],
    config_class: type[BaseModel],
    version: str,
) -> dg.MaterializeResult[Any]:
    store: ModelStore = context.resources.store
    config = config_class(**context.op_execution_context.op_config)
    folders, digests = _data_folders(context, store, inputs)
    with _reporter(context, name, CurveReporter(), None) as reporter, store.stage(name) as staged:
        staged.mkdir()
        described = compute(DataRun(folders, staged, reporter, selected_profile()), config)
        digest = digest_folder(staged)
        folder = store.commit(name, staged, digest, "data")
    metadata: dict[str, Any] = {
        **{name: float(v) if isinstance(v, float) else v for name, v in described.items()},  # not NumPy's
        "digest": digest,
        "path": dg.MetadataValue.path(str(folder)),
        "bytes_on_disk": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "forge/inputs": inputs_digest(version, config, digests),
    }
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))


def _phase_metadata(
    folder: Path, lineage: Lineage, curves: CurveReporter, tracked: TrackedRun | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "digest": lineage.digest,
        "measurements": measurements_digest(folder),
        "profile": lineage.profile,
        "path": dg.MetadataValue.path(str(folder)),
        "bytes_on_disk": open_bundle(folder).model_bytes(),
    }
    metadata |= {name: float(lineage.metrics[name]) for name in _HEADLINES if name in lineage.metrics}
    if tracked is not None:
        metadata["mlflow"] = dg.MetadataValue.url(tracked.url)
    for name, figure in curves.all_figures().items():
        metadata[f"plot/{name}"] = dg.MetadataValue.md(figure_markdown(figure))
    return metadata


@contextmanager
def _reporter(
    context: dg.AssetExecutionContext, asset: str, curves: CurveReporter, tracked: TrackedRun | None
) -> Iterator[Reporter]:
    reporters: list[Reporter] = [LogReporter(context.log), curves]
    progress = ProgressReporter.requested(asset)
    if tracked is not None:
        reporters.append(TrackingReporter(tracked))
    if progress is not None:
        reporters.append(progress)
    try:
        yield CompositeReporter(reporters)
    finally:
        if progress is not None:
            progress.close()


@contextmanager
def not_retried() -> Iterator[None]:
    """Turn what another attempt cannot change into a failure that is not retried.

    An interrupt is among them: under a retry policy Dagster's in-process executor would take a cancelled step
    for one to try again, and the run would go on.
    """
    try:
        yield
    except dg.DagsterExecutionInterruptedError as error:
        raise dg.Failure("the run was cancelled", allow_retries=False) from error
    except (OSError, SafetensorError) as error:
        if not disk_full(error):
            raise
        reason = f"no room on the disk ({error}): free some space, then run again; training goes on from its checkpoint"
        raise dg.Failure(reason, allow_retries=False) from error
    except ValueError as error:
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error


def _config_class(compute: Callable[..., Any]) -> type[BaseModel]:
    annotation = inspect.get_annotations(compute, eval_str=True).get("config")
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise ValueError(f"{compute.__name__} needs a parameter config: SomeConfig (a pydantic model)")
    return annotation


def _defaults(preset: Preset, asset: str) -> dict[str, Any]:
    values = preset(selected_profile(), asset)
    return {} if values is None else {name: getattr(values, name) for name in type(values).model_fields}
