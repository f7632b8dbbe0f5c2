"""The deployment's own processes, on a real Postgres: they start, run, refuse, and keep their records there."""

import json
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from deployed_services import REPOSITORY, Deployment, deployed, postgres_programs, settings_file
from forge_instance import LAUNCH
from planted import forms, places

PASSWORD = "p@ss:w/rd+é#31f6a1d9c2"
KEY = "sk-or-v1-planted-8d1f02ab77c4"
RUN_S = 180.0
STATUS = """
query ($id: ID!) { runOrError(runId: $id) { ... on Run { status
  eventConnection { events { __typename ... on RunFailureEvent { message } } } } } }
"""
INSTANCE = "{ instance { info daemonHealth { allDaemonStatuses { daemonType healthy required } } } }"


def ask(deployment: Deployment, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{deployment.ports['webserver']}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    assert "errors" not in found, found["errors"]
    return found["data"]


def launch(deployment: Deployment, *assets: str) -> tuple[str, str]:
    """Launch assets, and the gate of the trunk, as the UI does, and wait: the status, and why a run failed."""
    checks = [{"assetKey": {"path": [name]}, "name": "gate"} for name in assets if name == "trunk"]
    selector = {
        "repositoryLocationName": "forge",
        "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": [name]} for name in assets],
        "assetCheckSelection": checks,
    }
    parameters = {"selector": selector, "mode": "default", "runConfigData": "{}"}
    answer = ask(deployment, LAUNCH, params=parameters)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    deadline = time.monotonic() + RUN_S
    while time.monotonic() < deadline:
        run = ask(deployment, STATUS, id=answer["run"]["runId"])["runOrError"]
        if run["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
            events = run["eventConnection"]["events"]
            return run["status"], "".join(e["message"] for e in events if e["__typename"] == "RunFailureEvent")
        time.sleep(0.5)
    raise AssertionError(f"the run did not end: {run}; {deployment.log('daemon')[-2000:]}")


def status_of(deployment: Deployment, host: str) -> int:
    """How MLflow answers a request that names `host`."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{deployment.ports['mlflow']}/api/2.0/mlflow/experiments/search?max_results=1",
        headers={"Host": host},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_services_of_the_compose_file_on_a_real_postgres(memory: Path) -> None:
    pytest.importorskip("dagster_postgres", reason="the extra `postgres` is not installed")
    programs = postgres_programs()
    if programs is None:
        pytest.skip("Postgres is not installed: no initdb in /usr/lib/postgresql/*/bin or in the PATH")
    settings = settings_file(REPOSITORY / ".env.example")
    settings |= {"FORGE_POSTGRES_PASSWORD": PASSWORD, "OPENROUTER_API_KEY": KEY}
    with tempfile.TemporaryDirectory(dir=memory) as folder, pytest.MonkeyPatch.context() as patch:
        home = Path(folder)
        memory.chmod(0o711)  # Postgres runs as another user and has to get here
        home.chmod(0o711)
        patch.delenv("FORGE_HOME", raising=False)
        with deployed(home, settings, programs) as deployment:
            made = launch(deployment, "tokens", "evaluation_suite", "trunk", "left")  # the trunk's gate opens
            assert made == ("SUCCESS", "")
            status, reason = launch(deployment, "left_child")  # nobody has judged left
            assert status == "FAILURE"
            assert reason.startswith("refused, quality gate closed: left:gate: the current version has no completed")

            count = "select status, count(*) from runs group by status order by status"
            assert deployment.sql("dagster", count) == ["FAILURE|1", "SUCCESS|1"]
            verdicts = "select asset_key, execution_status from asset_check_executions where check_name = 'gate'"
            assert deployment.sql("dagster", verdicts) == ['["trunk"]|SUCCEEDED']
            champions = "select name from registered_model_aliases where alias = 'champion'"
            assert deployment.sql("mlflow", champions) == ["forge-trunk"]
            assert sorted(deployment.sql("mlflow", "select name from registered_models")) == [
                "forge-left",
                "forge-trunk",
            ]
            stored = [path.name for path in (home / "artifacts").rglob("model.safetensors")]
            assert len(stored) == 2  # through the server, into its own volume
            assert [str(path) for path in home.rglob("*.db")] == []
            assert (status_of(deployment, "mlflow:5000"), status_of(deployment, "evil.example")) == (200, 403)

            shown = ask(deployment, INSTANCE)["instance"]
            unhealthy = [d for d in shown["daemonHealth"]["allDaemonStatuses"] if d["required"] and not d["healthy"]]
            assert unhealthy == []
            assert "GatedRunCoordinator" in shown["info"]
            written = shown["info"] + deployment.dump("dagster") + deployment.dump("mlflow")
            assert "forge-trunk" in written
            for secret in (PASSWORD, KEY):
                assert [form for form, value in forms(secret).items() if value in written.encode()] == []
        for secret in (PASSWORD, KEY):
            assert places(home, secret) == []  # logs, captured output, artifacts, and the cluster's own files
