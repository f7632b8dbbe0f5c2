"""Nested configurations from flat values: `nested(TrunkConfig, steps=3, d_model=32)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from training_core.config import paths, with_values

ConfigT = TypeVar("ConfigT", bound=BaseModel)
COMMON = ("training.", "mix.", "shape.")  # sections that take precedence if several have a field of the same name


def nested(config: type[ConfigT] | ConfigT, **values: Any) -> ConfigT:
    """Return a configuration with some values changed. A value is named by its field, or as `section_field`."""
    base = config() if isinstance(config, type) else config
    return with_values(base, dotted(type(base), values))


def dotted(config: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat values keyed by their dotted paths in `config`; names that are paths already are kept."""
    known = list(paths(config))
    return {name if "." in name or name in known else _path(name, known): value for name, value in values.items()}


def _path(name: str, known: list[str]) -> str:
    named = [path for path in known if path.replace(".", "_") == name]
    leaves = [path for path in known if path.rpartition(".")[2] == name]
    common = [path for path in leaves if path.startswith(COMMON)]
    for matches in (named, common, leaves):
        if len(matches) == 1:
            return matches[0]
    raise ValueError(f"{name} names {len(leaves)} values: {leaves or known}")
