"""Configurations: frozen pydantic models, nested by section, whose values have dotted paths (`training.steps`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Config(BaseModel):
    """The base of every configuration. A partially given section keeps this configuration's defaults for the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _complete_sections(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        complete = dict(values)
        for name, field in cls.model_fields.items():
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            # Pydantic alone would fill a partial section with the section class's defaults, not with this field's.
            if isinstance(default, BaseModel) and isinstance(given := complete.get(name), Mapping):
                complete[name] = default.model_dump() | dict(given)
        return complete


def paths(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every value of `config`, in the order of its fields."""
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from paths(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def with_values(config: ConfigT, values: Mapping[str, Any]) -> ConfigT:
    """Return `config` with the values at some dotted paths replaced, validated.

    Raises:
        ValueError: for a path that does not exist, with suggestions; a ValidationError for a value out of bounds.
    """
    document = config.model_dump()
    known = list(paths(type(config)))
    for path, value in values.items():
        *sections, name = path.split(".")
        place = document
        for section in sections:
            place = place.get(section, {}) if isinstance(place, dict) else {}
        if not isinstance(place, dict) or name not in place:
            raise ValueError(f"there is no value {path!r}: {suggestion(path, known)}")
        place[name] = value
    return type(config).model_validate(document)


def unknown_paths(config: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted paths in the nested `values` that `config` does not have."""
    unknown: list[str] = []
    for name, value in values.items():
        field = config.model_fields.get(name)
        section = None if field is None else field.annotation
        if field is None:
            unknown.append(prefix + name)
        elif isinstance(section, type) and issubclass(section, BaseModel) and isinstance(value, Mapping):
            unknown += unknown_paths(section, value, f"{prefix}{name}.")
    return unknown


def suggestion(path: str, known: list[str]) -> str:
    """Suggest existing paths for an unknown one: those with the same last part, else similar ones."""
    last = path.rpartition(".")[2]
    meant = [one for one in known if one.rpartition(".")[2] == last or one.replace(".", "_") == path]
    meant = meant or difflib.get_close_matches(path, known, n=3, cutoff=0.5) or known
    return f"did you mean {' or '.join(meant)}?" if len(meant) <= 3 else f"choose one of {', '.join(meant)}"
