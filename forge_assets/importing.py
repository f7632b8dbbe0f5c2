"""Import a bundle that was made elsewhere (`python -m training_core`) into the store, to be gated like any other.

The bundle is measured again on this store's evaluation suite; of its own record only the training metrics are kept,
and none of its exhibits. It must have been made by the installed version of the code, from the latest models and data
of this store. A model whose gate judges a metric that only its own run can measure (forgetting during practice, for
example) is refused, because that metric could not be verified here.
"""

import shutil
from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG

from forge_assets import kept_values
from forge_assets.factory import model_metadata
from forge_assets.freshness import resolve_config
from forge_assets.graph_view import Forge, UserError
from forge_resources.gatekeeping import judge_latest, latest_materialization
from forge_resources.model_store import recorded_text
from training_core.phase import Phase
from training_core.reporting import Reporter
from training_core.store.bundle import PAYLOADS, Bundle, Lineage, open_bundle, write_measurements
from training_core.store.identity import inputs_digest


def import_bundle(forge: Forge, phase: Phase, bundle: Bundle, lineage: Lineage, reporter: Reporter) -> Path:
    """Measure the bundle, commit it, record its materialization and return its folder. Its checks have not run yet.

    Raises:
        UserError: when its digest differs from its lineage, when it was made by other code or from other inputs than
            this store's, or when its gate cannot be judged here.
        BundleError: when it cannot be read. StoreError: when there is no room for it.
    """
    if (digest := bundle.digest()) != lineage.digest:
        raise UserError(
            f"{bundle.folder} hashes to {digest[:16]}, its lineage says {lineage.digest[:16]}: it was changed"
        )
    code = str(forge.definitions.resolve_asset_graph().get(dg.AssetKey(phase.name)).code_version)
    if lineage.code_version != code:
        raise UserError(
            f"{phase.name} was made by other code ({lineage.code_version}, here is {code}): make it with the same "
            "agent-forge and the same version of torch as here"
        )
    parents = _same_parents(forge, phase, lineage)
    data = {name: _latest_digest(forge, name) for name in phase.data}
    for name, latest in data.items():
        if (used := lineage.data.get(name, "")) != latest:
            raise UserError(
                f"{phase.name} was made from the {name} {used[:16]}, the latest here are {latest[:16]}: make it from "
                "the data folders of this store"
            )
    config = phase.config.model_validate(lineage.config)
    with forge.store.stage(phase.name) as staged:
        copied = _copied(bundle, staged)
        suite = forge.store.folder(phase.suite, data[phase.suite], verify=True)
        measured = phase.measure(copied, suite, parents, reporter)
        judged = {row.metric for row in forge.rows(phase.name, lineage.profile, measured.metrics) if row.blocking}
        if unknown := sorted(judged - measured.metrics.keys()):
            raise UserError(
                f"the gate of {phase.name} judges {', '.join(unknown)}, which only its own run can measure: make it "
                "in a run of this forge (a launcher may start that on another machine)"
            )
        here = Lineage(
            asset=phase.name,
            phase=phase.number,
            profile=lineage.profile,
            digest=lineage.digest,
            code_version=lineage.code_version,
            corpus_digest=data.get("tokens", ""),
            parents=dict(lineage.parents),
            config=config.model_dump(mode="json"),
            metrics={n: v for n, v in lineage.metrics.items() if n.startswith("train_")} | dict(measured.metrics),
            tasks=measured.tasks,
            data=data,
        )
        write_measurements(copied, here, measured.counts)
        folder = forge.store.commit(phase.name, staged, here.digest)
    inputs = inputs_digest(here.code_version, config, {**here.parents, **data})
    metadata = model_metadata(folder, here, inputs) | {"imported_from": dg.MetadataValue.path(str(bundle.folder))}
    defaults = resolve_config(forge, {}, select=[phase.name], defaults=True)[phase.name]
    metadata |= kept_values.described(config, defaults, here.profile)
    # Dagster sets these tags for a step; for an event reported without a run, they must be given.
    tags = {DATA_VERSION_TAG: here.digest, CODE_VERSION_TAG: here.code_version}
    forge.instance.report_runless_asset_event(dg.AssetMaterialization(phase.name, metadata=metadata, tags=tags))
    return folder


def _same_parents(forge: Forge, phase: Phase, lineage: Lineage) -> dict[str, Bundle]:
    """Return the latest parents.

    Raises:
        UserError: when the bundle was made from other parents, or the gate of a parent is closed.
    """
    parents: dict[str, Bundle] = {}
    for name in phase.parents:
        latest, used = _latest_digest(forge, name), lineage.parents.get(name, "")
        if latest != used:
            raise UserError(
                f"{phase.name} was made from the {name} {used[:16]}, the latest here is {latest[:16]}: import that "
                f"{name} first, or make {phase.name} again from this one"
            )
        gate = [check for check in forge.checks_of(name) if check.name == "gate"]
        judged = judge_latest(forge.instance, dg.AssetKey(name), gate, phase.name)
        if judged.closed:
            raise UserError(f"refused, quality gate closed: {'; '.join(judged.closed)}")
        parents[name] = forge.store.open_materialized(name, judged.record)
    return parents


def _latest_digest(forge: Forge, asset: str) -> str:
    return recorded_text(asset, latest_materialization(forge.instance, dg.AssetKey(asset)), "digest")


def _copied(bundle: Bundle, target: Path) -> Bundle:
    """Copy the model's own files to `target`, without anything that was measured elsewhere."""
    target.mkdir(parents=True)
    names = ["config.json", "tokenizer.json", *([PAYLOADS[bundle.kind]] if bundle.kind in PAYLOADS else [])]
    for name in names if bundle.kind == "compressed" else [*names, "model.safetensors"]:
        shutil.copyfile(bundle.folder / name, target / name, follow_symlinks=False)
    return open_bundle(target)
