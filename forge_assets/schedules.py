"""A schedule for each phase (off by default) that skips while the quality gate of an input is closed.

Dagster cannot edit a cron expression in the UI, so it comes from the environment, which is read when the code location
is loaded: `FORGE_CRON` for all phases, `FORGE_CRON_<ASSET>` (for instance `FORGE_CRON_TRUNK`) for one of them, and
`FORGE_TIMEZONE` for the time zone.
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
    """Return a schedule `<asset>_schedule` for each of `assets` that is in the gate table.

    Raises:
        ValueError: when the environment holds an invalid cron expression or an unknown time zone.
    """
    table = gate_checks() if checks is None else checks
    return [_schedule(asset, table, environment) for asset in assets if asset.key in table]


def cron_of(asset: str, environment: Mapping[str, str]) -> str:
    """Return the cron expression of `asset`: from its own variable, else from `FORGE_CRON`, else nightly at three.

    Raises:
        ValueError: when the variable does not hold a valid cron expression.
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
            f"Makes and judges {name}; skips while the quality gate of an input is closed. "
            f"The environment variable FORGE_CRON_{name.upper()} or FORGE_CRON sets the time."
        ),
    )
    def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if reasons := closed_gates(context.instance, parents, checks, name):
            return dg.SkipReason("quality gate closed: " + "; ".join(reasons))
        return dg.RunRequest()

    return tick
