"""`phase_asset` and `data_asset`: turn a compute function into a Dagster asset that is gated, measured and stored.

A phase runs only if every parent's gate is open, and it reads exactly the bundles that the gates judged. The bundle
that it produces is measured as stored on disk. A crashed step is retried once, from the run's checkpoint; a failure
that a retry cannot fix (a closed gate, an invalid configuration, a full disk, a cancelled run) is not retried.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel
from safetensors import SafetensorError

from forge_assets import kept_values
from forge_assets.gates import gate_checks
from forge_assets.launchpad import launchpad_fields, selected_profile
from forge_assets.report import exhibits
from forge_resources.drawing import figure_markdown
from forge_resources.full_disk import disk_full, no_room
from forge_resources.gatekeeping import judge_latest, latest_materialization
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore, measurements_digest, recorded_text
from forge_resources.reporters import (
    CompositeReporter,
    CurveReporter,
    LogReporter,
    ProgressReporter,
    TrackingReporter,
)
from forge_resources.tracking import MlflowTracking, TrackedRun
from training_core.config import ConfigError, ConfigT, validated
from training_core.phase import Phase
from training_core.reporting import Reporter
from training_core.store.bundle import Lineage, open_bundle
from training_core.store.identity import OURS, code_digest, digest_folder, inputs_digest
from training_core.worker import Input, Job

ACCELERATOR_POOL = "accelerator"
CONFIG_CLASS = "forge/config"  # definition metadata: the configuration class as "module:class"
READS = "forge/reads"  # definition metadata: the function that identifies what is read from outside the graph
SOURCES = "forge/sources"  # materialization metadata: what it identified, name to version or hash
RESOURCES = frozenset({"store", "tracking"})
SANDBOX_CODE = ("forge_resources.sandbox",)  # part of the code version of phases that run model-written code
_HEADLINES = ("params", "bits_per_byte", "next_token_accuracy")


Preset = Callable[[str, str], BaseModel | None]
Reads = Callable[[Any], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class DataRun:
    """The arguments of a data asset's compute function, which fills the empty folder `out`."""

    inputs: Mapping[str, Path]
    out: Path
    reporter: Reporter
    profile: str


def profile_preset(profile: str, asset: str) -> BaseModel | None:
    """Return the configuration of `asset` in `profile` (`training_core.profiles.preset`)."""
    from training_core.profiles import preset

    return preset(profile, asset)


@dataclass(frozen=True, slots=True)
class _Data:
    """A data asset: its inputs, what makes it, and its default configuration."""

    name: str
    inputs: tuple[str, ...]
    compute: Callable[[DataRun, Any], Mapping[str, float | str]]
    config: type[BaseModel]
    code_version: str
    defaults: BaseModel
    reads: Reads | None


@dataclass(frozen=True, slots=True)
class _Model:
    """A phase with its code version and the gate table in use."""

    phase: Phase
    code_version: str
    defaults: BaseModel
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]]


