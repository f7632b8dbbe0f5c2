"""Delivery of journals (`forge_resources.tracking_journal`) to MLflow.

Delivering a journal again changes nothing: runs are found by their tags, MLflow stores a metric of the same name, step,
time and value once, and models are found by their digest. So a delivery that broke off is simply repeated.
"""

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from forge_resources.drawing import UndrawableError, png
from training_core.reporting import Figure

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # MLflow's limit of metrics in one request
_DATABASE_TIMEOUT_S = 10
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc")
_REFUSED = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")


class DeletedExperimentError(OSError):
    """The MLflow experiment was deleted, so that nothing can be written to it."""


class UnreadableEntryError(OSError):
    """A journal's line has another form, for instance that of another version."""


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions by which a delivery fails: of MLflow, its database, the network and the disk."""
    from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, ParseError, OSError)


def refused(error: Exception) -> bool:
    """Return whether this journal alone cannot be delivered, so that others may still be."""
    return isinstance(error, UnreadableEntryError) or getattr(error, "error_code", "") in _REFUSED


def reason_of(error: Exception) -> str:
    """Return why a delivery failed, as one short line without a password."""
    text = " ".join(str(error).split())
    if inner := re.search(
        r"(\[Errno -?\d+\] [^'\")]*|timed out|Remote end closed connection[a-z ]*|\(sqlite3\.\w+\) [^\[(]*)", text
    ):
        text = inner[1].strip()
    return without_password(text)[:300]


def without_password(text: str) -> str:
    """Return `text` with user and password of each address in it replaced by `***`."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def require_valid_uri(uri: str, source: str) -> None:
    """Check the form of a tracking URI that was given in `source`.

    Raises:
        ValueError: when MLflow could never use it.
    """
    shown = without_password(uri)
    kind = uri.partition(":")[0].partition("+")[0]
    example = "http://127.0.0.1:5000, or sqlite:////absolute/path/mlflow.db"
    if kind not in _SCHEMES:
        raise ValueError(f"{source} must begin with one of {', '.join(_SCHEMES)}, got {shown!r}: write {example}")
    if kind in ("http", "https"):
        try:
            parts = urlsplit(uri)
            valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"{source} must name a host, and a port from 1 to 65535 if any, got {shown!r}: {example}")


