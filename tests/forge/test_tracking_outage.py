"""MLflow that dies, is away, locked, damaged, deleted or full never fails a run, and gets everything afterwards."""

import json
import math
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import mlflow
import pytest
from forge_instance import materialize, verdict
from mlflow_server import MlflowServer
from ports import free_port

from forge_resources import mlflow_delivery, tracking_journal
from forge_resources import tracking as tracking_module
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking, TrackedRun
from training_core.reporting import Figure
from training_core.store.bundle import open_bundle


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tracking_module, "_PAUSE_S", 0.0)  # a server that is back is asked at once
    monkeypatch.setattr(tracking_module, "_PAUSE_PER_S", 0.0)
    return tmp_path / "home"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    monkeypatch.setenv("FORGE_MLFLOW_URI", server.uri)
    yield server
    server.kill()


def journals(home: Path) -> list[Path]:
    return sorted((home / "tracking").glob("*"))


def points(client: mlflow.MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def runs_of(client: mlflow.MlflowClient, experiment: str = "agent-forge") -> dict[str, mlflow.entities.Run]:
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    named = {str(run.info.run_name): run for run in runs}
    assert len(named) == len(runs)  # none was begun twice
    return named


@pytest.mark.slow
def test_a_server_that_dies_gets_everything_when_it_is_back(
    home: Path, server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    monkeypatch.setattr(tracking_module, "_BATCH", 4)
    said: list[str] = []
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "weights").write_bytes(bytes(range(256)))
    tracking = MlflowTracking()
    with tracking.run(
        asset="trunk", run_id="r", root_run_id="root", parameters={"steps": 8}, warn=said.append
    ) as tracked:
        assert tracked is not None
        for step in range(10):
            if step == 5:
                server.kill()
            tracked.log_metrics(step, {"loss": float(step)})
        tracked.log_figure("a curve", Figure("costs in $", "x", "y", {"a": ([0, 1], [1, math.nan])}))
        tracking.register(tracked, digest="d1", folder=bundle)
    tracking.promote("trunk", "d1", root_run_id="root", warn=said.append)
    assert len(said) == 1  # not one for each of the nine deliveries that failed
    assert said[0].startswith(f"MLflow at {server.uri} takes nothing ([Errno 111] Connection refused): runs go on")
    _, run = journals(home)
    kept = run.read_bytes()
    assert len(kept.splitlines()) == 10  # the run, steps 4 to 9, figure, model and end: steps 0 to 3 were delivered

    server.start()
    for again in (False, True):
        if again:  # a delivery whose end got lost is repeated
            run.write_bytes(kept)
        assert tracking.replay(warn=said.append) == 0
        client = mlflow.MlflowClient(server.uri, server.uri)
        runs = runs_of(client)
        assert set(runs) == {"forge root", "trunk"}
        assert {one.info.status for one in runs.values()} == {"FINISHED"}
        run_id = runs["trunk"].info.run_id
        assert points(client, run_id, "loss") == [(step, float(step)) for step in range(10)]
        assert runs["trunk"].data.params == {"steps": "8"}
        assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/a curve.png"]
        assert client.get_model_version_by_alias("forge-trunk", "champion").tags["digest"] == "d1"
        assert len(client.search_model_versions("name = 'forge-trunk'")) == 1
    copy = Path(mlflow.artifacts.download_artifacts("models:/forge-trunk@champion"))
    assert (copy / "weights").read_bytes() == bytes(range(256))
    assert len(said) == 1


def test_a_model_is_made_and_judged_while_the_server_is_away(
    instance: dg.DagsterInstance, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("FORGE_MLFLOW_URI", uri)
    began = time.monotonic()
    result = materialize(instance, "trunk", "left", config={"left": {"figure": True}}, tracking=MlflowTracking())
    assert time.monotonic() - began < 60  # it was ten minutes for each of the two
    assert result.success
    assert verdict(result, "trunk").passed
    assert [len(store.versions(name)) for name in ("trunk", "left")] == [1, 1]
    warnings = [e.user_message for e in instance.all_logs(result.run_id) if e.level == 30]
    assert [text for text in warnings if "MLflow at" in text] == [text for text in warnings if uri in text]
    assert sum(uri in text for text in warnings) == 1

    database = Path(instance.root_directory) / "forge" / "elsewhere.db"
    monkeypatch.setenv("FORGE_MLFLOW_URI", f"sqlite:///{database}")
    assert materialize(instance, "left", tracking=MlflowTracking()).success  # the next run delivers what was kept
    assert list((Path(instance.root_directory) / "forge" / "tracking").iterdir()) == []
    client = mlflow.MlflowClient(f"sqlite:///{database}", f"sqlite:///{database}")
    digest = open_bundle(store.versions("trunk")[0]).digest()
    assert client.get_model_version_by_alias("forge-trunk", "champion").tags["digest"] == digest
    found = client.get_experiment_by_name("agent-forge")
    runs = client.search_runs([found.experiment_id], f"tags.`dagster.run_id` = '{result.run_id}'")
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [("left", "FINISHED"), ("trunk", "FINISHED")]


def test_terminal_shows_the_outage_once(
    instance: dg.DagsterInstance, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("FORGE_MLFLOW_URI", uri)
    config = json.dumps({name: {"steps": 3} for name in ("trunk", "left")})
    command = [
        sys.executable,
        str(Path(__file__).with_name("drive_tiny_run.py")),
        config,
        "live_forge",
        "trunk",
        "left",
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(process.stdout)["made"] == ["trunk", "left"]
    said = [line for line in process.stderr.splitlines() if "MLflow" in line]
    assert len(said) == 1
    assert said[0].startswith(f"forge: MLflow at {uri} takes nothing ([Errno 111] Connection refused): runs go on")


def track(asset: str, said: list[str], steps: int = 3, root: str = "root") -> None:
    with MlflowTracking().run(asset=asset, run_id="r", root_run_id=root, parameters={}, warn=said.append) as tracked:
        assert tracked is not None
        for step in range(steps):
            tracked.log_metrics(step, {"loss": float(step)})


def delivered(home: Path, *, uri: str = "") -> mlflow.MlflowClient:
    assert MlflowTracking().replay() == 0
    uri = uri or f"sqlite:///{home / 'mlflow.db'}"
    return mlflow.MlflowClient(uri, uri)


def test_locked_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_delivery, "_DATABASE_TIMEOUT_S", 0.2)
    said: list[str] = []
    track("a", said)
    assert said == []
    tracking_module._deliveries.clear()
    other = sqlite3.connect(home / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    track("b", said)
    assert len(said) == 1
    assert "(sqlite3.OperationalError) database is locked): runs go on" in said[0]
    other.close()
    client = delivered(home)
    runs = runs_of(client)
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(("forge root", "a", "b"), "FINISHED")
    assert points(client, runs["b"].info.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_damaged_database(home: Path) -> None:
    said: list[str] = []
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"this is no database " * 400)
    track("a", said)
    assert len(said) == 1
    assert "file is not a database" in said[0]
    (home / "mlflow.db").unlink()
    client = delivered(home)
    assert points(client, runs_of(client)["a"].info.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_deleted_experiment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    track("a", said)
    client = delivered(home)
    number = client.get_experiment_by_name("agent-forge").experiment_id
    client.delete_experiment(number)
    tracking_module._deliveries.clear()
    track("b", said)
    assert len(said) == 1
    restore = f"MLFLOW_TRACKING_URI='sqlite:///{home}/mlflow.db' mlflow experiments restore --experiment-id {number}"
    assert f"the MLflow experiment 'agent-forge' was deleted: restore it with {restore}, or name another in" in said[0]
    client.restore_experiment(number)
    assert set(runs_of(delivered(home))) == {"forge root", "a", "b"}
    client.delete_experiment(number)
    monkeypatch.setenv("FORGE_MLFLOW_EXPERIMENT", "another")
    track("c", said)
    assert len(said) == 1
    assert set(runs_of(client, "another")) == {"forge root", "c"}


def test_run_that_is_deleted_in_mlflow_is_begun_again(home: Path) -> None:
    said: list[str] = []
    with MlflowTracking().run(asset="a", run_id="r", root_run_id="root", parameters={}, warn=said.append) as tracked:
        assert tracked is not None
        client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
        client.delete_run(tracked.run_id)
        tracked.log_metrics(0, {"loss": 1.0})
    assert len(said) == 1
    client = delivered(home)
    assert points(client, runs_of(client)["a"].info.run_id, "loss") == [(0, 1.0)]


KILLED = """
import os, signal
from forge_resources.tracking import MlflowTracking
with MlflowTracking().run(asset="a", run_id="r", root_run_id="root", parameters={"x": 1}) as tracked:
    for step in range(700):
        tracked.log_metrics(step, {"loss": float(step), "nan": float("nan")})
    os.write(1, b"trained")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_metrics_of_a_killed_run_are_not_lost(home: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"trained")
    with journals(home)[0].open("a") as file:
        file.write('{"metrics": [700, {"lo')  # the kill cut a line short
    client = delivered(home)
    runs = runs_of(client)
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert points(client, runs["a"].info.run_id, "loss") == [(step, float(step)) for step in range(700)]
    assert len(client.get_metric_history(runs["a"].info.run_id, "nan")) == 700
    track("a", [], steps=1)  # the retry ends it in order
    assert {run.info.status for run in runs_of(client).values()} == {"FINISHED"}


def test_journal_of_a_living_writer_is_left_alone(home: Path, server: MlflowServer) -> None:
    with MlflowTracking().run(asset="a", run_id="r", root_run_id="root", parameters={}) as tracked:
        assert tracked is not None
        (path,) = journals(home)
        assert list(tracking_journal.Journal.abandoned(home / "tracking")) == []
    assert [journal.path for journal in tracking_journal.Journal.abandoned(home / "tracking")] == [path]


def test_an_older_end_does_not_replace_a_newer_one(home: Path) -> None:
    said: list[str] = []
    track("a", said)
    first = {"run": {"asset": "a", "root_run_id": "root", "parameters": {}, "tags": {}}, "at": 1000}
    journal = tracking_journal.Journal.begin(home / "tracking", "root.a", first)
    journal.append({"end": "FAILED", "at": 2000})
    journal.close()
    assert {run.info.status for run in runs_of(delivered(home)).values()} == {"FINISHED"}


def test_journals_are_bounded_and_say_what_they_dropped(
    home: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_journal, "LIMIT_BYTES", 2000)
    said: list[str] = []
    track("a", said, steps=100)
    (journal,) = journals(home)
    kept = len(journal.read_text().splitlines()) - 2
    assert 10 < kept < 40
    assert said[-1].startswith(f"{100 - kept} reports of metrics and figures were not kept for MLflow")
    assert json.loads(journal.read_text().splitlines()[-1])["end"] == "FINISHED"


def test_full_disk_ends_tracking_and_not_the_run(home: Path, server: MlflowServer) -> None:
    said: list[str] = []
    tracked: TrackedRun | None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MlflowTracking().run(asset="a", run_id="r", root_run_id="root", parameters={}, warn=said.append) as tracked:
        assert tracked is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
        try:
            for step in range(100):
                tracked.log_metrics(step, {"loss": float(step)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [text.partition(":")[0] for text in said] == [
        "MLflow at http",
        "not everything is tracked in MLflow any more",
    ]
    (journal,) = journals(home)
    entries = [json.loads(line) for line in journal.read_text().splitlines()]  # no line is torn
    assert [entry["metrics"][0] for entry in entries[1:-1]] == list(range(len(entries) - 2))
    assert entries[-1]["end"] == "FINISHED"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("htp://127.0.0.1:5000", "FORGE_MLFLOW_URI must begin with one of http, https, sqlite"),
        ("http://", "must name a host"),
        ("http://me:secret@host:70000", r"port from 1 to 65535 if any, got 'http://\*\*\*@host:70000'"),
        ("postgresql+nothing://host/db", r"MLflow's database 'postgresql\+nothing://host/db' cannot be used"),
    ],
)
def test_malformed_uri_is_refused_before_anything_is_trained(
    home: Path, uri: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_MLFLOW_URI", uri)
    with pytest.raises(ValueError, match=said):
        track("a", [])
    assert journals(home) == []


def test_entry_of_another_form_is_kept_and_does_not_hold_up_others(home: Path) -> None:
    said: list[str] = []
    tracking_journal.Journal.begin(home / "tracking", "old.a", {"run": {"name": "a"}}).close()
    track("b", said)
    assert [path.name.split(".")[0] for path in journals(home)] == ["old"]
    assert len(said) == 1
    assert "an entry cannot be read (KeyError: 'root_run_id')" in said[0]
    uri = f"sqlite:///{home / 'mlflow.db'}"
    assert set(runs_of(mlflow.MlflowClient(uri, uri))) == {"forge root", "b"}