def phase_asset(
    phase: Phase,
    *,
    preset: Preset = profile_preset,
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]] | None = None,
) -> dg.AssetsDefinition:
    """Return the asset of a phase. `checks` maps each asset to its blocking checks (default: the gate table's)."""
    roots = [*phase.roots(), *(SANDBOX_CODE if phase.sandboxed else ())]
    version = code_digest(roots, extra={"config": phase.config.model_json_schema()})
    values = preset(selected_profile(), phase.name)
    model = _Model(phase, version, values or phase.config(), gate_checks() if checks is None else checks)

    @dg.asset(
        name=phase.name,
        deps=[*phase.parents, *phase.data],
        description=phase.description,
        group_name=phase.group,
        owners=["team:agent-forge"],
        kinds={"pytorch", phase.kind},
        code_version=version,
        metadata={CONFIG_CLASS: name_of(phase.config)},
        pool=ACCELERATOR_POOL,
        retry_policy=dg.RetryPolicy(max_retries=1),
        config_schema=launchpad_fields(phase.config, values),
        required_resource_keys={*RESOURCES, "launcher"},
    )
    def materialize(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        with not_retried(), context.resources.store.alone(phase.name, context.run.run_id, context.log.warning):
            return _run_phase(context, model)

    return materialize


def data_asset(
    *,
    inputs: Sequence[str] = (),
    description: str = "",
    kinds: Set[str] = frozenset(),
    preset: Preset = profile_preset,
    reads: Reads | None = None,
) -> Callable[[Callable[[DataRun, Any], Mapping[str, float | str]]], dg.AssetsDefinition]:
    """Return a decorator that makes a data asset of `(run: DataRun, config: SomeConfig) -> metadata`.

    The decorated function fills `run.out`; its docstring is the asset's description. `reads`, a function of a module,
    maps the configuration to everything that is read from outside the graph: a name (an absolute path, a package, a
    data set) to its version or hash. The asset is stale when one of them changes.
    """

    def decorate(compute: Callable[[DataRun, Any], Mapping[str, float | str]]) -> dg.AssetsDefinition:
        name, config = compute.__name__, _config_class(compute)
        version = code_digest(
            called_modules(compute),
            extra={"config": config.model_json_schema(), "source": inspect.getsource(compute)},
        )

        values = preset(selected_profile(), name)
        data = _Data(name, tuple(inputs), compute, config, version, values or config(), reads)
        outside = {} if reads is None else {READS: name_of(reads)}

        @dg.asset(
            name=name,
            deps=list(inputs),
            description=description or inspect.getdoc(compute) or "",
            group_name="data",
            owners=["team:agent-forge"],
            kinds={"python", *kinds},
            code_version=version,
            metadata={CONFIG_CLASS: name_of(config), **outside},
            config_schema=launchpad_fields(config, values),
            required_resource_keys=set(RESOURCES),
        )
        def materialize(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
            with not_retried(), context.resources.store.alone(name, context.run.run_id, context.log.warning):
                return _run_data(context, data)

        return materialize

    return decorate


def _run_phase(context: dg.AssetExecutionContext, model: _Model) -> dg.MaterializeResult[Any]:
    store: ModelStore = context.resources.store
    tracking: MlflowTracking = context.resources.tracking
    launcher: Launcher = context.resources.launcher
    phase = model.phase
    config = config_in_effect(context, phase.name, model.defaults)
    parents, overridden = _judged_parents(context, store, model)
    data = _data_folders(context, store, phase.data)
    root_run_id = context.run.root_run_id or context.run.run_id
    digests = {name: given.digest for name, given in (parents | data).items()}
    inputs = inputs_digest(model.code_version, config, digests)
    parameters = config.model_dump(mode="json")
    curves = CurveReporter()
    with (
        tracking.run(
            asset=phase.name,
            run_id=context.run.run_id,
            root_run_id=root_run_id,
            parameters=parameters,
            warn=context.log.warning,
        ) as tracked,
        _reporter(context, phase.name, curves, tracked) as reporter,
    ):
        checkpoint = store.checkpoint(phase.name, root_run_id, inputs)
        with store.stage(phase.name) as staged:
            job = Job(
                phase=phase.name,
                module=phase.module,
                profile=selected_profile(),
                config=parameters,
                parents=parents,
                data=data,
                checkpoint=checkpoint,
                out=staged,
                code_version=model.code_version,
            )
            bundle, made = launcher.make(context, phase, job, reporter)
            shown = {name: exhibits.markdown(name, document) for name, document in bundle.exhibits().items()}
            lineage = bundle.lineage()
            folder = store.commit(phase.name, staged, lineage.digest)
        reporter.metrics(0, {f"final/{name}": value for name, value in lineage.metrics.items()})
        tracking.register(tracked, digest=lineage.digest, folder=folder)
        store.finish(checkpoint)
    metadata = {**made, **model_metadata(folder, lineage, inputs), **overridden}
    metadata |= kept_values.described(config, model.defaults, lineage.profile)
    metadata |= {f"plot/{name}": dg.MetadataValue.md(figure_markdown(f)) for name, f in curves.all_figures().items()}
    metadata |= {f"exhibit/{name}": dg.MetadataValue.md(text) for name, text in shown.items()}
    if tracked is not None:
        metadata["mlflow"] = dg.MetadataValue.url(tracked.url)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(lineage.digest))


def _judged_parents(
    context: dg.AssetExecutionContext, store: ModelStore, model: _Model
) -> tuple[dict[str, Input], dict[str, Any]]:
    """Return the parents' bundles, exactly the versions that passed their gates.

    The second value is metadata that names the parents whose failed gates were overridden.

    Raises:
        dg.Failure: when the gate of a parent is closed.
    """
    judged = {
        name: judge_latest(context.instance, key, model.checks.get(key, ()), model.phase.name)
        for name in model.phase.parents
        for key in [dg.AssetKey(name)]
    }
    if reasons := [reason for parent in judged.values() for reason in parent.closed]:
        raise dg.Failure(
            "refused, quality gate closed: " + "; ".join(reasons),
            metadata={"closed": dg.MetadataValue.json(reasons)},
            allow_retries=False,
        )
    parents = {
        name: Input(
            folder=store.open_materialized(name, parent.record).folder,
            digest=recorded_text(name, parent.record, "digest"),
        )
        for name, parent in judged.items()
    }
    used = {name: parent.override for name, parent in judged.items() if parent.override is not None}
    for name, override in used.items():
        context.log.warning(f"the gate of {name} FAILED and was {override.describe()}")
    return parents, {f"overridden/{name}": dg.MetadataValue.text(o.describe()) for name, o in used.items()}


def _data_folders(context: dg.AssetExecutionContext, store: ModelStore, names: Sequence[str]) -> dict[str, Input]:
    records = {name: latest_materialization(context.instance, dg.AssetKey(name)) for name in names}
    digests = {name: recorded_text(name, record, "digest") for name, record in records.items()}
    return {n: Input(folder=store.folder(n, digest, verify=True), digest=digest) for n, digest in digests.items()}


def _run_data(context: dg.AssetExecutionContext, data: _Data) -> dg.MaterializeResult[Any]:
    store: ModelStore = context.resources.store
    name, profile = data.name, selected_profile()
    config = config_in_effect(context, name, data.defaults)
    given = _data_folders(context, store, data.inputs)
    folders, digests = ({n: i.folder for n, i in given.items()}, {n: i.digest for n, i in given.items()})
    sources = {} if data.reads is None else dict(data.reads(config))
    if gone := sorted(sources_of(latest_materialization(context.instance, dg.AssetKey(name))).keys() - sources.keys()):
        context.log.warning(f"the latest {name} was also made from {', '.join(gone)}: that version stays in the store")
    with _reporter(context, name, CurveReporter(), None) as reporter, store.stage(name) as staged:
        staged.mkdir()
        described = data.compute(DataRun(folders, staged, reporter, profile), config)
        digest = digest_folder(staged)
        folder = store.commit(name, staged, digest, "data")
    metadata: dict[str, Any] = {
        **{
            name: float(v) if isinstance(v, float) else v for name, v in described.items()
        },  # NumPy's floats to Python's
        "digest": digest,
        "path": dg.MetadataValue.path(str(folder)),
        "bytes_on_disk": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "forge/inputs": inputs_digest(data.code_version, config, digests | sources),
        SOURCES: dg.MetadataValue.json(sources),
        **kept_values.described(config, data.defaults, profile),
    }
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))


