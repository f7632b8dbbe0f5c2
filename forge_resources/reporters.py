"""Where a phase's measurements go: Dagster's log, MLflow, curves for the asset's page, a progress bar.

Each class here implements `training_core.reporting.Reporter`.
"""

import base64
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from logging import Logger
from typing import Any, Self, TextIO

from forge_resources.tracking import TrackedRun
from training_core.reporting import Figure, Reporter

_LOG_INTERVAL_S = 5.0
_LINE_INTERVAL_S = 15.0
_CURVE_POINTS = 1000


class CompositeReporter:
    """Hands everything to each of `reporters`."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Pass the metrics on."""
        for reporter in self._reporters:
            reporter.metrics(step, values)

    def progress(self, done: int, total: int, label: str) -> None:
        """Pass the progress on."""
        for reporter in self._reporters:
            reporter.progress(done, total, label)

    def figure(self, name: str, figure: Figure) -> None:
        """Pass the figure on."""
        for reporter in self._reporters:
            reporter.figure(name, figure)


class LogReporter:
    """Writes to a log, at most one line of metrics and one of progress every `interval_s` seconds.

    The first line and a finished progress are always written: in Dagster each line is a row in the event log.
    """

    def __init__(self, log: Logger, interval_s: float = _LOG_INTERVAL_S) -> None:
        self._log = log
        self._interval_s = interval_s
        self._last: dict[str, float] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics when the last line is long enough ago."""
        if self._due("metrics"):
            self._log.info(f"step {step}: " + ", ".join(f"{k} {v:.5g}" for k, v in values.items()))

    def progress(self, done: int, total: int, label: str) -> None:
        """Log the progress when the last line is long enough ago or the work is done."""
        if self._due(f"progress {label}") or done >= total:
            self._log.info(f"{label}: {done} of {total}")

    def figure(self, name: str, figure: Figure) -> None:
        """Log that there is a figure."""
        self._log.info(f"figure {name}: {figure.title}")

    def _due(self, topic: str) -> bool:
        now = time.monotonic()
        if now - self._last.get(topic, -float("inf")) < self._interval_s:
            return False
        self._last[topic] = now
        return True


class TrackingReporter:
    """Sends metrics to an MLflow run, buffered, and figures as images."""

    def __init__(self, tracked: TrackedRun) -> None:
        self._tracked = tracked

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer the metrics for MLflow."""
        self._tracked.log_metrics(step, values)

    def progress(self, done: int, total: int, label: str) -> None:
        """MLflow shows no progress."""

    def figure(self, name: str, figure: Figure) -> None:
        """Store the figure as an image."""
        self._tracked.client.log_figure(self._tracked.run_id, draw(figure), f"figures/{name}.png")


class CurveReporter:
    """Keeps the curves of all metrics, thinned evenly to a bounded number of points, and all figures."""

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
        """Progress is no curve."""

    def figure(self, name: str, figure: Figure) -> None:
        """Keep the figure."""
        self.figures[name] = figure

    def all_figures(self) -> dict[str, Figure]:
        """The figures a phase reported, and one for each metric's curve of two points or more. The metrics
        `<figure>/...` of a figure that was reported are left to MLflow: a page of forty plots is read by nobody."""
        curves = {
            name: Figure(title=name, x_label="step", y_label=name, series={name: curve})
            for name, curve in self.curves.items()
            if len(curve[0]) > 1 and name.rpartition("/")[0] not in self.figures
        }
        return {**curves, **self.figures}


class ProgressReporter:
    """A progress bar on a terminal; where there is none, a line now and then."""

    def __init__(self, asset: str, stream: TextIO | None = None, interval_s: float = _LINE_INTERVAL_S) -> None:
        self._asset = asset
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s
        self._last = -float("inf")
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    @classmethod
    def requested(cls, asset: str) -> Self | None:
        """A reporter when the command line asked for one.

        `FORGE_PROGRESS` is the number of the file descriptor to draw on: while a run executes, Dagster
        captures what is written to the standard streams.
        """
        descriptor = os.environ.get("FORGE_PROGRESS", "")
        return cls(asset, os.fdopen(os.dup(int(descriptor)), "w")) if descriptor.isdecimal() else None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The bar shows progress only."""

    def progress(self, done: int, total: int, label: str) -> None:
        """Move the bar, or print a line when the last one is long enough ago or the work is done."""
        if self._stream.isatty():
            self._move(done, total, label)
        elif done >= total or time.monotonic() - self._last >= self._interval_s:
            self._last = time.monotonic()
            print(f"{self._asset}: {label} {done} of {total}", file=self._stream, flush=True)

    def figure(self, name: str, figure: Figure) -> None:
        """The bar shows no figures."""

    def close(self) -> None:
        """Take the bar off the terminal."""
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
                redirect_stdout=False,  # what libraries print belongs to the captured streams
                redirect_stderr=False,
            )
            self._bar.start()
        if label not in self._tasks:
            self._tasks[label] = self._bar.add_task(label, total=total, asset=self._asset)
        self._bar.update(self._tasks[label], completed=done, total=total)


def draw(figure: Figure) -> Any:
    """The line plot `figure` as a matplotlib figure, drawn without a display and without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.0, 3.2))  # a layout engine would draw everything twice
    FigureCanvasAgg(canvas)
    axes = canvas.add_axes((0.12, 0.17, 0.84, 0.72))
    for label, (x, y) in figure.series.items():
        axes.plot(x, y, label=label, linewidth=1.2)
    axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
    axes.grid(visible=True, alpha=0.3)
    if len(figure.series) > 1:
        axes.legend(loc="upper right")  # the best place would be searched for
    return canvas


def figure_markdown(figure: Figure) -> str:
    """`figure` as Markdown with the image inside, which Dagster's asset page shows."""
    buffer = io.BytesIO()
    draw(figure).savefig(buffer, format="png", dpi=80)
    return f"![{figure.title}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
