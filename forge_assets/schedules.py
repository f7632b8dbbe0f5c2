"""The sensor `schedules` (off by default): makes assets at the times in `schedules.yaml` of the forge home.

    timezone: Europe/Berlin            # optional; UTC
    nightly: {cron: "0 3 * * *", assets: [trunk, merged_model]}
    weekly:  {cron: "0 6 * * 1", assets: [corpus, tokens]}

The file is read at every tick, so that it can be edited without restarting anything (Dagster reads a schedule's cron
expression only when the code location is loaded). An asset may stand in several schedules. One whose inputs have a
closed quality gate is skipped with the reason. Times that passed while the sensor was off are not made up for; times
that passed while the daemon was down are, by one run. A table that cannot be used is reported in the tick, and its
times are kept until it can.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import dagster as dg
from dagster._utils.schedules import cron_string_iterator, is_valid_cron_string
from pydantic import ConfigDict, Field

from forge_assets.config_file import ConfigFileError, read_mapping
from forge_assets.gates import gate_checks
from forge_resources import forge_home
from forge_resources.gatekeeping import REPORTS, closed_gates
from training_core.config import Config, ConfigError, suggestion, validated

FILE = "schedules.yaml"
TIMEZONE = "timezone"
Checks = Mapping[dg.AssetKey, Sequence[dg.AssetCheckKey]]


class Schedule(Config):
    """When to make which assets."""

    model_config = ConfigDict(strict=True)

    cron: str = Field(description="A cron expression of five fields")
    assets: list[str] = Field(min_length=1, description="Names of the assets to make, in one run")


@dataclass(frozen=True, slots=True)
class Table:
    """The schedules by name, and the time zone of their cron expressions."""

    schedules: Mapping[str, Schedule]
    timezone: str


def schedule_sensor(
    assets: Sequence[dg.AssetsDefinition], *, checks: Checks | None = None, interval_s: int = 30
) -> dg.SensorDefinition:
    """Return the sensor `schedules`, which may make any of `assets`."""
    table = gate_checks() if checks is None else checks
    parents = {asset.key: sorted(asset.asset_deps[asset.key]) for asset in assets}
    reports = {asset.key for asset in assets if REPORTS in asset.tags_by_key[asset.key]}

    @dg.sensor(
        name="schedules",
        target=dg.AssetSelection.assets(*parents),
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=interval_s,
        description=f"Makes assets at the times in {FILE} of the forge home, which may be edited at any time.",
    )
    def tick(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(UTC)
        since = datetime.fromisoformat(context.cursor) if context.cursor else now
        try:
            schedules = read_table(forge_home() / FILE, [key.to_user_string() for key in parents])
        except ValueError as error:
            context.log.error(str(error))
            return dg.SensorResult(skip_reason=str(error), cursor=since.isoformat())
        requests, said = [], []
        for name, due in due_times(schedules, since, now).items():
            keys = [dg.AssetKey(asset) for asset in schedules.schedules[name].assets]
            closed = [
                reason
                for key in keys
                if key not in reports
                for reason in closed_gates(
                    context.instance,
                    [parent for parent in parents[key] if parent in table and parent not in keys],
                    table,
                    key.to_user_string(),
                )
            ]
            if closed:
                said.append(f"{name} is skipped, quality gate closed: {'; '.join(dict.fromkeys(closed))}")
                context.log.warning(said[-1])
                continue
            tags = {"forge/schedule": name, "forge/scheduled_for": due.isoformat()}
            requests.append(dg.RunRequest(run_key=f"{name}:{due.isoformat()}", asset_selection=keys, tags=tags))
        if not requests:
            reason = "; ".join(said) or (
                "no schedule is due" if schedules.schedules else f"there is no schedule in {forge_home() / FILE}"
            )
            return dg.SensorResult(skip_reason=reason, cursor=now.isoformat())
        return dg.SensorResult(run_requests=requests, cursor=now.isoformat())

    return tick


def read_table(path: Path, assets: Sequence[str]) -> Table:
    """Return the table in `path`, whose schedules may name `assets`; an empty one if there is no file.

    Raises:
        ValueError: for a table that cannot be used, in one line with its file, schedule and field.
    """
    if not path.exists():
        return Table({}, "UTC")
    document, lines = read_mapping(path)
    timezone = document.pop(TIMEZONE, "UTC")
    if timezone != "UTC" and timezone not in available_timezones():
        raise ConfigFileError(
            f"{path}, line {lines[TIMEZONE]}: timezone must be a time zone such as 'Europe/Berlin', got {timezone!r}"
        )
    return Table(
        {name: _schedule(path, lines[name], name, given, assets) for name, given in document.items()}, timezone
    )


def due_times(table: Table, since: datetime, now: datetime) -> dict[str, datetime]:
    """Return for each schedule that was due after `since`, and until `now`, the last time at which it was."""
    due = {}
    for name, schedule in table.schedules.items():
        backwards = cron_string_iterator(now.timestamp(), schedule.cron, table.timezone, ascending=False)
        last = next(time for one in backwards if (time := one.astimezone(UTC)) <= now)
        if last > since:
            due[name] = last
    return due


def _schedule(path: Path, line: int, name: str, given: Any, assets: Sequence[str]) -> Schedule:
    if not isinstance(given, Mapping):
        raise ConfigFileError(
            f"{path}, line {line}: {name} must be fields with values, got {given!r}; the form is "
            f"'{name}: {{cron: \"0 3 * * *\", assets: [trunk]}}'"
        )
    try:
        schedule = validated(Schedule, given, name)
    except ConfigError as error:
        raise ConfigFileError(f"{path}, line {line}: {error}") from error
    if len(schedule.cron.split()) != 5 or not is_valid_cron_string(schedule.cron):
        raise ConfigFileError(
            f"{path}, line {line}: {name}.cron must be a cron expression of five fields such as '0 3 * * *', "
            f"got {schedule.cron!r}"
        )
    for asset in schedule.assets:
        if asset not in assets:
            raise ConfigFileError(
                f"{path}, line {line}: {name}.assets names {asset!r}, and there is no such asset: "
                f"{suggestion(asset, list(assets))}"
            )
    return schedule
