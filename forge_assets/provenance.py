"""What an asset was made from, compared with what its inputs are now (Dagster's data versions)."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.data_version import extract_data_provenance_from_entry

from forge_resources.gatekeeping import latest_digest


def changed_inputs(
    instance: dg.DagsterInstance, record: dg.EventLogRecord, parents: Sequence[dg.AssetKey]
) -> list[dg.AssetKey]:
    """Return the inputs whose content has changed; none if inputs were not recorded, as for an imported model."""
    provenance = extract_data_provenance_from_entry(record.event_log_entry)
    if provenance is None or not provenance.input_data_versions:
        return []
    recorded = {key: version.value for key, version in provenance.input_data_versions.items()}
    now = {parent: latest_digest(instance, parent) for parent in parents}
    return [parent for parent, version in now.items() if version is not None and recorded.get(parent) != version]


def recorded_value(record: dg.EventLogRecord, name: str) -> str | None:
    """Return the text `name` in the metadata of a materialization, or None if it was not recorded."""
    materialization = record.asset_materialization
    value = materialization.metadata.get(name) if materialization is not None else None
    return None if value is None else str(value.value)
