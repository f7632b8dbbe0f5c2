"""Typed records of metrics: a phase declares its metrics once, and gates refer to the fields.

    @dataclass(frozen=True, slots=True)
    class PractisedRecord(Record):
        edge_gain: float
        level_accuracy_gain: Estimate
        accuracy_by_level: Mapping[str, Estimate] = keyed("level_{}_accuracy")

    record(PractisedRecord, metrics)                       reads flat metrics; none may be missing or left over
    of(PractisedRecord).level_accuracy_gain.low            refers to the metric "level_accuracy_gain_low"

To a type checker, `of` returns a record. A gate on a field that does not exist, or on a bound of a field without a CI,
is therefore a type error, and an AttributeError when the gate is defined.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

RecordT = TypeVar("RecordT", bound="Record")
FieldT = TypeVar("FieldT")
ENDS = {"value": "", "low": "_low", "high": "_high"}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value with its two-sided 95 % CI."""

    value: float
    low: float
    high: float

    def metrics(self, name: str) -> dict[str, float]:
        """Return flat metrics: the value as `name`, the bounds as `name_low` and `name_high`."""
        return {f"{name}{suffix}": getattr(self, end) for end, suffix in ENDS.items()}

    def document(self) -> dict[str, float]:
        """Return value and bounds as JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Record:
    """The base of records: frozen dataclasses whose fields are numbers, Estimates, mappings of either, or records.

    A field that is None (`maybe`) is omitted from the metrics.
    """

    __slots__ = ()

    def metrics(self) -> dict[str, float]:
        """Return all fields as flat metrics."""
        metrics: dict[str, float] = {}
        for name, (_, key) in _layout(type(self)).items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, Record):
                metrics |= value.metrics()
            elif isinstance(value, Mapping):
                for part, one in value.items():
                    metrics |= _flat(key.format(part), one)
            else:
                metrics |= _flat(key, value)
        return metrics


def keyed(template: str) -> Any:
    """Declare a mapping field; `{}` in the metrics' names is the mapping's key. It may be empty."""
    return dataclasses.field(default_factory=dict, metadata={"key": template})


def maybe() -> Any:
    """Declare an optional field, which is None if it was not measured.

    Its annotation is the type without None, so that gates can refer to parts of it. A gate on a missing metric fails.
    """
    return dataclasses.field(default=None)


def record(cls: type[RecordT], metrics: Mapping[str, float]) -> RecordT:
    """Return the record that holds the given flat metrics.

    Raises:
        ValueError: when a metric is missing, or a metric has no field.
    """
    left = dict(metrics)
    made = _take(cls, left)
    if left:
        raise ValueError(f"{cls.__name__} has no field for {', '.join(sorted(left))}: declare them where they belong")
    return made


def of(cls: type[RecordT]) -> RecordT:
    """Return a stand-in for a record, whose fields give the names of their metrics (see the module's docstring)."""
    return cast(RecordT, FieldPath(cls, ""))


def each(field: Mapping[str, FieldT]) -> FieldT:
    """Return a stand-in for every part of a `keyed` field of `of(...)`: `{}` stands for the part in its name."""
    return cast(FieldT, FieldPath(get_args(cast(FieldPath, field).kind)[1], cast(FieldPath, field).key))


class FieldPath:
    """The path to a field of a record. Converted to a string, it is the name of the field's metric."""

    def __init__(self, kind: Any, key: str) -> None:
        self.kind, self.key = kind, key

    def __getattr__(self, name: str) -> FieldPath:
        if self.kind is Estimate and name in ENDS:
            return FieldPath(float, self.key + ENDS[name])
        if isinstance(self.kind, type) and issubclass(self.kind, Record):
            layout = _layout(self.kind)
            if name in layout:
                return FieldPath(*layout[name])
            raise AttributeError(f"{self.kind.__name__} has no field {name!r}: choose one of {', '.join(layout)}")
        raise AttributeError(f"the metric {self.key!r} has no part {name!r}")

    def __str__(self) -> str:
        if self.kind not in (float, int, bool):
            raise ValueError(f"{self.key or self.kind} is not one number: name its value, low or high")
        return self.key


def _layout(cls: Any) -> dict[str, tuple[Any, str]]:
    """Return, by field, its type and the name of its metric (for a mapping, the template of the names)."""
    hints = get_type_hints(cls)
    return {
        field.name: (hints[field.name], field.metadata.get("key", field.name))
        for field in dataclasses.fields(cast(Any, cls))
    }


def _flat(key: str, value: Any) -> dict[str, float]:
    return value.metrics(key) if isinstance(value, Estimate) else {key: float(value)}


def _take(cls: type[RecordT], left: dict[str, float]) -> RecordT:
    """Build a record from metrics in `left`, and remove these from `left`."""
    layout = _layout(cls)
    values: dict[str, Any] = {}
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    mappings = [name for name, (kind, _) in layout.items() if get_origin(kind) is not None]
    for name in [
        *(n for n in layout if n not in mappings),
        *mappings,
    ]:  # exact names first, because templates would match them too
        kind, key = layout[name]
        if name in mappings:
            values[name] = _take_mapping(get_args(kind)[1], key, left)
        elif isinstance(kind, type) and issubclass(kind, Record):
            optional = fields[name].default is None
            values[name] = None if optional and not _begins(kind, left) else _take(kind, left)
        elif key in left:
            values[name] = _take_value(kind, key, left)
        elif fields[name].default is dataclasses.MISSING:
            raise ValueError(f"{cls.__name__}.{name} was not measured: there is no metric {key!r}")
    return cls(**values)


def _begins(cls: type[Record], left: Mapping[str, float]) -> bool:
    """Return whether any metric of the record's own fields is present."""
    return any(key in left for kind, key in _layout(cls).values() if kind in (float, int, bool, Estimate))


def _take_value(kind: Any, key: str, left: dict[str, float]) -> Any:
    if kind is Estimate:
        return Estimate(**{end: left.pop(key + suffix) for end, suffix in ENDS.items()})
    return kind(left.pop(key))


def _take_mapping(kind: Any, template: str, left: dict[str, float]) -> dict[str, Any]:
    before, after = map(re.escape, template.split("{}"))
    matches = [(match[1], key) for key in list(left) if (match := re.fullmatch(f"{before}(.+){after}", key))]
    if kind is Estimate:
        # the template also matches an estimate's own bounds, which have no bounds themselves
        matches = [(part, key) for part, key in matches if f"{key}_low" in left and f"{key}_high" in left]
    return {part: _take_value(kind, key, left) for part, key in matches}
