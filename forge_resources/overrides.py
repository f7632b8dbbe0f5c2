"""Overrides: a person opens the failed gate of one version of a model, on the record.

An override is a Dagster observation of the asset. It names the materialization that it applies to and the gates that
had failed, so the next materialization closes the gate again, and a gate that fails later on the same version is not
covered. It is never changed or removed, and the verdict itself stays. `forge_resources.gatekeeping` decides when one
may be written.

Loads no model code: the run coordinator reads overrides in the webserver and in the daemon.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import dagster as dg

OVERRIDE = "forge/override"  # the observation's metadata that holds the record
_PAGE = 100


@dataclass(frozen=True, slots=True)
class Override:
    """`who` accepted, at Unix time `at`, the gates `failed` of the materialization with storage id `version`."""

    asset: str
    version: int
    digest: str
    failed: tuple[str, ...]
    verdict: str
    reason: str
    who: str
    at: float

    def describe(self) -> str:
        """Return one line for logs and reports."""
        return f"overridden by {self.who} on {utc_text(self.at)}: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, with its time as text."""
        return {**asdict(self), "failed": list(self.failed), "at": utc_text(self.at)}


def utc_text(seconds: float) -> str:
    """Format a Unix time as text in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def record_override(instance: dg.DagsterInstance, override: Override) -> None:
    """Write the override into the event log of its asset."""
    observation = dg.AssetObservation(
        asset_key=override.asset,
        description=f"quality gate {override.describe()}",
        metadata={
            OVERRIDE: dg.MetadataValue.json(asdict(override)),
            "reason": dg.MetadataValue.text(override.reason),
            "who": dg.MetadataValue.text(override.who),
            "failed": dg.MetadataValue.text(override.verdict),
            "digest": dg.MetadataValue.text(override.digest),
        },
    )
    instance.report_runless_asset_event(observation)


def overrides_of(instance: dg.DagsterInstance, key: dg.AssetKey, *, after: int | None = None) -> list[Override]:
    """Return the overrides of `key`, newest first; with `after`, only those written after the event of that storage
    id."""
    return list(_read(instance, key, after))


def _read(instance: dg.DagsterInstance, key: dg.AssetKey, after: int | None) -> Iterator[Override]:
    wanted = dg.AssetRecordsFilter(asset_key=key, after_storage_id=after)
    cursor: str | None = None
    more = True
    while more:
        page = instance.fetch_observations(wanted, limit=_PAGE, cursor=cursor)
        for record in page.records:
            observation = record.asset_observation
            value = observation.metadata.get(OVERRIDE) if observation is not None else None
            content = value.value if value is not None else None
            if isinstance(content, dict) and content.keys() == {field.name for field in fields(Override)}:
                yield Override(**{**content, "failed": tuple(content["failed"])})
        cursor, more = page.cursor, page.has_more
