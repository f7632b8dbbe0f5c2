"""Configurations: frozen pydantic models, nested by section, whose values have dotted paths (`training.steps`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

ConfigT = TypeVar("ConfigT", bound=BaseModel)

_LONGEST_VALUE = 60  # characters of a refused value that are shown
# What a value must be, by pydantic's type of error; braces name the error's context.
_MUST_BE = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text like {pattern}",
    "multiple_of": "a multiple of {multiple_of}",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "fields with values",
    "mapping": "fields with values",
    "model": "fields with values",
    "path": "a path",
}


class ConfigError(ValueError):
    """A configuration that cannot be used: one clause a problem, each with the value's dotted path."""


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
    """Yield the dotted path of every value of `config`, in the order of its fields; those of a list's entries as
    `sources[].paths`."""
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from paths(field.annotation, f"{prefix}{name}.")
            continue
        yield prefix + name
        entry = next(iter(get_args(field.annotation)), None) if get_origin(field.annotation) is list else None
        if isinstance(entry, type) and issubclass(entry, BaseModel):
            yield from paths(entry, f"{prefix}{name}[].")


def leaves(document: Mapping[str, Any], config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested sections of a configuration of class `config`, with its dotted path."""
    for name, value in document.items():
        field = config.model_fields.get(name)
        section = None if field is None else field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel) and isinstance(value, Mapping):
            yield from leaves(value, section, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def with_values(config: ConfigT, values: Mapping[str, Any]) -> ConfigT:
    """Return `config` with the values at some dotted paths replaced, validated.

    Raises:
        ConfigError: for a path that does not exist or is a section, with suggestions, and for a value out of bounds.
    """
    document = config.model_dump()
    known = list(paths(type(config)))
    for path, value in values.items():
        if path not in known:
            within = [one for one in known if one.startswith(f"{path}.")]
            if within:
                raise ConfigError(f"{path} is a section: name one of its values, for instance {within[0]}")
            raise ConfigError(f"there is no value {path!r}: {suggestion(path, known)}")
        *sections, name = path.split(".")
        place = document
        for section in sections:
            place = place[section]
        place[name] = value
    return validated(type(config), document)


def validated(config: type[ConfigT], values: Mapping[str, Any], name: str = "") -> ConfigT:
    """Return a configuration of class `config` with the nested `values`. `name` begins the paths in errors.

    Raises:
        ConfigError: for unknown fields, and for values of a wrong kind or out of their bounds.
    """
    prefix = f"{name}." if name else ""
    if unknown := unknown_paths(config, values):
        known = list(paths(config))
        raise ConfigError(
            "; ".join(f"{prefix}{path}: there is no such value, {suggestion(path, known)}" for path in unknown)
        )
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(problems(error, name))) from error


def problems(error: ValidationError, name: str = "") -> list[str]:
    """Return a line for each problem in `error`: `name.section.field: must be ..., got ...`."""
    lines = []
    for one in error.errors(include_url=False):
        path = ".".join([*([name] if name else []), *map(str, one["loc"])])
        lines.append(
            f"{path}: {_problem(one['type'], one['msg'], one.get('ctx', {}), one['input'])}".removeprefix(": ")
        )
    return lines


def _problem(kind: str, message: str, context: Mapping[str, Any], value: Any) -> str:
    if kind == "value_error":  # a rule of the configuration's own, which names its values
        return message.removeprefix("Value error, ")
    if kind == "missing":
        return "must be given"
    plain = {name: f"{bound:.12g}" if isinstance(bound, float) else bound for name, bound in context.items()}
    wanted = _MUST_BE.get(kind, "").format_map(plain) or _KINDS.get(kind.partition("_")[0], "")
    if not wanted:
        return f"{message[:1].lower()}{message[1:]}, got {shown(value)}"
    return f"must be {wanted}, got {shown(value)}"


def shown(value: Any) -> str:
    """Return a refused value as it is shown: text in quotes, shortened."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


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
    """Suggest existing paths for an unknown one: those with the same last part, else the most similar ones, in the
    section given if there are any."""
    last = path.rpartition(".")[2]
    meant = [one for one in known if one.rpartition(".")[2] == last or one.replace(".", "_") == path]
    if not meant:  # by what is misspelled, not by the section, which is alike in all of its values
        lasts = difflib.get_close_matches(last, {one.rpartition(".")[2]: None for one in known}, n=1, cutoff=0.6)
        meant = [one for one in known if one.rpartition(".")[2] in lasts]
        section = path.rpartition(".")[0]
        meant = [one for one in meant if section and one.rpartition(".")[0] == section] or meant
    meant = meant or difflib.get_close_matches(path, known, n=3, cutoff=0.0)
    return f"did you mean {' or '.join(meant[:3])}?"
