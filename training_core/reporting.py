"""The interface through which the core reports progress, metrics and figures, independent of the receiver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Figure:
    """A line plot as data: `series` maps a label to its (x, y) values. Rendering happens outside the core."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


class Reporter(Protocol):
    """Receives metrics, progress and figures while a phase runs. Implementations must not affect the computation."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record named scalars measured at `step` (optimizer steps or generations, from 0)."""

    def progress(self, done: int, total: int, label: str) -> None:
        """Report that `done` of `total` units of `label` are finished."""

    def figure(self, name: str, figure: Figure) -> None:
        """Record a finished figure under `name`."""


class SilentReporter:
    """A reporter that drops everything, for tests and for callers that only need the result."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Drop the metrics."""

    def progress(self, done: int, total: int, label: str) -> None:
        """Drop the progress."""

    def figure(self, name: str, figure: Figure) -> None:
        """Drop the figure."""
