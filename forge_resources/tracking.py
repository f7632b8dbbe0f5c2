"""MLflow tracking: a parent run for each root Dagster run, a nested run for each asset, models with aliases.

`dagster-mlflow` is not used: it pins an older pandas and is not a configurable resource. A retried or
re-executed asset continues its MLflow run. Models are registered as logged models, so nothing is pickled, and
get the alias `champion` only after their quality gate has passed.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dagster as dg
from filelock import FileLock
from pydantic import Field

from forge_resources import forge_home

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_BATCH = 1000  # MLflow's limit of metrics in one request
_PARAM_CHARS = 6000  # MLflow's limit for one parameter's value
_SECRET_WORDS = ("api_key", "password", "secret", "token_env", "credential")


class TrackedRun:
    """The MLflow run of one asset. Metrics are buffered, because each request is a database transaction."""

    def __init__(self, client: "MlflowClient", run_id: str, url: str) -> None:
        self.client = client
        self.run_id = run_id
        self.url = url
        self._buffer: list[Any] = []

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Buffer scalars measured at `step`; they are written when the buffer is full or the run ends."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [Metric(name, float(value), now, step) for name, value in values.items()]
        while len(self._buffer) >= _BATCH:
            self._write()

    def flush(self) -> None:
        """Write all buffered metrics."""
        while self._buffer:
            self._write()

    def _write(self) -> None:
        self.client.log_batch(self.run_id, metrics=self._buffer[:_BATCH])
        del self._buffer[:_BATCH]


class MlflowTracking(dg.ConfigurableResource[Any]):
    """Records runs and models in MLflow, by default with SQLite in the forge home."""

    enabled: bool = Field(default=True, description="Record runs and models in MLflow.")
    tracking_uri: str = Field(
        default="",
        description="MLflow server or database, without a password; empty: FORGE_MLFLOW_URI, else SQLite in the home.",
    )
    experiment: str = Field(default="agent-forge", description="Name of the MLflow experiment.")
    mlflow_url: str = Field(
        default="", description="Address of the MLflow pages, for links; empty: FORGE_MLFLOW_URL, else this machine."
    )
    dagster_url: str = Field(
        default="", description="Address of the Dagster UI, for links; empty: FORGE_DAGSTER_URL, else this machine."
    )

    @contextmanager
    def run(
        self, *, asset: str, run_id: str, root_run_id: str, parameters: Mapping[str, Any]
    ) -> Iterator[TrackedRun | None]:
        """Yield the MLflow run of `asset`, open for metrics; None if tracking is disabled.

        The run ends as FINISHED, as FAILED if the block raises, or as KILLED if it is interrupted.
        """
        if not self.enabled:
            yield None
            return
        client, experiment = self._connect()
        parent = self._find_or_create(
            client, experiment, {"dagster.root_run_id": root_run_id}, f"forge {root_run_id[:8]}"
        )
        tags = {"mlflow.parentRunId": parent, "dagster.asset_key": asset}
        mlflow_run = self._find_or_create(client, experiment, tags, asset)
        client.set_tag(mlflow_run, "dagster.run_id", run_id)
        client.set_tag(mlflow_run, "dagster.run_url", f"{_address(self.dagster_url, 'DAGSTER', 3000)}/runs/{run_id}")
        for run in (parent, mlflow_run):
            client.update_run(run, status="RUNNING")
        _log_parameters(client, mlflow_run, parameters)
        tracked = TrackedRun(client, mlflow_run, self._url(experiment, mlflow_run))
        try:
            yield tracked
        finally:
            error = sys.exc_info()[1]
            interrupted = error is not None and not isinstance(error, Exception)
            status = "KILLED" if interrupted else "FAILED" if error else "FINISHED"
            tracked.flush()
            client.set_terminated(mlflow_run, status=status)
            client.set_terminated(parent, status=status)

    def register(self, tracked: TrackedRun | None, *, asset: str, digest: str, folder: Path) -> None:
        """Register the bundle in `folder` as a version of the model `forge-<asset>`, alias `candidate`."""
        if tracked is None:
            return
        import mlflow

        client, experiment = self._connect()
        name = f"forge-{asset}"
        with self._lock():
            versions = client.search_model_versions(f"name = '{name}' and tags.digest = '{digest}'")
            if versions:
                version = versions[0].version
            else:
                model = client.create_logged_model(
                    experiment,
                    name=asset,
                    source_run_id=tracked.run_id,
                    tags={"format": "safetensors", "digest": digest},
                    model_type="agent-forge bundle",
                )
                client.log_model_artifacts(model.model_id, str(folder))
                client.finalize_logged_model(model.model_id, "READY")
                version = mlflow.register_model(f"models:/{model.model_id}", name, tags={"digest": digest}).version
            client.set_registered_model_alias(name, "candidate", str(version))

    def promote(self, asset: str, digest: str) -> None:
        """Give the alias `champion` to the registered version with `digest`, whose gate has passed."""
        if not self.enabled:
            return
        client, _ = self._connect()
        name = f"forge-{asset}"
        versions = client.search_model_versions(f"name = '{name}' and tags.digest = '{digest}'")
        if versions:
            client.set_registered_model_alias(name, "champion", str(versions[0].version))

    def _connect(self) -> tuple["MlflowClient", str]:
        import mlflow

        _refuse_credentials(self.tracking_uri)
        uri = self.tracking_uri or os.environ.get("FORGE_MLFLOW_URI") or f"sqlite:///{self._home() / 'mlflow.db'}"
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        with self._lock():  # two processes that open a new database would both migrate it
            client = mlflow.MlflowClient(uri, uri)
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is not None:
                return client, str(experiment.experiment_id)
            local = None if uri.startswith("http") else (self._home() / "mlflow-artifacts").as_uri()
            return client, str(client.create_experiment(self.experiment, artifact_location=local))

    def _find_or_create(self, client: "MlflowClient", experiment: str, tags: Mapping[str, str], name: str) -> str:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with self._lock():
            runs = client.search_runs([experiment], query, max_results=1)
            if runs:
                return str(runs[0].info.run_id)
            return str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id)

    def _url(self, experiment: str, run_id: str) -> str:
        pages = _address(self.mlflow_url, "MLFLOW", 5000)
        return f"{pages}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"

    def _home(self) -> Path:
        home = forge_home()
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _lock(self) -> FileLock:
        return FileLock(self._home() / "mlflow.lock", timeout=120)


def _address(configured: str, service: str, port: int) -> str:
    """The address of a service's pages, for links: as configured, else from the environment, else on this machine."""
    return configured or os.environ.get(f"FORGE_{service}_URL") or f"http://127.0.0.1:{port}"


def _refuse_credentials(tracking_uri: str) -> None:
    """Reject a password in a resource's configuration, which Dagster shows and records.

    Raises:
        ValueError: when there is one; the message does not repeat it.
    """
    parts = urlsplit(tracking_uri)
    if parts.password is not None or "password" in parts.query:
        raise ValueError(
            "tracking_uri must hold no password, because Dagster shows and records it: remove it there and set "
            "the environment variable FORGE_MLFLOW_URI (or PGPASSWORD for Postgres) instead"
        )


def _log_parameters(client: "MlflowClient", run_id: str, parameters: Mapping[str, Any]) -> None:
    """Record the configuration. MLflow does not allow changing a parameter, so a retry keeps the recorded ones.

    Fields that could hold a secret are left out.
    """
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = {
        name: str(value)[:_PARAM_CHARS]
        for name, value in parameters.items()
        if name not in known and not any(word in name.lower() for word in _SECRET_WORDS)
    }
    if new:
        client.log_batch(run_id, params=[Param(name, value) for name, value in new.items()])
