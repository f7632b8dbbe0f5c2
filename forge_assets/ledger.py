"""The ledger: the measurements of every model that exists, and every verdict on them.

Numbers come from the `lineage.json` of the bundle named by an asset's latest materialization; verdicts come from
Dagster's record of the checks. A value that was not measured, or a gate that was not judged, is None.
"""

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from forge_assets.graph_view import Forge
from forge_assets.launchpad import selected_profile
from forge_assets.provenance import changed_inputs
from forge_resources.gatekeeping import completed_verdict, latest_digest, latest_materialization
from training_core.gates import Gate
from training_core.store.bundle import Bundle, Lineage

BITS_TO_FILE = "bits_per_byte_ratio_to_compressed_model"  # metrics of the controls, paired by document
ACCURACY_TO_FILE = "retention_to_compressed_model"
ARTIFACT = "compressed"  # the kind of bundle whose payload is the released file


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One stored model. `outdated` names the ancestors that have been made again since.

    `exhibits` are the documents that its phase shows in addition to metrics (`forge_assets.report.exhibits`).
    """

    lineage: Lineage
    folder: Path
    figures: Mapping[str, bytes]
    outdated: tuple[str, ...] = ()
    exhibits: Mapping[str, Any] = field(default_factory=dict)

    def metric(self, name: str) -> float | None:
        """Return the metric, or None if it was not measured or is not finite."""
        value = self.lineage.metrics.get(name)
        return value if value is not None and math.isfinite(value) else None

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % CI of a metric, or None if it was not measured."""
        low, high = self.metric(f"{name}_low"), self.metric(f"{name}_high")
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True)
class GateRow:
    """A gate or claim with its verdict; `passed` is None if the current version was not judged."""

    gate: Gate
    value: float | None
    threshold: float
    passed: bool | None


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """The compressed file (`model.forge`), the product of the chain, with its share of the next-token accuracy of its
    parent and of the merged model, the last one in full precision."""

    path: Path
    size_bytes: int
    bits_per_parameter: float | None
    retention: float | None
    retention_ci95: tuple[float, float] | None
    retention_to_merged: float | None
    retention_to_merged_ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """All measurements and verdicts. `missing` maps models that do not exist or cannot be read to the reason.

    `controls` are no part of the chain: no gate judges them, and they are compared with the file alone.
    """

    profile: str
    models: tuple[ModelRow, ...]
    gates: tuple[GateRow, ...]
    artifact: ArtifactRow | None
    missing: Mapping[str, str]
    controls: tuple[ModelRow, ...] = ()
    corpus: Mapping[str, float] = field(default_factory=dict)  # documents kept and left out, as `build_corpus` counts

    def as_json(self) -> dict[str, Any]:
        """Return the ledger as plain values."""
        return {
            "profile": self.profile,
            "corpus": dict(self.corpus),
            "models": [_model_json(row) for row in self.models],
            "controls": [_control_json(row) for row in self.controls],
            "gates": [
                {
                    "asset": row.gate.asset,
                    "gate": row.gate.name,
                    "value": row.value,
                    "threshold": row.threshold,
                    "passed": row.passed,
                    "evidence": row.gate.evidence,
                    "blocking": row.gate.blocking,
                }
                for row in self.gates
            ],
            "artifact": None
            if self.artifact is None
            else {
                "path": str(self.artifact.path),
                "bytes": self.artifact.size_bytes,
                "bits_per_parameter": self.artifact.bits_per_parameter,
                "retention": self.artifact.retention,
                "retention_ci95": _pair(self.artifact.retention_ci95),
                "retention_to_merged_model": self.artifact.retention_to_merged,
                "retention_to_merged_model_ci95": _pair(self.artifact.retention_to_merged_ci95),
            },
        }


def collect(forge: Forge) -> Ledger:
    """Return the ledger of the profile of the newest model, or of the selected profile if no model exists."""
    opened: dict[str, tuple[dg.EventLogRecord, Bundle, Lineage]] = {}
    exhibits: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    controls = forge.controls()
    for asset in forge.assets():
        if not forge.makes_model(asset):
            continue
        record = latest_materialization(forge.instance, dg.AssetKey(asset))
        if record is None:
            if asset not in controls:
                missing[asset] = "not made yet"
            continue
        try:
            bundle = forge.store.open_materialized(asset, record)
            exhibits[asset] = bundle.exhibits()
            opened[asset] = (record, bundle, bundle.lineage())
        except ValueError as error:
            missing[asset] = str(error)
    outdated = _outdated(forge, {asset: lineage for asset, (_, _, lineage) in opened.items()})
    chain = [entry for asset, entry in opened.items() if asset not in controls]
    newest = max(chain, key=lambda entry: entry[0].storage_id, default=None)
    profile = selected_profile() if newest is None else newest[2].profile
    models: list[ModelRow] = []
    compared: list[ModelRow] = []
    gates: list[GateRow] = []
    artifact: ArtifactRow | None = None
    for asset, (record, bundle, lineage) in opened.items():
        if lineage.profile != profile:
            missing[asset] = f"the latest one is of profile {lineage.profile}"
            continue
        row = ModelRow(lineage, bundle.folder, _figures(record), outdated.get(asset, ()), exhibits[asset])
        if asset in controls:
            compared.append(row)
            continue
        models.append(row)
        gates += _gate_rows(forge, record, lineage)
        if bundle.kind == ARTIFACT:
            artifact = _artifact(row, bundle)
    return Ledger(profile, tuple(models), tuple(gates), artifact, missing, tuple(compared), _corpus_counts(forge))


