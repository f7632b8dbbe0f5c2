"""Asset checks made from the gate table: one blocking check `gate` per model asset, and one non-blocking check `claims`
for the assets that also make claims.

A check judges the stored bundle: the one named by the latest materialization, opened from the model store with its
digest verified.
"""

import math
from collections.abc import Sequence

import dagster as dg

from forge_assets.gates import GATES, gates_for
from forge_resources.gatekeeping import MEASURED_ON, latest_materialization
from training_core.gates import Gate, Verdict, for_each_part, judge
from training_core.store.bundle import Lineage

TRAINING_TEXT = "tokens"  # the data asset on which models are trained; they are measured on the others


def asset_checks(gates: Sequence[Gate] = GATES, assets: Sequence[str] | None = None) -> list[dg.AssetChecksDefinition]:
    """Return the blocking check `gate`, and `claims` if the table has any, for each of `assets` (default: all).

    Raises:
        ValueError: when an asset has no blocking gate.
    """
    wanted = assets if assets is not None else list(dict.fromkeys(gate.asset for gate in gates))
    checks = []
    for asset in wanted:
        rows = [gate for gate in gates if gate.asset == asset]
        if not any(gate.blocking for gate in rows):
            raise ValueError(f"{asset} has no blocking gate: add one to GATES in the gates.py of its phase")
        checks.append(_check(asset, gates, blocking=True))
        if not all(gate.blocking for gate in rows):
            checks.append(_check(asset, gates, blocking=False))
    return checks


def _check(asset: str, gates: Sequence[Gate], *, blocking: bool) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=dg.AssetKey(asset),
        name="gate" if blocking else "claims",
        blocking=blocking,
        required_resource_keys={"store", "tracking"},
        description=(
            f"Quality gate of {asset}: every criterion must pass before anything is built from it."
            if blocking
            else f"Claims of {asset}: what its paper or the specification promises. A failed claim is reported "
            "and does not block."
        ),
    )
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        record = latest_materialization(context.instance, dg.AssetKey(asset))
        try:
            bundle = context.resources.store.open_materialized(asset, record)
            lineage = bundle.lineage()
            table = for_each_part(gates_for(asset, lineage.profile, gates), lineage.metrics)
            rows = [g for g in table if g.blocking == blocking]
        except ValueError as error:  # the bundle is missing or damaged, or has no thresholds: the check fails closed
            severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
            return dg.AssetCheckResult(passed=False, severity=severity, description=str(error))
        verdicts = [judge(gate, lineage.metrics) for gate in rows]
        passed = all(verdict.passed for verdict in verdicts)
        if blocking and passed:
            run = context.run
            root_run_id = run.root_run_id or run.run_id
            context.resources.tracking.promote(asset, lineage.digest, root_run_id=root_run_id, warn=context.log.warning)
        # Dagster blocks all children or none. A failure that blocks some of them is a warning to it, for which it
        # waits, and the guard of each child reads in `verdicts` whom it blocks.
        some_blocked = not passed and all(verdict.passed or verdict.gate.blocks for verdict in verdicts)
        return dg.AssetCheckResult(
            passed=passed,
            severity=dg.AssetCheckSeverity.WARN if some_blocked or not blocking else dg.AssetCheckSeverity.ERROR,
            description="; ".join(v.describe() for v in verdicts if passed or not v.passed),
            metadata=_metadata(verdicts, lineage),
        )

    return check


def _metadata(verdicts: Sequence[Verdict], lineage: Lineage) -> dict[str, dg.MetadataValue]:
    """Return each value and threshold as a number, which Dagster plots over time, and all of them as one table.

    `MEASURED_ON` holds the digests of the data on which the model was measured.
    """
    metadata: dict[str, dg.MetadataValue] = {
        "digest": dg.MetadataValue.text(lineage.digest),
        MEASURED_ON: dg.MetadataValue.json({name: d for name, d in lineage.data.items() if name != TRAINING_TEXT}),
    }
    for verdict in verdicts:
        if verdict.value is not None and math.isfinite(verdict.value):  # GraphQL has no NaN
            metadata[verdict.gate.metric] = dg.MetadataValue.float(float(verdict.value))
        metadata[f"threshold/{verdict.gate.name}"] = dg.MetadataValue.float(float(verdict.gate.threshold))
    metadata["verdicts"] = dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "gate": verdict.gate.name,
                    "metric": verdict.gate.metric,
                    "value": "not measured" if verdict.value is None else f"{verdict.value:.6g}",
                    "required": f"{verdict.gate.direction} {verdict.gate.threshold:g}",
                    "against": verdict.gate.against,
                    "evidence": verdict.gate.evidence,
                    "passed": verdict.passed,
                    "blocks": ", ".join(verdict.gate.blocks),
                }
            )
            for verdict in verdicts
        ]
    )
    return metadata
