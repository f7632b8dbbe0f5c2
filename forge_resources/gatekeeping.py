"""The law of the quality gates: whether the current version of an asset passed what blocks its children.

One lookup answers for everyone who asks: the guard inside each phase, the run coordinator and the
schedules. It fails closed. A gate is open only if a *completed* verdict exists that was given on the asset's
*latest* materialization and that did not fail with severity ERROR. A verdict on an older version, a check
that was planned but never ran, and a version that nobody judged all leave the gate closed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

_COMPLETED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
_HISTORY = 100  # completed verdicts looked through for the one on the latest materialization


@dataclass(frozen=True, slots=True)
class Judged:
    """The latest materialization of an asset, if any, and why its gates are closed, if they are."""

    record: dg.EventLogRecord | None
    closed: tuple[str, ...]


def closed_gates(
    instance: dg.DagsterInstance,
    parents: Sequence[dg.AssetKey],
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]],
) -> list[str]:
    """Why nothing may be built from `parents` now, one line a closed gate; empty when every gate is open.

    A parent without an entry in `checks` is closed: a model that nothing judges is not passed on.
    """
    return [reason for key in parents for reason in judge_latest(instance, key, checks.get(key, ())).closed]


def judge_latest(instance: dg.DagsterInstance, key: dg.AssetKey, checks: Sequence[dg.AssetCheckKey]) -> Judged:
    """Look up the verdicts that `checks` gave on the latest materialization of `key`."""
    name = key.to_user_string()
    record = latest_materialization(instance, key)
    if record is None:
        return Judged(None, (f"{name} was never materialized",))
    if not checks:
        return Judged(record, (f"{name} has no quality gate in the table",))
    reasons = (_closed(instance, check, record.storage_id) for check in checks)
    return Judged(record, tuple(reason for reason in reasons if reason is not None))


def latest_materialization(instance: dg.DagsterInstance, key: dg.AssetKey) -> dg.EventLogRecord | None:
    """The newest materialization of `key`, or None when it was never made."""
    records = instance.fetch_materializations(key, limit=1).records
    return records[0] if records else None


def _closed(instance: dg.DagsterInstance, check: dg.AssetCheckKey, storage_id: int) -> str | None:
    evaluation = completed_verdict(instance, check, storage_id)
    if evaluation is None:
        return f"{check.to_user_string()}: the current version has no completed verdict; run the check"
    if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
        return f"{check.to_user_string()}: FAILED, {evaluation.description or 'no reason given'}"
    return None


def completed_verdict(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, storage_id: int
) -> AssetCheckEvaluation | None:
    """The newest completed verdict of `check` on the materialization with this `storage_id`, if any."""
    # Planned rows of runs that died before the check are newer than the verdict and must not hide it: ask for
    # completed rows only. `get_latest_asset_check_evaluation_record` would return the planned row.
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=_HISTORY, status=_COMPLETED)
    for row in history:
        evaluation = row.evaluation
        target = evaluation.target_materialization_data if evaluation is not None else None
        if evaluation is not None and target is not None and target.storage_id == storage_id:
            return evaluation
    return None
