"""Real Dagster instances for the tiny forge: the committed dagster.yaml in a temporary home."""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import tiny_forge
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_graphql.schema import create_schema

from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking

REPOSITORY = Path(__file__).parents[2]
Make = Callable[..., dg.ExecuteInProcessResult]


def make_home(home: Path) -> None:
    settings = yaml.safe_load((REPOSITORY / "dagster_home" / "dagster.yaml").read_text())
    settings["run_coordinator"]["config"]["gate_table"] = "tiny_forge"
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))


@contextmanager
def opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Yield the instance in `home`, with the environment variables that its processes need."""
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.delenv("FORGE_HOME", raising=False)
    monkeypatch.delenv("FORGE_PROFILE", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)]))
    with dg.DagsterInstance.from_config(str(home)) as real:
        yield real


def materialize(
    instance: dg.DagsterInstance,
    *selection: str,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    checks: bool = True,
    only_checks: bool = False,
    tracking: MlflowTracking | None = None,
    launcher: Launcher | None = None,
) -> dg.ExecuteInProcessResult:
    """Materialize assets of the tiny forge in this process, with their checks, without them, or only the checks."""
    chosen = dg.AssetSelection.assets(*selection)
    if only_checks:
        chosen = dg.AssetSelection.checks_for_assets(*[dg.AssetKey(name) for name in selection])
    elif not checks:
        chosen = chosen.without_checks()
    return dg.materialize(
        [*tiny_forge.ASSETS, *tiny_forge.CHECKS],
        selection=chosen,
        instance=instance,
        resources={
            "store": ModelStore(),
            "tracking": tracking or MlflowTracking(enabled=False),
            "launcher": Launcher(),
        },
        run_config={"ops": {name: {"config": dict(values)} for name, values in (config or {}).items()}},
        raise_on_error=False,
    )


def made(result: dg.ExecuteInProcessResult) -> list[str]:
    """Return the assets that the run materialized."""
    return sorted(
        event.asset_key.to_user_string()
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    )


def failure_text(result: dg.ExecuteInProcessResult, step: str) -> str:
    """Return the description of the failure of `step`."""
    for event in result.all_events:
        if event.is_step_failure and event.step_key == step:
            data = event.step_failure_data
            described = data.user_failure_data.description if data.user_failure_data else None
            return described or (data.error.message if data.error else "")
    raise AssertionError(f"step {step} did not fail")


def verdict(result: dg.ExecuteInProcessResult, asset: str, check: str = "gate") -> Any:
    """Return the only evaluation of `check` on `asset` in this run."""
    evaluations = [
        e for e in result.get_asset_check_evaluations() if e.asset_key == dg.AssetKey(asset) and e.check_name == check
    ]
    assert len(evaluations) == 1, f"{asset}:{check} was evaluated {len(evaluations)} times"
    return evaluations[0]


LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId status } }
    ... on PythonError { message stack }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""


def launch(
    workspace: WorkspaceProcessContext,
    job: str,
    *assets: str,
    config: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Launch a run as the UI does, and return its id and status."""
    selector: dict[str, Any] = {
        "repositoryLocationName": "tiny",
        "repositoryName": "__repository__",
        "jobName": job,
    }
    if assets:
        selector["assetSelection"] = [{"path": [asset]} for asset in assets]
        selector["assetCheckSelection"] = []
    ops = {name: {"config": values} for name, values in (config or {}).items()}
    parameters = {
        "selector": selector,
        "mode": "default",
        "runConfigData": {"ops": ops},
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
    }
    answer = asyncio.run(
        create_schema().execute_async(
            LAUNCH,
            context_value=workspace.create_request_context(),
            variable_values={"params": parameters},
        )
    )
    assert not answer.errors, answer.errors
    assert answer.data["launchRun"]["__typename"] == "LaunchRunSuccess", answer.data
    return answer.data["launchRun"]["run"]
