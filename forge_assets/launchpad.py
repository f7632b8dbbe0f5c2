"""The Dagster launchpad's view of a phase's configuration.

The configuration itself is a frozen, nested pydantic model in `training_core`. Its view has the same sections, fields,
descriptions and types, with the values of the selected profile as defaults, but no bounds: they are checked inside the
asset, where a violation fails the run at once instead of being retried.
"""

import os
from collections.abc import Iterable
from typing import Any, get_args, get_origin

import dagster as dg
from dagster._config.config_type import ConfigTypeKind
from dagster._config.errors import EvaluationError
from dagster._config.snap import ConfigTypeSnap
from dagster._config.stack import EvaluationStackListItemEntry, EvaluationStackPathEntry
from pydantic import BaseModel, Field, create_model

from training_core.profiles import PROFILES

DEFAULT_PROFILE = "nano"


def selected_profile() -> str:
    """Return the profile whose values the launchpad shows as defaults: the variable `FORGE_PROFILE`, else nano."""
    profile = os.environ.get("FORGE_PROFILE") or DEFAULT_PROFILE
    if profile not in PROFILES:
        raise ValueError(f"FORGE_PROFILE must be one of {', '.join(PROFILES)}, got {profile!r}")
    return profile


_KINDS = {"Int": "a whole number", "Float": "a number", "Bool": "true or false", "String": "text"}


def config_problem(error: EvaluationError) -> str:
    """Return what Dagster refuses in a run's configuration, as `asset.section.field: must be ..., got ...`."""
    names = []
    for entry in error.stack.entries:
        if isinstance(entry, EvaluationStackPathEntry):
            names.append(entry.field_name)
        elif isinstance(entry, EvaluationStackListItemEntry):
            names.append(str(entry.list_index))
    path = ".".join(name for place, name in enumerate(names) if (place, name) not in ((0, "ops"), (2, "config")))
    data = error.error_data
    snap = getattr(data, "config_type_snap", None)
    value = getattr(data, "value_rep", None)
    value = "null" if value == "None" else value
    if snap is None:
        return f"{path}: {error.message.partition('. Expected')[0]}"
    return f"{path}: must be {_wanted(snap)}, got {value}"


def _wanted(snap: ConfigTypeSnap) -> str:
    if snap.kind == ConfigTypeKind.ENUM:
        return " or ".join(repr(one.value) for one in snap.enum_values or ())
    if snap.kind == ConfigTypeKind.ARRAY:
        return "a list"
    if ConfigTypeKind.has_fields(snap.kind):
        return "fields with values"
    return _KINDS.get(snap.given_name or "", snap.given_name or "another value")


def launchpad_fields(config: type[BaseModel], preset: BaseModel | None = None) -> dict[str, Any]:
    """Return the fields of `config` as Dagster config fields, with the values of `preset` as defaults, if given.

    Raises:
        ValueError: when `preset` is not a configuration of this class.
    """
    if preset is not None and not isinstance(preset, config):
        raise ValueError(f"the preset is a {type(preset).__name__}, and the asset's configuration a {config.__name__}")
    return dict(_view(config, preset).to_fields_dict())


def _view(config: type[BaseModel], values: BaseModel | None) -> type[dg.Config]:
    """Return the Dagster configuration class of `config`, with a section for each nested model."""
    fields: dict[str, Any] = {}
    for name, info in config.model_fields.items():
        default: Any = ... if info.is_required() else info.get_default(call_default_factory=True)
        if values is not None:
            default = getattr(values, name)
        if isinstance(default, BaseModel):
            section = _view(type(default), default)
            fields[name] = (section, Field(section(), description=info.description))
            continue
        default = list(default) if isinstance(default, tuple) else default
        annotation, described = _plain(info.annotation), _describe(info.description, info.metadata)
        (entry,) = get_args(info.annotation) if get_origin(info.annotation) is list else (None,)
        if isinstance(entry, type) and issubclass(entry, BaseModel):
            annotation = list[_view(entry, None)]  # type: ignore[misc]
            default = [one.model_dump(mode="json") for one in default]
        fields[name] = (annotation, Field(default, description=described))
    return create_model(f"{config.__name__}View", __base__=dg.Config, **fields)


def _plain(annotation: Any) -> Any:
    """Return `list[int]` for `tuple[int, ...]`: Dagster's config has lists but no tuples."""
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    return annotation


def _describe(description: str | None, bounds: Iterable[Any]) -> str:
    limits = []
    for bound in bounds:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (value := getattr(bound, name, None)) is not None:
                limits.append(f"{sign} {value:g}")
    return (description or "") + (f" ({', '.join(limits)})" if limits else "")
