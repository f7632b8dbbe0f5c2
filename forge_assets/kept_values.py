"""The values that an asset was made with: later runs that give it no configuration keep them.

A materialization records its profile and those values that differ from the profile's (`VALUES`). A run that says
nothing about an asset, from the command line, the UI, a schedule or a sensor, makes it with the recorded values again,
so that nobody's corpus is replaced by the demo's because a command left the configuration out. Going back to the
profile's values is asked for by name: `forge run --defaults`, or the run tag `DEFAULTS` in the launchpad.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
from pydantic import BaseModel

from forge_assets.graph_view import UserError
from training_core.config import ConfigT, leaves, with_values

VALUES = "forge/values"  # materialization metadata: dotted path to value
PROFILE = "profile"
DEFAULTS = "forge/defaults"  # tag of a run that goes back to the profile's values
_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Kept:
    """The recorded values of an asset's latest materialization, and its profile (empty if it was not recorded)."""

    values: Mapping[str, Any]
    profile: str

    def describe(self) -> str:
        """Return the values on one line."""
        return ", ".join(f"{path}={_short(value)}" for path, value in self.values.items())


def recorded(record: dg.EventLogRecord | None) -> Kept:
    """Return the values that the materialization `record` was made with; none for an asset that was never made."""
    materialization = record.asset_materialization if record is not None else None
    metadata = materialization.metadata if materialization is not None else {}
    values, profile = metadata.get(VALUES), metadata.get(PROFILE)
    held = values.value if isinstance(values, dg.JsonMetadataValue) else None
    return Kept(dict(held) if isinstance(held, Mapping) else {}, "" if profile is None else str(profile.value))


def described(config: BaseModel, defaults: BaseModel, profile: str) -> dict[str, Any]:
    """Return the metadata from which `recorded` reads: the profile, and the values of `config` unlike its defaults."""
    return {VALUES: dg.MetadataValue.json(differences(config, defaults)), PROFILE: profile}


def differences(config: BaseModel, defaults: BaseModel) -> dict[str, Any]:
    """Return the values of `config` that are not those of `defaults`: dotted path to JSON value."""
    before = dict(leaves(defaults.model_dump(mode="json"), type(defaults)))
    after = leaves(config.model_dump(mode="json"), type(config))
    return {path: value for path, value in after if path not in before or before[path] != value}


def given_values(config: BaseModel, defaults: BaseModel, kept: Kept) -> dict[str, Any]:
    """Return the nested values of a run configuration with which `config` takes effect, whatever was kept before."""
    now = dict(leaves(config.model_dump(mode="json"), type(config)))
    return nested({path: now[path] for path in kept.values if path in now} | differences(config, defaults))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values at dotted paths as nested sections."""
    document: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return document


def in_effect(
    asset: str, config: ConfigT, given: Mapping[str, Any], kept: Kept, profile: str, *, defaults: bool = False
) -> ConfigT:
    """Return the configuration that a run makes `asset` with.

    `config` holds the profile's values and those `given` for this run (nested); it is used as it stands where anything
    was given. Else the values in `kept` are put in place of the profile's, unless the run goes back to `defaults`.

    Raises:
        UserError: when the kept values belong to another profile or no longer exist, or when the given ones would drop
            one of them.
    """
    if defaults or not kept.values:
        return config
    ways = f"forge run --defaults takes the profile's values (in the launchpad: the tag {DEFAULTS}=true)"
    if given:
        named = [path for path, _ in leaves(given, type(config))]
        if dropped := [path for path in kept.values if not any(_covers(path, one) for one in named)]:
            what = Kept({path: kept.values[path] for path in dropped}, kept.profile).describe()
            raise UserError(
                f"{asset} was made with {what}, which the configuration of this run leaves out: add "
                f"{', '.join(dropped)} to it to keep that; {ways}"
            )
        return config
    if kept.profile not in ("", profile):
        raise UserError(
            f"{asset} was made at profile {kept.profile} with {kept.describe()}: "
            f"forge run --profile {profile} --config FILE names the values for {profile}; {ways}"
        )
    try:
        return with_values(config, kept.values)
    except ValueError as error:
        raise UserError(
            f"{asset} was made with {kept.describe()}, which is no longer accepted ({error}): name its values in "
            f"forge run --config FILE; {ways}"
        ) from error


def _covers(path: str, named: str) -> bool:
    return path == named or path.startswith(f"{named}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