def _corpus_counts(forge: Forge) -> dict[str, float]:
    """The counts of documents in the metadata of the latest corpus; empty if there is none."""
    record = latest_materialization(forge.instance, dg.AssetKey("corpus"))
    materialization = record.asset_materialization if record is not None else None
    counts = {name: entry.value for name, entry in (materialization.metadata if materialization else {}).items()}
    return {
        name: value
        for name, value in counts.items()
        if name.startswith(("documents_", "dropped_", "split_")) and isinstance(value, int | float)
    }


def _outdated(forge: Forge, lineages: Mapping[str, Lineage]) -> dict[str, tuple[str, ...]]:
    """Map each asset to the ancestors that have been made again since, the nearest last."""
    outdated: dict[str, tuple[str, ...]] = {}
    for asset in forge.assets():
        inputs = forge.inputs_of(asset)
        if asset in lineages:  # an imported model has no provenance
            made_from = {**lineages[asset].parents, **lineages[asset].data}
            now = {name: latest_digest(forge.instance, dg.AssetKey(name)) for name in made_from}
            changed = [name for name in inputs if name in now and now[name] not in (None, made_from[name])]
        else:
            record = latest_materialization(forge.instance, dg.AssetKey(asset))
            keys = [dg.AssetKey(name) for name in inputs]
            found = [] if record is None else changed_inputs(forge.instance, record, keys)
            changed = [key.to_user_string() for key in found]
        above = [name for parent in inputs for name in outdated.get(parent, ())]
        outdated[asset] = tuple(dict.fromkeys([*above, *changed]))
    return outdated


def _gate_rows(forge: Forge, record: dg.EventLogRecord, lineage: Lineage) -> list[GateRow]:
    """Return each gate with the verdict and threshold that Dagster recorded for this version."""
    verdicts: dict[str, tuple[bool, float]] = {}
    for check in forge.checks_of(lineage.asset):
        evaluation = completed_verdict(forge.instance, check, record.storage_id)
        table = evaluation.metadata.get("verdicts") if evaluation is not None else None
        if evaluation is None or not isinstance(table, dg.TableMetadataValue):
            continue
        for entry in table.records:
            name = str(entry.data["gate"])
            threshold = evaluation.metadata[f"threshold/{name}"].value
            verdicts[name] = (bool(entry.data["passed"]), float(threshold))  # type: ignore[arg-type]
    rows = []
    for gate in forge.rows(lineage.asset, lineage.profile, lineage.metrics):
        passed, threshold = verdicts.get(gate.name, (None, gate.threshold))
        value = lineage.metrics.get(gate.metric)
        finite = value if value is not None and math.isfinite(value) else None
        rows.append(GateRow(gate, finite, threshold, passed))
    return rows


def _artifact(row: ModelRow, bundle: Bundle) -> ArtifactRow:
    return ArtifactRow(
        bundle.payload(),
        bundle.model_bytes(),
        row.metric("bits_per_parameter"),
        row.metric("retention_to_best_parent"),
        row.interval("retention_to_best_parent"),
        row.metric("retention_to_merged_model"),
        row.interval("retention_to_merged_model"),
    )


def _figures(record: dg.EventLogRecord) -> dict[str, bytes]:
    """Return the figures that the phase reported, as PNG, without the curves of single metrics."""
    materialization = record.asset_materialization
    figures: dict[str, bytes] = {}
    for name, value in (materialization.metadata if materialization is not None else {}).items():
        label = name.removeprefix("plot/")
        if label == name or "/" in label or not isinstance(value.value, str):
            continue
        if encoded := re.search(r"base64,([A-Za-z0-9+/=]+)", value.value):
            figures[label] = base64.b64decode(encoded[1])
    return figures


def _model_json(row: ModelRow) -> dict[str, Any]:
    return {
        "asset": row.lineage.asset,
        "phase": row.lineage.phase,
        "digest": row.lineage.digest,
        "params": row.metric("params"),
        "bytes_on_disk": row.metric("bytes_on_disk"),
        "bits_per_byte": row.metric("bits_per_byte"),
        "next_token_accuracy": row.metric("next_token_accuracy"),
        "ci95": _pair(row.interval("next_token_accuracy")),
        "tasks": {family: dict(scores) for family, scores in row.lineage.tasks.items()},
        "latency_ms_per_token": row.metric("latency_ms_per_token"),
    }


def _control_json(row: ModelRow) -> dict[str, Any]:
    against = {
        name: {"value": row.metric(name), "ci95": _pair(row.interval(name))}
        for name in (BITS_TO_FILE, ACCURACY_TO_FILE)
    }
    return _model_json(row) | {"against_the_file": against}


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
