"""The rule of the quality gates: whether the current version of an asset passed the checks that block its children.

The guard inside each phase, the run coordinator, the schedules and the sensors all use this one lookup. It fails
closed. A gate is open only if there is a *completed* verdict on the asset's *latest* materialization that did not fail,
or if a person overrode that failure for exactly this materialization. A verdict on an older version, a check that was
planned but never ran, a version without any verdict, and a verdict measured on data that have been made again since
all leave the gate closed. A gate may block only some of the models that are made from the asset.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)

from forge_resources.overrides import Override, overrides_of, record_override

MEASURED_ON = "forge/measured_on"  # metadata of a verdict: data asset to the digest on which the model was measured
SHORTEST_REASON = 12  # characters
REPORTS = "forge/reports"  # tag of an asset that only reports: closed gates upstream do not block it
_COMPLETED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
_HISTORY = 100  # completed verdicts searched for the one on the latest materialization


@dataclass(frozen=True, slots=True)
class Judged:
    """The latest materialization of an asset, if any, and the reasons why its gates are closed; empty if they are open.

    `override` is the one that opens a failed gate.
    """

    record: dg.EventLogRecord | None
    closed: tuple[str, ...]
    override: Override | None = None


def closed_gates(
    instance: dg.DagsterInstance,
    parents: Sequence[dg.AssetKey],
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]],
    child: str | None = None,
) -> list[str]:
    """Return why `child` may not be made from `parents` now, one line per closed gate; empty if every gate is open.

    Without `child`, also gates that block only some models count.

    A parent without an entry in `checks` counts as closed: a model without gates is not passed on.
    """
    return [reason for key in parents for reason in judge_latest(instance, key, checks.get(key, ()), child).closed]


def judge_latest(
    instance: dg.DagsterInstance, key: dg.AssetKey, checks: Sequence[dg.AssetCheckKey], child: str | None = None
) -> Judged:
    """Look up the verdicts of `checks` on the latest materialization of `key`, and their overrides.

    With `child`, gates that block other models only are left out.
    """
    name = key.to_user_string()
    record = latest_materialization(instance, key)
    if record is None:
        return Judged(None, (f"{name} was never materialized",))
    if not checks:
        return Judged(record, (f"{name} has no quality gate in the table",))
    reasons: list[str] = []
    used: Override | None = None
    for check in checks:
        evaluation = completed_verdict(instance, check, record.storage_id)
        if evaluation is None:
            reasons.append(f"{check.to_user_string()}: the current version has no completed verdict; run the check")
        elif other := _measured_on_other_data(instance, evaluation):
            reasons.append(
                f"{check.to_user_string()}: the verdict is on {other}: make {name} again, which measures it "
                f"(forge run --select {name})"
            )
        elif _blocks(evaluation, child):
            override = _override_of(instance, key, record.storage_id, failed_gates(evaluation, child))
            if override is None:
                some = blocked_by(evaluation)
                whom = "" if some is None else f" for {', '.join(some)}"
                reasons.append(f"{check.to_user_string()}: FAILED{whom}, {evaluation.description or 'no reason given'}")
            used = override or used
    return Judged(record, tuple(reasons), used)


def latest_materialization(instance: dg.DagsterInstance, key: dg.AssetKey) -> dg.EventLogRecord | None:
    """Return the newest materialization of `key`, or None if it was never made."""
    records = instance.fetch_materializations(key, limit=1).records
    return records[0] if records else None


def latest_digest(instance: dg.DagsterInstance, key: dg.AssetKey) -> str | None:
    """Return the digest of the newest materialization of `key`, or None if it was never made or has none."""
    record = latest_materialization(instance, key)
    digest = record.asset_materialization.metadata.get("digest") if record and record.asset_materialization else None
    return None if digest is None else str(digest.value)


def completed_verdict(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, storage_id: int
) -> AssetCheckEvaluation | None:
    """Return the newest completed verdict of `check` on the materialization with this `storage_id`, if any."""
    # Runs that died before the check leave planned rows, newer than the verdict, which must not hide it: query
    # completed rows only. `get_latest_asset_check_evaluation_record` would return the planned row.
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=_HISTORY, status=_COMPLETED)
    for row in history:
        evaluation = row.evaluation
        target = evaluation.target_materialization_data if evaluation is not None else None
        if evaluation is not None and target is not None and target.storage_id == storage_id:
            return evaluation
    return None


def completed_verdicts(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> Iterator[AssetCheckExecutionRecord]:
    """Yield all completed verdicts of `check`, newest first."""
    cursor: int | None = None
    storage = instance.event_log_storage
    while rows := storage.get_asset_check_execution_history(check, limit=_HISTORY, cursor=cursor, status=_COMPLETED):
        yield from rows
        cursor = rows[-1].id


def verdict_rows(evaluation: AssetCheckEvaluation) -> list[Mapping[str, Any]]:
    """Return the verdict of `evaluation` on each gate; empty if the model could not be judged (missing or damaged)."""
    table = evaluation.metadata.get("verdicts")
    return [entry.data for entry in table.records] if isinstance(table, dg.TableMetadataValue) else []


def failed_gates(evaluation: AssetCheckEvaluation, child: str | None = None) -> tuple[str, ...]:
    """Return the names of the gates that failed in `evaluation`; with `child`, only those that block this model."""
    failed = [row for row in verdict_rows(evaluation) if not row["passed"]]
    return tuple(str(row["gate"]) for row in failed if child is None or not _whom(row) or child in _whom(row))


def blocked_by(evaluation: AssetCheckEvaluation) -> tuple[str, ...] | None:
    """Return the only models that the failure in `evaluation` blocks, or None if it blocks all or did not fail."""
    rows = [row for row in verdict_rows(evaluation) if not row["passed"]]
    if not rows or not all(_whom(row) for row in rows):
        return None
    return tuple(dict.fromkeys(name for row in rows for name in _whom(row)))


def override_gate(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    checks: Sequence[dg.AssetCheckKey],
    *,
    reason: str,
    who: str,
) -> Override:
    """Open the failed gate of the latest materialization of `key`, until the next one. The verdict is not changed.

    Raises:
        ValueError: when the reason is too short, or there is no failed verdict on the latest materialization: the asset
            was never made, was not judged, could not be read, or its gate is open.
    """
    name = key.to_user_string()
    said = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    if len(said) < SHORTEST_REASON:
        raise ValueError(
            f"the reason of an override must have at least {SHORTEST_REASON} characters, got {said!r}: say why the "
            "gate may be passed nevertheless; the reason is shown in the report permanently"
        )
    judged = judge_latest(instance, key, checks)
    if judged.record is None or not checks:
        raise ValueError(f"{judged.closed[0]}: there is no failed gate to override")
    if judged.override is not None:
        raise ValueError(f"the gate of {name} is open already: it was {judged.override.describe()}")
    if not judged.closed:
        raise ValueError(f"the gate of {name} is open: there is nothing to override")
    version = judged.record.storage_id
    failed: list[str] = []
    for check in checks:
        evaluation = completed_verdict(instance, check, version)
        if evaluation is None:
            raise ValueError(
                f"{check.to_user_string()} gave no verdict on the current version: only a failed gate can be "
                f"overridden, not one that did not judge; run the check first (forge run --select {name})"
            )
        if _blocks(evaluation) and not failed_gates(evaluation):
            raise ValueError(
                f"{name} could not be judged ({evaluation.description}): only a failed gate can be overridden; make it "
                f"again (forge run --select {name} --force {name})"
            )
        failed += failed_gates(evaluation) if _blocks(evaluation) else ()
    materialization = judged.record.asset_materialization
    digest = materialization.metadata.get("digest") if materialization is not None else None
    recorded = "" if digest is None else str(digest.value)
    override = Override(name, version, recorded, tuple(failed), "; ".join(judged.closed), said, who, time.time())
    record_override(instance, override)
    return override


def judgements_digest(instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey]) -> str:
    """Return a digest that changes with every materialization, completed verdict and override of the judged assets."""
    hasher = hashlib.sha256()
    for check in sorted(checks, key=lambda check: check.to_user_string()):
        record = latest_materialization(instance, check.asset_key)
        # By time and run, not by id: a planned row keeps its id when it is completed.
        newest = max(((row.event.timestamp, row.run_id) for row in _recent(instance, check) if row.event), default=None)
        overrides = [override.at for override in overrides_of(instance, check.asset_key)]
        version = None if record is None else record.storage_id
        hasher.update(repr((check.to_user_string(), version, newest, overrides)).encode())
    return hasher.hexdigest()


def _recent(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> Sequence[AssetCheckExecutionRecord]:
    return instance.event_log_storage.get_asset_check_execution_history(check, limit=_HISTORY, status=_COMPLETED)


def _blocks(evaluation: AssetCheckEvaluation, child: str | None = None) -> bool:
    """Whether a gate failed, for `child` or for any model. A gate that could not be judged blocks all of them."""
    return not evaluation.passed and (not verdict_rows(evaluation) or bool(failed_gates(evaluation, child)))


def _whom(row: Mapping[str, Any]) -> list[str]:
    """The models that a failed gate blocks; empty for all."""
    return str(row.get("blocks") or "").replace(",", " ").split()


def _measured_on_other_data(instance: dg.DagsterInstance, evaluation: AssetCheckEvaluation) -> str:
    """Name the data on which the judged model was measured and that have been made again since; empty if none were."""
    recorded = evaluation.metadata.get(MEASURED_ON)
    if not isinstance(recorded, dg.JsonMetadataValue) or not isinstance(recorded.value, Mapping):
        return "" if not verdict_rows(evaluation) else "data that were not recorded"
    latest = {name: latest_digest(instance, dg.AssetKey(name)) for name in recorded.value}
    other = [name for name, digest in recorded.value.items() if latest[name] not in (None, digest)]
    return f"an earlier {' and '.join(other)}" if other else ""


def _override_of(
    instance: dg.DagsterInstance, key: dg.AssetKey, version: int, failed: Sequence[str]
) -> Override | None:
    """The override of this version that covers all gates in `failed`, if any."""
    if not failed:
        return None
    candidates = overrides_of(instance, key, after=version)
    return next((o for o in candidates if o.version == version and set(failed) <= set(o.failed)), None)