class Delivery:
    """Writes journals to an experiment at `uri`, which it creates if there is none.

    Args:
        uri: MLflow server or database.
        experiment: Name of the experiment.
        home: The forge home, for artifacts beside a database.

    Raises:
        ValueError: when the database cannot be used with what is installed.
        DeletedExperimentError: when the experiment was deleted.
        failures(): when MLflow cannot be reached.
    """

    def __init__(self, uri: str, experiment: str, home: Path) -> None:
        import mlflow

        self.uri, self._home = uri, home
        self._runs: dict[tuple[str, str], str] = {}
        _require_database(uri)
        self._select()
        with self._lock():  # two processes that open a new database would both migrate it
            self.client: MlflowClient = mlflow.MlflowClient(uri, uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                local = None if uri.startswith("http") else (home / "mlflow-artifacts").as_uri()
                self.experiment = str(self.client.create_experiment(experiment, artifact_location=local))
                return
        self.experiment = str(found.experiment_id)
        if found.lifecycle_stage == "deleted":
            raise DeletedExperimentError(
                f"the MLflow experiment {experiment!r} was deleted: restore it with MLFLOW_TRACKING_URI="
                f"'{without_password(uri)}' mlflow experiments restore --experiment-id {self.experiment}, or name "
                "another in FORGE_MLFLOW_EXPERIMENT"
            )

    def run_id(self, root_run_id: str, asset: str) -> str | None:
        """Return the id of the MLflow run of `asset`, or None if nothing of it was delivered yet."""
        return self._runs.get((root_run_id, asset))

    def deliver(self, entries: Iterable[Mapping[str, Any]], *, writer_died: bool = False) -> None:
        """Write the entries of one journal, in order; without an `end`, a run whose writer died ends as KILLED.

        Raises:
            failures(): when MLflow cannot be reached or does not accept an entry.
        """
        self._select()
        try:
            self._deliver(entries, writer_died)
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableEntryError(f"an entry cannot be read ({type(error).__name__}: {error})") from error

    def _deliver(self, entries: Iterable[Mapping[str, Any]], writer_died: bool) -> None:
        handlers: dict[str, Callable[..., None]] = {"figure": self._figure, "model": self._model, "end": self._end}
        begun: Mapping[str, Any] | None = None
        metrics: list[tuple[str, float, int, int]] = []
        at = 0
        for entry in entries:
            at = entry.get("at", at)
            if "champion" in entry:
                self._champion(*entry["champion"])
            elif "run" in entry:
                begun = entry["run"]
                self._begin(begun, at)
            elif begun is None:
                continue  # the line that says which run this is was lost with the machine
            elif "metrics" in entry:
                step, values = entry["metrics"]
                metrics += [(name, value, at, step) for name, value in values.items()]
                metrics = self._metrics(begun, metrics, _BATCH)
            else:
                metrics = self._metrics(begun, metrics)
                for kind in handlers.keys() & entry.keys():
                    handlers[kind](begun, entry[kind], at)
                if "end" in entry:
                    writer_died = False
        if begun is not None:
            self._metrics(begun, metrics)
            if writer_died:
                self._end(begun, "KILLED", at)

    def _begin(self, run: Mapping[str, Any], at: int) -> None:
        root, asset = run["root_run_id"], run["asset"]
        parent = self._find_or_create((root, ""), {"dagster.root_run_id": root}, f"forge {root[:8]}", at)
        tags = {"mlflow.parentRunId": parent, "dagster.asset_key": asset}
        mlflow_run = self._find_or_create((root, asset), tags, asset, at)
        for key, value in run["tags"].items():
            self.client.set_tag(mlflow_run, key, value)
        self._parameters(mlflow_run, run["parameters"])
        for one in (parent, mlflow_run):
            if (self.client.get_run(one).info.end_time or 0) <= at:
                self.client.update_run(one, status="RUNNING")

    def _find_or_create(self, key: tuple[str, str], tags: Mapping[str, str], name: str, at: int) -> str:
        if key not in self._runs:
            query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
            with self._lock():
                runs = self.client.search_runs([self.experiment], query, max_results=1)
                run = runs[0] if runs else self.client.create_run(self.experiment, at, dict(tags), name)
            self._runs[key] = str(run.info.run_id)
        return self._runs[key]

    def _parameters(self, run_id: str, parameters: Mapping[str, str]) -> None:
        """Record the configuration. MLflow does not allow changing a parameter, so a retry keeps the recorded ones."""
        from mlflow.entities import Param

        known = self.client.get_run(run_id).data.params
        if new := [Param(name, value) for name, value in parameters.items() if name not in known]:
            self.client.log_batch(run_id, params=new)

    def _metrics(
        self, run: Mapping[str, Any], metrics: list[tuple[str, float, int, int]], at_least: int = 1
    ) -> list[tuple[str, float, int, int]]:
        """Write the metrics once there are `at_least` of them, and return those that are left."""
        from mlflow.entities import Metric

        while len(metrics) >= at_least:
            batch, metrics = metrics[:_BATCH], metrics[_BATCH:]
            self.client.log_batch(self._of(run), metrics=[Metric(*one) for one in batch])
        return metrics

    def _figure(self, run: Mapping[str, Any], figure: tuple[str, Mapping[str, Any]], _at: int) -> None:
        name, plotted = figure
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "figures" / f"{name}.png"
            image.parent.mkdir(parents=True)
            try:
                image.write_bytes(png(Figure(**plotted)))
            except UndrawableError:
                return  # the asset's page says so
            self.client.log_artifact(self._of(run), str(image), str(image.parent.relative_to(folder)))

    def _model(self, run: Mapping[str, Any], model: tuple[str, str], _at: int) -> None:
        """Register the bundle in a folder as a version of the model `forge-<asset>`, alias `candidate`."""
        import mlflow

        digest, folder = model
        asset = run["asset"]
        name = f"forge-{asset}"
        with self._lock():
            version = self._version(name, digest)
            if version is None:
                if not Path(folder).is_dir():
                    return  # it was removed from the store in the meantime
                logged = self._logged_model(asset, self._of(run), digest)
                self.client.log_model_artifacts(logged, folder)
                self.client.finalize_logged_model(logged, "READY")
                made = mlflow.register_model(f"models:/{logged}", name, 0, tags={"digest": digest})
                version = str(made.version)
            self.client.set_registered_model_alias(name, "candidate", version)

    def _logged_model(self, asset: str, run_id: str, digest: str) -> str:
        """The id of the logged model with `digest`; one that an earlier delivery left unfinished is used again."""
        for model in self.client.search_logged_models([self.experiment], f"tags.digest = '{digest}'"):
            if model.source_run_id == run_id:
                return str(model.model_id)
        tags = {"format": "safetensors", "digest": digest}
        model = self.client.create_logged_model(
            self.experiment, name=asset, source_run_id=run_id, tags=tags, model_type="agent-forge bundle"
        )
        return str(model.model_id)

    def _version(self, name: str, digest: str) -> str | None:
        versions = self.client.search_model_versions(f"name = '{name}' and tags.digest = '{digest}'")
        return str(versions[0].version) if versions else None

    def _champion(self, asset: str, digest: str) -> None:
        version = self._version(f"forge-{asset}", digest)
        if version is not None:  # else it was made while tracking was off
            self.client.set_registered_model_alias(f"forge-{asset}", "champion", version)

    def _end(self, run: Mapping[str, Any], status: str, at: int) -> None:
        """End the run and its parent, unless one that was delivered earlier has ended later."""
        for one in (self._of(run), self._runs[run["root_run_id"], ""]):
            if (self.client.get_run(one).info.end_time or 0) <= at:
                self.client.set_terminated(one, status, at)

    def _of(self, run: Mapping[str, Any]) -> str:
        return self._runs[run["root_run_id"], run["asset"]]

    def _select(self) -> None:
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)

    def _lock(self) -> FileLock:
        return FileLock(self._home / "mlflow.lock", timeout=30)


def _require_database(uri: str) -> None:
    """Connect to a database once: MLflow itself goes on trying for minutes.

    Raises:
        ValueError: when its driver is not installed or the URI is malformed.
        sqlalchemy.exc.SQLAlchemyError: when it cannot be reached, or is none.
    """
    if uri.partition(":")[0].partition("+")[0] not in ("sqlite", "postgresql", "mysql", "mssql"):
        return
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
        timeout = {"sqlite": "timeout", "postgresql": "connect_timeout", "mysql": "connect_timeout"}
        named = timeout.get(url.get_backend_name())
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, connect_args={named: _DATABASE_TIMEOUT_S} if named else {}
        )
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
        raise ValueError(
            f"MLflow's database {without_password(uri)!r} cannot be used ({without_password(str(error))}): correct the "
            "URI, or install the driver that it names"
        ) from error
    with contextlib.closing(engine.connect()) as connection:
        sqlalchemy.inspect(connection).has_table("experiments")
