"""Configurations: frozen pydantic models, nested by section, whose values have dotted paths (`training.steps`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Config(BaseModel):
    """Base of every configuration. A section that is given in part keeps the other defaults of this configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _complete_sections(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        complete = dict(values)
        for name, field in cls.model_fields.items():
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel) and isinstance(given := complete.get(name), Mapping):
                complete[name] = default.model_dump() | dict(given)
        return complete


def paths(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted path of every value of `config`, sections before what follows them."""
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from paths(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def with_values(config: ConfigT, values: Mapping[str, Any]) -> ConfigT:
    """`config` with other values at dotted paths, validated.

    Raises:
        ValueError: for a path that does not exist, naming those that are meant most likely; a ValidationError where a
            value is out of its bounds.
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
    """The dotted paths in the nested `values` that `config` does not have."""
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
    """Which of the paths that there are `path` may have meant: those with the same last part, else similar ones."""
    last = path.rpartition(".")[2]
    meant = [one for one in known if one.rpartition(".")[2] == last or one.replace(".", "_") == path]
    meant = meant or difflib.get_close_matches(path, known, n=3, cutoff=0.5) or known
    return f"did you mean {' or '.join(meant)}?" if len(meant) <= 3 else f"choose one of {', '.join(meant)}"
