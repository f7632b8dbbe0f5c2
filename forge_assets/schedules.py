"""A schedule for each phase, off until turned on, that skips while an input's quality gate is closed."""

from collections.abc import Mapping, Sequence

import dagster as dg

from forge_assets.gates import gate_checks
from forge_resources.gatekeeping import closed_gates

NIGHTLY = "0 3 * * *"


def phase_schedules(
    assets: Sequence[dg.AssetsDefinition],
    *,
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]] | None = None,
    cron: str = NIGHTLY,
) -> list[dg.ScheduleDefinition]:
    """A schedule `<asset>_schedule` for each of `assets` that the gate table knows."""
    table = gate_checks() if checks is None else checks
    return [_schedule(asset, table, cron) for asset in assets if asset.key in table]


def _schedule(
    asset: dg.AssetsDefinition, checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]], cron: str
) -> dg.ScheduleDefinition:
    name = asset.key.to_python_identifier()
    parents = sorted(asset.asset_deps[asset.key] & checks.keys())

    @dg.schedule(
        name=f"{name}_schedule",
        target=dg.AssetSelection.assets(asset.key),
        cron_schedule=cron,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Makes {name} and judges it; skips while an input's quality gate is closed.",
    )
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if reasons := closed_gates(context.instance, parents, checks):
            return dg.SkipReason("quality gate closed: " + "; ".join(reasons))
        return dg.RunRequest()

    return tick
