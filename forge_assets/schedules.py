"""A schedule for each phase, off until turned on, that skips while an input's quality gate is closed.

Dagster cannot edit a cron expression in the UI. The environment says when, and is read when the code location is
loaded: `FORGE_CRON` for all phases, `FORGE_CRON_<ASSET>` (for instance `FORGE_CRON_TRUNK`) for one, `FORGE_TIMEZONE`
for the zone.
"""

import os
from collections.abc import Mapping, Sequence
from zoneinfo import available_timezones

import dagster as dg
from dagster._utils.schedules import is_valid_cron_string

from forge_assets.gates import gate_checks
from forge_resources.gatekeeping import closed_gates

NIGHTLY = "0 3 * * *"


def phase_schedules(
    assets: Sequence[dg.AssetsDefinition],
    *,
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[dg.ScheduleDefinition]:
    """A schedule `<asset>_schedule` for each of `assets` that the gate table knows.

    Raises:
        ValueError: when the environment holds a cron expression or a time zone that does not exist.
    """
    table = gate_checks() if checks is None else checks
    return [_schedule(asset, table, environment) for asset in assets if asset.key in table]


def cron_of(asset: str, environment: Mapping[str, str]) -> str:
    """The cron expression for `asset`: its own variable, else that for all, else every night at three.

    Raises:
        ValueError: when it is not one.
    """
    for variable in (f"FORGE_CRON_{asset.upper()}", "FORGE_CRON"):
        if expression := environment.get(variable, "").strip():
            if not is_valid_cron_string(expression):
                raise ValueError(
                    f"{variable} must be a cron expression of five fields such as '{NIGHTLY}', got {expression!r}"
                )
            return expression
    return NIGHTLY


def _zone(environment: Mapping[str, str]) -> str:
    zone = environment.get("FORGE_TIMEZONE", "").strip() or "UTC"
    if zone != "UTC" and zone not in available_timezones():
        raise ValueError(f"FORGE_TIMEZONE must be a time zone such as 'Europe/Berlin', got {zone!r}")
    return zone


def _schedule(
    asset: dg.AssetsDefinition,
    checks: Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]],
    environment: Mapping[str, str],
) -> dg.ScheduleDefinition:
    name = asset.key.to_python_identifier()
    parents = sorted(asset.asset_deps[asset.key] & checks.keys())

    @dg.schedule(
        name=f"{name}_schedule",
        target=dg.AssetSelection.assets(asset.key),
        cron_schedule=cron_of(name, environment),
        execution_timezone=_zone(environment),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=(
            f"Makes {name} and judges it; skips while an input's quality gate is closed. "
            f"FORGE_CRON_{name.upper()} or FORGE_CRON in the environment says when."
        ),
    )
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if reasons := closed_gates(context.instance, parents, checks):
            return dg.SkipReason("quality gate closed: " + "; ".join(reasons))
        return dg.RunRequest()

    return tick
