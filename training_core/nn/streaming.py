"""Streaming states of fewer rows: those of finished rows are dropped."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

StateT = TypeVar("StateT")


def take_rows(state: StateT, rows: Tensor) -> StateT:
    """Return the state restricted to `rows` (kept,), in that order: all its tensors have the batch as dimension 0."""
    taken: StateT = _take(state, rows)
    return taken


def _take(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(_take(each, rows) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _take(getattr(value, field.name), rows) for field in fields(value)})
    return value  # positions and counts are shared by all rows