def sources_of(record: dg.EventLogRecord | None) -> dict[str, str]:
    """Return what the materialization `record` of a data asset was read from: name to version or hash."""
    materialization = record.asset_materialization if record is not None else None
    held = materialization.metadata.get(SOURCES) if materialization is not None else None
    return dict(held.value) if isinstance(held, dg.JsonMetadataValue) and isinstance(held.value, Mapping) else {}


def config_in_effect(context: dg.AssetExecutionContext, asset: str, defaults: ConfigT) -> ConfigT:
    """Return the run's configuration of `asset`; where it gives none, the one that `asset` was last made with."""
    run = context.run
    ops: Mapping[str, Any] = run.run_config.get("ops") or {}  # type: ignore[assignment]
    given = (ops.get(asset) or {}).get("config") or {}
    kept = kept_values.recorded(latest_materialization(context.instance, dg.AssetKey(asset)))
    back = run.tags.get(kept_values.DEFAULTS) == "true"
    config = validated(type(defaults), context.op_execution_context.op_config, asset)
    in_effect = kept_values.in_effect(asset, config, given, kept, selected_profile(), defaults=back)
    if in_effect != config:
        context.log.info(f"{asset} keeps the values that it was made with: {kept.describe()}")
    return in_effect


def name_of(definition: type | Callable[..., Any]) -> str:
    """Return where a class or function is defined, as "module:name"."""
    return f"{definition.__module__}:{definition.__qualname__}"


def model_metadata(folder: Path, lineage: Lineage, inputs: str) -> dict[str, Any]:
    """Return the materialization metadata of the bundle in `folder`: what the gatekeeper reads, and main metrics."""
    metadata: dict[str, Any] = {
        "digest": lineage.digest,
        "measurements": measurements_digest(folder),
        "profile": lineage.profile,
        "path": dg.MetadataValue.path(str(folder)),
        "bytes_on_disk": open_bundle(folder).model_bytes(),
        "forge/inputs": inputs,
    }
    return metadata | {name: float(lineage.metrics[name]) for name in _HEADLINES if name in lineage.metrics}


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
    """Turn errors that a retry cannot fix into failures that are not retried.

    An interrupt is one of them: with a retry policy, Dagster's in-process executor would retry the cancelled step
    and the run would continue.
    """
    try:
        yield
    except dg.DagsterExecutionInterruptedError as error:
        raise dg.Failure("the run was cancelled", allow_retries=False) from error
    except (OSError, SafetensorError) as error:
        if not disk_full(error):
            raise
        raise dg.Failure(no_room(error), allow_retries=False) from error
    except ConfigError as error:
        raise dg.Failure(f"refused: {error}", allow_retries=False) from error
    except ValueError as error:
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error


def called_modules(compute: Callable[..., Any]) -> set[str]:
    """Return this project's modules that define the names used in `compute`.

    The rest of the code that it runs is reached from them by imports.
    """
    named = (compute.__globals__.get(name) for name in compute.__code__.co_names)
    modules = {str(getattr(value, "__module__", "")) for value in (*named, _config_class(compute))}
    return {module for module in modules if module.partition(".")[0] in OURS}


def _config_class(compute: Callable[..., Any]) -> type[BaseModel]:
    annotation = inspect.get_annotations(compute, eval_str=True).get("config")
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise ValueError(f"{compute.__name__} needs a parameter config: SomeConfig (a pydantic model)")
    return annotation
