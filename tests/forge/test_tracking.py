"""MLflow on a real SQLite file (nested runs, resumed on retry, aliases behind the gate) and the reporters."""

import base64
import io
import logging
import math
import re
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from forge_instance import Make, materialize
from sqlalchemy.exc import OperationalError

from forge_resources.drawing import figure_markdown
from forge_resources.model_store import ModelStore
from forge_resources.reporters import (
    CompositeReporter,
    CurveReporter,
    LogReporter,
    ProgressReporter,
)
from forge_resources.tracking import MlflowTracking
from training_core.reporting import Figure
from training_core.store.bundle import open_bundle


@pytest.fixture
def tracking(instance: dg.DagsterInstance) -> MlflowTracking:
    return MlflowTracking()


def test_pipeline_is_recorded(
    make: Make, instance: dg.DagsterInstance, tracking: MlflowTracking, store: ModelStore
) -> None:
    import mlflow

    config = {"left": {"steps": 4, "crash_at": 2, "figure": True}}
    result = materialize(instance, "trunk", "left", config=config, tracking=tracking)
    assert result.success
    client = mlflow.MlflowClient(f"sqlite:///{Path(instance.root_directory) / 'forge' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("agent-forge")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {
        f"forge {result.run_id[:8]}",
        "trunk",
        "left",
    }  # the retry went on in the run it began
    parent = runs[f"forge {result.run_id[:8]}"]
    for name in ("trunk", "left"):
        tags = runs[name].data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["dagster.run_id"] == result.run_id
        assert tags["dagster.run_url"].endswith(f"/runs/{result.run_id}")
        assert runs[name].info.status == "FINISHED"
    assert runs["left"].data.params["steps"] == "4"
    assert runs["left"].data.metrics["final/mean_square"] == 0.25
    losses = client.get_metric_history(runs["left"].info.run_id, "loss")
    assert [(m.step, round(m.value, 6)) for m in losses] == [(0, 0.375), (1, 0.25), (2, 0.125), (3, 0.0)]
    assert [file.path for file in client.list_artifacts(runs["left"].info.run_id, "figures")] == ["figures/walk.png"]
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey("left")]
    metadata = event.materialization.metadata
    assert runs["left"].info.run_id in str(metadata["mlflow"].value)
    assert re.match(r"!\[loss\]\(data:image/png;base64,", str(metadata["plot/loss"].value))

    digest = open_bundle(store.versions("trunk")[0]).digest()
    champion = client.get_model_version_by_alias("forge-trunk", "champion")
    assert champion.tags["digest"] == digest
    copy = Path(mlflow.artifacts.download_artifacts("models:/forge-trunk@champion"))
    assert open_bundle(copy).digest() == digest

    bad = materialize(instance, "trunk", config={"trunk": {"value": 2.0}}, tracking=tracking)
    assert not bad.success
    candidate = client.get_model_version_by_alias("forge-trunk", "candidate")
    assert candidate.version != champion.version
    assert client.get_model_version_by_alias("forge-trunk", "champion").version == champion.version

    good = {"trunk": {"value": 0.5}}
    again = materialize(instance, "trunk", config=good, tracking=tracking)  # the same bytes: no second version
    assert again.success
    assert len(client.search_model_versions("name = 'forge-trunk'")) == 2

    wrong = materialize(instance, "trunk", config={"trunk": {"value": -1.0}}, tracking=tracking)
    assert not wrong.success
    run_id = failed_run(tracking, RuntimeError, {"steps": 1, "api_key": "sk-secret"})
    ended = client.get_run(run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.metrics == {"loss": 1.0}
    assert ended.data.params == {"steps": "1"}
    assert failed_run(tracking, KeyboardInterrupt, {"steps": 2}) == run_id  # a retry goes on in the same run
    assert client.get_run(run_id).info.status == "KILLED"
    with tracking.run(asset="x", run_id="r2", root_run_id="r", parameters={}) as many:
        for step in range(2500):
            many.log_metrics(step, {"loss": float(step)})
    assert len(client.get_metric_history(run_id, "loss")) == 2502  # in three requests, and those from before


def failed_run(tracking: MlflowTracking, error: type[BaseException], parameters: dict[str, object]) -> str:
    """The id of an MLflow run that ended with `error`."""
    ids = []

    def train() -> None:
        with tracking.run(asset="x", run_id="r", root_run_id="r", parameters=parameters) as tracked:
            ids.append(tracked.run_id)
            tracked.log_metrics(0, {"loss": 1.0})
            raise error

    with pytest.raises(error):
        train()
    return ids[0]


def test_tracking_that_is_off_does_nothing(instance: dg.DagsterInstance) -> None:
    off = MlflowTracking(enabled=False)
    with off.run(asset="a", run_id="r", root_run_id="r", parameters={}) as tracked:
        assert tracked is None
    off.promote("a", "d")
    assert not (Path(instance.root_directory) / "forge" / "mlflow.db").exists()


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("test.reporters")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger, stream
    logger.removeHandler(handler)


def test_log_reporter_writes_seldom_but_always_the_end(log: tuple[logging.Logger, io.StringIO]) -> None:
    reporter = LogReporter(log[0], interval_s=3600)
    for step in range(100):
        reporter.metrics(step, {"loss": 1.0})
        reporter.progress(step + 1, 100, "training")
    assert log[1].getvalue().splitlines() == [
        "step 0: loss 1",
        "training: 1 of 100",
        "training: 100 of 100",
    ]


def test_line_that_the_log_does_not_take_is_dropped() -> None:
    class Locked(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OperationalError("insert", {}, sqlite3.OperationalError("database is locked"))

    logger = logging.getLogger("test.locked")
    logger.setLevel(logging.INFO)
    logger.addHandler(Locked())
    LogReporter(logger).metrics(0, {"loss": 1.0})
    LogReporter(logger).progress(1, 2, "training")
    with pytest.raises(OperationalError):
        logger.info("anything else")


@pytest.mark.parametrize(
    ("series", "drawn"),
    [
        ({"$a": ([0, 1], [1, 2]), "$b": ([0, 1], [2, 3])}, True),
        ({"a": ([0, 1], [math.inf, -math.inf])}, True),
        ({"a": ([], []), "b": ([], [])}, True),
        ({"a": ([0, 1], [1e308, -1e308])}, False),  # matplotlib finds no ticks
        ({"a": ([0, 1], [1])}, False),
    ],
)
def test_no_figure_ends_a_run(series: dict[str, tuple[list[float], list[float]]], drawn: bool) -> None:
    markdown = figure_markdown(Figure("in $", "x_$", "$y", series))
    assert markdown.startswith("![in $](data:image/png;" if drawn else "the figure 'in $' cannot be drawn: ")


def test_progress_reporter_prints_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    reporter = ProgressReporter("trunk", stream, interval_s=3600)
    for done in range(1, 101):
        reporter.progress(done, 100, "training")
    reporter.close()
    assert stream.getvalue().splitlines() == ["trunk: training 1 of 100", "trunk: training 100 of 100"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_reporter_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    reporter = ProgressReporter("trunk", terminal)
    reporter.progress(3, 7, "training")
    reporter.close()
    assert "trunk" in terminal.getvalue()
    assert "training" in terminal.getvalue()
    assert "3/7" in terminal.getvalue()


def test_curves_are_thinned_evenly() -> None:
    curves = CurveReporter()
    CompositeReporter([curves]).metrics(0, {"once": 1.0})
    for step in range(10_000):
        curves.metrics(step, {"loss": 2.0 * step})
    steps, values = curves.curves["loss"]
    assert 1000 <= len(steps) <= 2000
    assert values == [2.0 * step for step in steps]
    assert len({b - a for a, b in pairwise(steps)}) == 1
    assert set(curves.all_figures()) == {"loss"}


def test_metrics_of_a_figure_that_was_reported_have_no_plot_of_their_own() -> None:
    curves = CurveReporter()
    for step in range(3):
        curves.metrics(step, {"practice 0/loss": 1.0, "practice 0/text/loss": 1.0, "practice/edge": 2.0})
    curves.figure("practice 0", Figure("t", "x", "y", {}))
    assert set(curves.all_figures()) == {"practice 0", "practice 0/text/loss", "practice/edge"}


def test_figure_markdown_is_a_png() -> None:
    figure = Figure("t", "x", "y", {"a": ([0, 1], [1, math.nan]), "b": ([0, 1], [2, 3])})
    match = re.fullmatch(r"!\[t\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", figure_markdown(figure))
    assert match is not None
    assert base64.b64decode(match[1]).startswith(b"\x89PNG\r\n\x1a\n")
