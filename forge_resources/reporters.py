"""Reporters of a phase's measurements: to Dagster's log, MLflow, curves for the asset's page, and a progress bar.

Each class here implements `training_core.reporting.Reporter`.
"""

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from logging import Logger
from typing import Any, Self, TextIO

from sqlalchemy.exc import SQLAlchemyError

from forge_resources.tracking import TrackedRun
from training_core.reporting import Figure, Reporter
from training_core.terminal import progress_stream

_LOG_INTERVAL_S = 5.0
_LINE_INTERVAL_S = 15.0
_CURVE_POINTS = 1000


class CompositeReporter:
    """Forwards everything to each of `reporters`."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Forward the metrics."""
        for reporter in self._reporters:
            reporter.metrics(step, values)

    def progress(self, done: int, total: int, label: str) -> None:
        """Forward the progress."""
        for reporter in self._reporters:
            reporter.progress(done, total, label)

    def figure(self, name: str, figure: Figure) -> None:
        """Forward the figure."""
        for reporter in self._reporters:
            reporter.figure(name, figure)


class LogReporter:
    """Writes to a log, at most one line of metrics and one of each progress label every `interval_s` seconds.

    The rate is limited because in Dagster each line is a row in the event log. The first line and completed progress
    are always written.
    """

    def __init__(self, log: Logger, interval_s: float = _LOG_INTERVAL_S) -> None:
        self._log = log
        self._interval_s = interval_s
        self._last: dict[str, float] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics if the interval since the last line has passed."""
        if self._due("metrics"):
            self._write(f"step {step}: " + ", ".join(f"{k} {v:.5g}" for k, v in values.items()))

    def progress(self, done: int, total: int, label: str) -> None:
        """Log the progress if the interval since the last line has passed or the work is done."""
        if self._due(f"progress {label}") or done >= total:
            self._write(f"{label}: {done} of {total}")

    def figure(self, name: str, figure: Figure) -> None:
        """Log the figure's title."""
        self._write(f"figure {name}: {figure.title}")

    def _write(self, line: str) -> None:
        # In Dagster this is a transaction of its database. One that is locked, or a full disk, costs the line.
        with contextlib.suppress(SQLAlchemyError, OSError):
            self._log.info(line)

    def _due(self, topic: str) -> bool:
        now = time.monotonic()
        if now - self._last.get(topic, -float("inf")) < self._interval_s:
            return False
        self._last[topic] = now
        return True


class TrackingReporter:
    """Sends metrics, buffered, and figures, as images, to an MLflow run."""

    def __init__(self, tracked: TrackedRun) -> None:
        self._tracked = tracked

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer the metrics for MLflow."""
        self._tracked.log_metrics(step, values)

    def progress(self, done: int, total: int, label: str) -> None:
        """Ignore progress, which MLflow does not show."""

    def figure(self, name: str, figure: Figure) -> None:
        """Store the figure, as an image."""
        self._tracked.log_figure(name, figure)


class CurveReporter:
    """Collects all figures, and the curves of all metrics, thinned evenly to a bounded number of points."""

    def __init__(self) -> None:
        self.curves: dict[str, tuple[list[float], list[float]]] = {}
        self.figures: dict[str, Figure] = {}
        self._stride: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append to the curves."""
        for name, value in values.items():
            steps, points = self.curves.setdefault(name, ([], []))
            seen, stride = self._seen.get(name, 0), self._stride.get(name, 1)
            self._seen[name] = seen + 1
            if seen % stride:
                continue
            steps.append(float(step))
            points.append(float(value))
            if len(points) >= 2 * _CURVE_POINTS:
                del steps[1::2], points[1::2]
                self._stride[name] = 2 * stride

    def progress(self, done: int, total: int, label: str) -> None:
        """Ignore progress, which is not a curve."""

    def figure(self, name: str, figure: Figure) -> None:
        """Keep the figure."""
        self.figures[name] = figure

    def all_figures(self) -> dict[str, Figure]:
        """Return the reported figures, and one figure for each metric's curve of two points or more.

        Metrics named `<figure>/...` after a reported figure are left out, because nobody reads a page of forty plots;
        MLflow has them.
        """
        curves = {
            name: Figure(title=name, x_label="step", y_label=name, series={name: curve})
            for name, curve in self.curves.items()
            if len(curve[0]) > 1 and name.rpartition("/")[0] not in self.figures
        }
        return {**curves, **self.figures}


class ProgressReporter:
    """Shows a progress bar on a terminal, or prints occasional lines where there is none."""

    def __init__(self, asset: str, stream: TextIO | None = None, interval_s: float = _LINE_INTERVAL_S) -> None:
        self._asset = asset
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s
        self._last = -float("inf")
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    @classmethod
    def requested(cls, asset: str) -> Self | None:
        """Return a reporter if the command line requested one.

        `FORGE_PROGRESS` is the number of the file descriptor to draw on, because Dagster captures the standard
        streams while a run executes.
        """
        stream = progress_stream()
        return None if stream is None else cls(asset, stream)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore metrics; the bar shows progress only."""

    def progress(self, done: int, total: int, label: str) -> None:
        """Advance the bar, or print a line if the interval since the last one has passed or the work is done."""
        if self._stream.isatty():
            self._move(done, total, label)
        elif done >= total or time.monotonic() - self._last >= self._interval_s:
            self._last = time.monotonic()
            print(f"{self._asset}: {label} {done} of {total}", file=self._stream, flush=True)

    def figure(self, name: str, figure: Figure) -> None:
        """Ignore figures; the bar shows progress only."""

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
            self._tasks.clear()

    def _move(self, done: int, total: int, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = (
                TextColumn("  [bold]{task.fields[asset]:<18}[/] {task.description:<12}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            )
            console = Console(file=self._stream)
            self._bar = Progress(
                *columns,
                console=console,
                transient=True,
                expand=True,
                redirect_stdout=False,  # output of libraries belongs in the streams that Dagster captures
                redirect_stderr=False,
            )
            self._bar.start()
        if label not in self._tasks:
            self._tasks[label] = self._bar.add_task(label, total=total, asset=self._asset)
        self._bar.update(self._tasks[label], completed=done, total=total)
