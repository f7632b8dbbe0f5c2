"""A secret in the environment stays there: a full run is made with one planted, and everything it left is searched."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from base64 import b64encode
from pathlib import Path

import mlflow
import pytest
from forge_instance import REPOSITORY, make_home
from planted import forms, places

from forge_assets.services import services
from forge_resources.tracking import MlflowTracking

SECRET = "sk-or-v1-Pl4nt3d+/é%2f-c81d77e0"
GIVEN_AWAY = "gp-Pl4nt3d+/é-77aa01bc93ff"
VARIABLES = ("OPENROUTER_API_KEY", "OPENAI_API_KEY", "PGPASSWORD", "FORGE_POSTGRES_PASSWORD", "AWS_SECRET_ACCESS_KEY")


@pytest.mark.slow
def test_a_full_run_leaves_no_secret(memory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home = Path(folder) / "home"
        make_home(home)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("FORGE_", "DAGSTER_"))}
        environment |= dict.fromkeys(VARIABLES, SECRET) | {"GIVEN_AWAY": GIVEN_AWAY, "DAGSTER_HOME": str(home)}
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
        program = [sys.executable, str(Path(__file__).parent / "leave_records.py")]
        ended = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, cwd=home)
        assert ended.returncode == 0, ended.stderr[-4000:]
        assert json.loads(ended.stdout.splitlines()[-1]) == {
            "success": False,
            "made": ["evaluation_suite", "left", "left_child", "right", "tokens", "trunk"],
            "failed": ["right_gate"],
        }
        (home / "stdout").write_text(ended.stdout)
        (home / "stderr").write_text(ended.stderr)
        files = [path for path in home.rglob("*") if path.is_file()]
        assert {"mlflow.db", "lineage.json", "report.html", "events.json", "walk.png"} <= {path.name for path in files}
        assert len(files) > 40
        assert "the accelerator fell over at step 2" in (home / "events.json").read_text()
        given = {place.split(":")[0] for place in places(home, GIVEN_AWAY)}
        assert "history/runs.db" in given  # the search does find what is written
        assert places(home, SECRET) == []


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_every_form_is_found(tmp_path: Path, before: int) -> None:
    text = "x" * before + SECRET + "y" * before
    (tmp_path / "plain").write_text(text)
    (tmp_path / "base64").write_bytes(b64encode(text.encode()))
    (tmp_path / "hex").write_text(text.encode().hex())
    (tmp_path / "json").write_text(json.dumps(text))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "other").write_text(SECRET[::-1][1:] + b64encode(SECRET.swapcase().encode()).decode())
    assert {place.split(":")[0] for place in places(tmp_path, SECRET)} == {
        "plain",
        "base64",
        "hex",
        "json",
        "packed.gz",
    }
    assert all(len(value) > 20 for value in forms(SECRET).values())


@pytest.mark.parametrize(
    "uri", ["postgresql://forge:hunter2@host/mlflow", "postgresql://host/mlflow?user=forge&password=hunter2"]
)
def test_a_password_in_the_trackings_configuration_is_refused_without_repeating_it(uri: str) -> None:
    tracking = MlflowTracking(tracking_uri=uri)
    with (
        pytest.raises(ValueError, match="tracking_uri must hold no password") as caught,
        tracking.run(asset="a", run_id="r", root_run_id="r", parameters={}),
    ):
        pass
    assert "hunter2" not in str(caught.value)


def test_the_environment_says_where_mlflow_is(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        monkeypatch.setenv("FORGE_HOME", folder)
        monkeypatch.setenv("FORGE_MLFLOW_URI", f"sqlite:///{folder}/elsewhere.db")
        monkeypatch.setenv("FORGE_MLFLOW_URL", "http://127.0.0.1:5999")
        monkeypatch.setenv("FORGE_DAGSTER_URL", "http://127.0.0.1:3999")
        with MlflowTracking().run(asset="a", run_id="r", root_run_id="r", parameters={}) as tracked:
            assert tracked is not None
            assert tracked.url.startswith("http://127.0.0.1:5999/#/experiments/")
            client = mlflow.MlflowClient(f"sqlite:///{folder}/elsewhere.db")
            tags = client.get_run(tracked.run_id or "").data.tags
        assert tags["dagster.run_url"] == "http://127.0.0.1:3999/runs/r"
        assert (Path(folder) / "elsewhere.db").exists()
        assert not (Path(folder) / "mlflow.db").exists()


def test_servers_listen_on_this_machine_only(tmp_path: Path) -> None:
    for service in services(tmp_path, 3000, 5000, None):
        words = list(service.command)
        hosts = [words[place + 1] for place, word in enumerate(words) if word in ("-h", "--host")]
        assert hosts == ["127.0.0.1"]
        assert not any("0.0.0.0" in word for word in words)
