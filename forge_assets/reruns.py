"""A sensor (off by default) that makes a phase again when its inputs have changed and their gates are open.

It only remakes models that were made before, with the values that they were made with (`kept_values`). An input counts
as changed when its content did (Dagster's data version): a parent remade with identical weights triggers nothing.
Phases are made one level at a time: a phase downstream of a changing asset waits until that asset is made and judged. A
phase that failed is not tried again on the same inputs. Gates and their overrides apply as usual. The sensor never
makes data assets (a question bank may cost money); a phase whose data is out of date waits until a person makes the
data again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import dagster as dg

from forge_assets.gates import gate_checks
from forge_assets.launchpad import selected_profile
from forge_assets.provenance import changed_inputs, recorded_value
from forge_resources.gatekeeping import closed_gates, latest_digest, latest_materialization

Checks = Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]]
_ACTIVE = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(slots=True)
class Wanted:
    """The runs that a tick requests, and the reasons why other stale assets have to wait."""

    requests: list[dg.RunRequest] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


def rerun_sensor(
    assets: Sequence[dg.AssetsDefinition], *, checks: Checks | None = None, interval_s: int = 60
) -> dg.SensorDefinition:
    """Return the sensor `rerun_changed_phases`, which targets those of `assets` that are in the gate table."""
    table = gate_checks() if checks is None else checks
    parents = {asset.key: sorted(asset.asset_deps[asset.key]) for asset in assets}

    @dg.sensor(
        name="rerun_changed_phases",
        target=dg.AssetSelection.assets(*(key for key in parents if key in table)),
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=interval_s,
        description="Makes a phase again when its inputs have changed and their quality gates are open.",
    )
    def tick(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        wanted = changed_phases(context.instance, parents, table)
        for line in wanted.waiting:
            context.log.info(line)
        if wanted.requests:
            return dg.SensorResult(run_requests=wanted.requests)
        return dg.SensorResult(skip_reason="; ".join(wanted.waiting) or "no phase has inputs that changed")

    return tick


def changed_phases(
    instance: dg.DagsterInstance, parents: Mapping[dg.AssetKey, Sequence[dg.AssetKey]], checks: Checks
) -> Wanted:
    """Return the runs to request now. `parents` maps every asset to its inputs; the phases are the keys of `checks`."""
    wanted = Wanted()
    busy = _busy(instance, parents)
    changing: set[dg.AssetKey] = set()
    for key in TopologicalSorter(parents).static_order():
        record = latest_materialization(instance, key)
        above = [parent for parent in parents.get(key, ()) if parent in changing]
        if above or key in busy:  # whatever is downstream of a changing asset will have other inputs soon
            changing.add(key)
        if key in busy:
            wanted.waiting.append(f"{key.to_user_string()} is being made by run {busy[key][:8]}")
            continue
        if record is None:
            continue
        changed = changed_inputs(instance, record, parents.get(key, ()))
        if not changed:
            continue
        changing.add(key)
        name, what = key.to_user_string(), ", ".join(parent.to_user_string() for parent in changed)
        if key not in checks:
            wanted.waiting.append(f"{name} was made from an earlier {what}: make it again")
        elif above:
            names = ", ".join(parent.to_user_string() for parent in above)
            wanted.waiting.append(f"{name} waits for {names}, which is about to change")
        elif (profile := recorded_value(record, "profile")) != selected_profile():
            wanted.waiting.append(f"{name} was made at profile {profile}, and here it would be {selected_profile()}")
        elif closed := closed_gates(instance, [p for p in parents[key] if p in checks], checks, name):
            wanted.waiting.append(f"{name} waits, quality gate closed: {'; '.join(closed)}")
        else:
            wanted.requests.append(_request(instance, key, record, parents[key], what))
    return wanted


def _request(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    record: dg.EventLogRecord,
    parents: Sequence[dg.AssetKey],
    what: str,
) -> dg.RunRequest:
    """Return a run request for one phase.

    Dagster launches a run key only once and the key names the inputs, so a phase that failed is not repeated on them.
    """
    content = repr([(str(parent), latest_digest(instance, parent)) for parent in parents])
    name = key.to_python_identifier()
    return dg.RunRequest(
        run_key=f"{name}:{record.storage_id}:{hashlib.sha256(content.encode()).hexdigest()[:16]}",
        asset_selection=[key],
        tags={"forge/changed_inputs": what},
    )


def _busy(instance: dg.DagsterInstance, known: Mapping[dg.AssetKey, Any]) -> dict[dg.AssetKey, str]:
    """Map each asset that an active run makes or is about to make to that run.

    A run without an asset selection makes every asset.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=_ACTIVE))
    whole = {run.run_id for run in runs if run.asset_selection is None and run.asset_check_selection is None}
    return {key: r.run_id for r in runs for key in (known if r.run_id in whole else r.asset_selection or ())}
