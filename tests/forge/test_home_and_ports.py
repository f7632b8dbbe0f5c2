"""A home or a port that cannot be used is one line that says what to change; every other path works."""

import threading
from pathlib import Path

import dagster as dg
import mlflow
import pytest
from forge_instance import make_home, materialize, opened
from ports import free_port
from typer.testing import CliRunner

from forge_assets.cli import app
from forge_assets.cli.common import home_problem
from forge_assets.cli.up import deliver_journals
from forge_assets.services import ServiceError, services
from forge_resources.tracking import MlflowTracking


@pytest.mark.parametrize("name", ["grün #1", "100% [x] a'b", "a%(b)s&c=d+e;f"])
def test_home_with_special_characters(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / name
    make_home(home)
    with opened(home, monkeypatch) as instance:
        result = materialize(instance, "tokens", "evaluation_suite", "trunk", tracking=MlflowTracking())
    assert result.success
    assert isinstance(result, dg.ExecuteInProcessResult)
    assert {path.name for path in (home / "forge").iterdir()} >= {"mlflow.db", "mlflow-artifacts", "models"}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    uri = f"sqlite:///{home}/forge/mlflow.db"
    champion = mlflow.MlflowClient(uri, uri).get_model_version_by_alias("forge-trunk", "champion")
    copy = Path(mlflow.artifacts.download_artifacts("models:/forge-trunk@champion"))
    assert (copy / "lineage.json").exists()
    assert champion.version in ("1", 1)
    _, server = services(home / "forge", 3000, 5000, None)
    assert uri in server.command


@pytest.mark.parametrize("name", ["what?", "a%20b"])
def test_home_that_no_database_can_have(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / name))
    monkeypatch.delenv("FORGE_HOME", raising=False)
    answer = CliRunner().invoke(app, ["report"])
    assert answer.exit_code == 1
    assert f"Dagster and MLflow cannot keep their databases in '{tmp_path / name}': choose a path" in answer.output
    assert len(answer.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    change = "set DAGSTER_HOME to a folder that you may write to"
    for home, problem in ((tmp_path / "file" / "home", "Not a directory"), (Path("/proc/forge"), "No such file or")):
        monkeypatch.setenv("DAGSTER_HOME", str(home))
        answer = CliRunner().invoke(app, ["report"])
        assert answer.exit_code == 1
        assert answer.output.startswith(f"forge: {home} cannot be made ({problem}")
        assert answer.output.endswith(f"): {change}\n")
    assert home_problem("DAGSTER_HOME", Path("/proc/self")) == f"/proc/self cannot be written to: {change}"


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ((70000, 5000), "--port must be a whole number from 1 to 65535, got 70000"),
        ((3000, 0), "--mlflow-port must be a whole number from 1 to 65535, got 0"),
        ((-1, 5000), "--port must be a whole number from 1 to 65535, got -1"),
        ((3000, 3000), "--port and --mlflow-port are both 3000"),
    ],
)
def test_ports_that_cannot_be(tmp_path: Path, ports: tuple[int, int], said: str) -> None:
    with pytest.raises(ServiceError, match=f"^{said}"):
        services(tmp_path, *ports, None)


def test_forge_up_delivers_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    monkeypatch.setenv("FORGE_MLFLOW_URI", f"http://127.0.0.1:{free_port()}")
    with MlflowTracking().run(asset="a", run_id="r", root_run_id="r", parameters={}) as tracked:
        assert tracked is not None
        tracked.log_metrics(7, {"loss": 0.5})
    assert len(list((tmp_path / "tracking").iterdir())) == 1
    monkeypatch.setenv("FORGE_MLFLOW_URI", "")  # it answers again; by default it is a database in the home
    said: list[str] = []
    done = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        done.set()

    thread = threading.Thread(target=deliver_journals, args=(tmp_path, say, done))
    thread.start()
    thread.join(60)
    assert done.is_set()
    assert said == ["MLflow was given what runs had tracked meanwhile: 1 of 1 journals"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("agent-forge")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    history = client.get_metric_history(runs["a"].info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(7, 0.5)]
