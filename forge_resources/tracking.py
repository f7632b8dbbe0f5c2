"""MLflow tracking: a parent run for each root Dagster run, a nested run for each asset, models with aliases.

`dagster-mlflow` is not used: it pins an older pandas and is not a configurable resource. A retried or
re-executed asset continues its MLflow run. Models are registered as logged models, so nothing is pickled, and
get the alias `champion` only after their quality gate has passed.

Tracking only watches: whatever MLflow does, a run goes on. Everything is written to a journal in the forge home first
(`forge_resources.tracking_journal`) and delivered from there; what could not be delivered is delivered when the next
run starts, or by `forge up`. One line says so, in the run's log and on the terminal.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from forge_resources import forge_home
from forge_resources.mlflow_delivery import (
    Delivery,
    failures,
    reason_of,
    refused,
    require_valid_uri,
    without_password,
)
from forge_resources.tracking_journal import LIMIT_BYTES, Entry, Journal, now_ms
from training_core.reporting import Figure
from training_core.terminal import progress_stream

# A server that is away must not hold up training: by default, MLflow itself retries seven times, for minutes. The
# journal is the retry; a request that is repeated blindly could create a run twice.
for _name, _value in (("MAX_RETRIES", "0"), ("TIMEOUT", "10")):
    os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{_name}", _value)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

EXPERIMENT = "agent-forge"
_BATCH = 1000  # metrics that are kept back for one delivery
_PARAM_CHARS = 6000  # MLflow's limit for one parameter's value
_SECRET_WORDS = ("api_key", "password", "secret", "token_env", "credential")
_REPLAY_S = 60.0  # a run does not spend more on what others left
_PAUSE_S = 5.0  # shortest pause after a failed delivery
_PAUSE_PER_S = 20.0  # and its length for each second that the delivery took, so that at most 5 % of a run is lost

Warn = Callable[[str], None]
_log_warning = logging.getLogger(__name__).warning
_deliveries: dict[tuple[str, str], Delivery] = {}  # connections of this process, by URI and experiment
_again_at: dict[str, float] = {}  # when a URI is tried again (time.monotonic)
_warned: set[tuple[str, str]] = set()  # runs in whose log an outage of a URI was reported


class TrackedRun:
    """What is tracked of one asset's run. Nothing here fails when MLflow, the network or the disk does."""

    def __init__(self, tracking: "MlflowTracking", journal: Journal, key: tuple[str, str], warn: Warn) -> None:
        self._tracking, self._journal, self._key, self._warn = tracking, journal, key, warn
        self._num_waiting = 0

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, or None as long as nothing of it was delivered."""
        return self._tracking.delivered_run(self._key)

    @property
    def url(self) -> str:
        """The address of the run's page in MLflow, or of all pages as long as nothing of it was delivered."""
        return self._tracking.page(self._key)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Track scalars measured at `step`; they are delivered in batches and when the run ends."""
        numbers = {name: float(value) for name, value in values.items()}
        self._append({"metrics": (step, numbers), "at": now_ms()})
        self._num_waiting += len(numbers)
        if self._num_waiting >= _BATCH:
            self.deliver()

    def log_figure(self, name: str, figure: Figure) -> None:
        """Track a figure, as an image."""
        series = {label: [[float(v) for v in axis] for axis in curve] for label, curve in figure.series.items()}
        plotted = {"title": figure.title, "x_label": figure.x_label, "y_label": figure.y_label, "series": series}
        self._append({"figure": (name, plotted)})

    def log_model(self, digest: str, folder: Path) -> None:
        """Track the bundle in `folder`, which becomes a version of the registered model."""
        self._append({"model": (digest, str(folder))})
        self.deliver()

    def end(self, status: str) -> None:
        """End the run, deliver what is left and remove the journal if all was delivered."""
        self._append({"end": status, "at": now_ms()})
        if self._journal.num_dropped:
            self._warn(
                f"{self._journal.num_dropped} reports of metrics and figures were not kept for MLflow: the journals in "
                f"{self._journal.path.parent} have reached {LIMIT_BYTES / 2**20:.0f} MiB; start MLflow to empty them"
            )
        if self.deliver():
            self._journal.remove()
        self._journal.close()

    def deliver(self) -> bool:
        """Deliver the journal, unless MLflow failed a moment ago; return whether all of it was delivered."""
        self._num_waiting = 0
        delivered = self._tracking.deliver(self._journal, self._key[0], self._warn)
        if delivered:
            self._journal.empty()
        return delivered

    def _append(self, entry: Entry) -> None:
        try:
            self._journal.append(entry)
        except OSError as error:
            _warn_once(self._key[0], "journal", self._warn, f"not everything is tracked in MLflow any more: {error}")


class MlflowTracking(dg.ConfigurableResource[Any]):
    """Records runs and models in MLflow, by default with SQLite in the forge home."""

    enabled: bool = Field(default=True, description="Record runs and models in MLflow.")
    tracking_uri: str = Field(
        default="",
        description="MLflow server or database, without a password; empty: FORGE_MLFLOW_URI, else SQLite in the home.",
    )
    experiment: str = Field(
        default="", description="Name of the MLflow experiment; empty: FORGE_MLFLOW_EXPERIMENT, else agent-forge."
    )
    mlflow_url: str = Field(
        default="", description="Address of the MLflow pages, for links; empty: FORGE_MLFLOW_URL, else this machine."
    )
    dagster_url: str = Field(
        default="", description="Address of the Dagster UI, for links; empty: FORGE_DAGSTER_URL, else this machine."
    )

    @contextmanager
    def run(
        self, *, asset: str, run_id: str, root_run_id: str, parameters: Mapping[str, Any], warn: Warn = _log_warning
    ) -> Iterator[TrackedRun | None]:
        """Yield what is tracked of `asset` in this run; None if tracking is disabled, or has no place on the disk.

        The run ends as FINISHED, as FAILED if the block raises, or as KILLED if it is interrupted. Outages of MLflow
        are reported through `warn`.

        Raises:
            ValueError: when the tracking URI is malformed or holds a password.
        """
        if not self.enabled:
            yield None
            return
        self.uri()
        self.replay(root_run_id, warn, limit_s=_REPLAY_S)
        run = {
            "asset": asset,
            "root_run_id": root_run_id,
            "parameters": _recorded(parameters),
            "tags": {
                "dagster.run_id": run_id,
                "dagster.run_url": f"{_address(self.dagster_url, 'DAGSTER', 3000)}/runs/{run_id}",
            },
        }
        try:
            journal = Journal.begin(_folder(), f"{root_run_id}.{asset}", {"run": run, "at": now_ms()})
        except OSError as failure:
            _say(warn, f"{asset} is not tracked in MLflow, because its journal cannot be written: {failure}")
            yield None
            return
        tracked = TrackedRun(self, journal, (root_run_id, asset), warn)
        try:
            tracked.deliver()
        except ValueError:  # a database URI that cannot be used
            journal.remove()
            journal.close()
            raise
        try:
            yield tracked
        finally:
            error = sys.exc_info()[1]
            interrupted = error is not None and not isinstance(error, Exception)
            tracked.end("KILLED" if interrupted else "FAILED" if error else "FINISHED")

    def register(self, tracked: TrackedRun | None, *, digest: str, folder: Path) -> None:
        """Register the bundle in `folder` as a version of the model `forge-<asset>`, alias `candidate`."""
        if tracked is not None:
            tracked.log_model(digest, folder)

    def promote(self, asset: str, digest: str, *, root_run_id: str = "", warn: Warn = _log_warning) -> None:
        """Give the alias `champion` to the registered version with `digest`, whose gate has passed."""
        if not self.enabled:
            return
        self.uri()
        try:
            first = {"champion": (asset, digest), "at": now_ms()}
            Journal.begin(_folder(), f"champion.{asset}", first).close()
        except OSError as error:
            _say(warn, f"{asset} {digest[:8]} does not become the champion in MLflow: {error}")
            return
        self.replay(root_run_id, warn, limit_s=_REPLAY_S)

    def replay(self, root_run_id: str = "", warn: Warn = _log_warning, *, limit_s: float = math.inf) -> int:
        """Deliver every journal that has no writer any more, and return how many are left.

        No further one is begun after `limit_s` seconds.
        """
        end = time.monotonic() + limit_s
        for journal in Journal.abandoned(_folder()):
            if self._model_is_coming(journal):
                continue
            if self.deliver(journal, root_run_id, warn, writer_died=True):
                journal.remove()
            if time.monotonic() >= end or time.monotonic() < _again_at.get(self.uri(), 0.0):
                break
        return len(list(_folder().glob("*.jsonl")))

    def deliver(self, journal: Journal, root_run_id: str, warn: Warn, *, writer_died: bool = False) -> bool:
        """Deliver a journal, unless MLflow failed a moment ago, and return whether all of it was delivered."""
        uri = self.uri()
        began = time.monotonic()
        if began < _again_at.get(uri, 0.0):
            return False
        try:
            self._delivery().deliver(journal.entries(), writer_died=writer_died)
        except failures() as error:
            _deliveries.pop((uri, self._experiment()), None)  # a run that was deleted in MLflow is begun again
            if not refused(error):
                now = time.monotonic()
                _again_at[uri] = now + max(_PAUSE_S, _PAUSE_PER_S * (now - began))
            _warn_once(
                root_run_id,
                uri,
                warn,
                f"MLflow at {without_password(uri)} takes nothing ({reason_of(error)}): runs go on; what they "
                f"track is kept in {journal.path.parent} and delivered by the next run or forge up",
            )
            return False
        return True

    def delivered_run(self, key: tuple[str, str]) -> str | None:
        """Return the id of the MLflow run of a root run's asset, or None if this process delivered nothing of it."""
        delivery = _deliveries.get((self.uri(), self._experiment()))
        return None if delivery is None else delivery.run_id(*key)

    def page(self, key: tuple[str, str]) -> str:
        """Return the address of the page of a root run's asset, or of all pages."""
        pages = _address(self.mlflow_url, "MLFLOW", 5000)
        run_id = self.delivered_run(key)
        if run_id is None:
            return pages
        experiment = self._delivery().experiment
        return f"{pages}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"

    def uri(self) -> str:
        """Return the address of MLflow.

        Raises:
            ValueError: when it is malformed, or holds a password that Dagster would show.
        """
        _refuse_credentials(self.tracking_uri)
        for given, source in ((self.tracking_uri, "tracking_uri"), (_variable("FORGE_MLFLOW_URI"), "FORGE_MLFLOW_URI")):
            if given:
                require_valid_uri(given, source)
                return given
        return f"sqlite:///{forge_home() / 'mlflow.db'}"

    def _delivery(self) -> Delivery:
        key = (self.uri(), self._experiment())
        if key not in _deliveries:
            home = forge_home()
            home.mkdir(parents=True, exist_ok=True)
            _deliveries[key] = Delivery(*key, home)
        return _deliveries[key]

    def _experiment(self) -> str:
        return self.experiment or _variable("FORGE_MLFLOW_EXPERIMENT") or EXPERIMENT

    def _model_is_coming(self, journal: Journal) -> bool:
        """Whether the journal is of a champion whose model may stand in a journal that is not delivered yet."""
        kind, asset = journal.path.name.split(".")[:2]
        others = (path.name.split(".")[:2] for path in _folder().glob(f"*.{asset}.*.jsonl"))
        return kind == "champion" and any(other != "champion" and of == asset for other, of in others)


def _say(warn: Warn, text: str) -> None:
    """Write `text` to the run's log and, where there is one, to the terminal."""
    warn(text)
    if (stream := progress_stream()) is not None:
        with stream:
            print(f"forge: {text}", file=stream)


def _warn_once(root_run_id: str, about: str, warn: Warn, text: str) -> None:
    if (root_run_id, about) not in _warned:
        _warned.add((root_run_id, about))
        _say(warn, text)


def _folder() -> Path:
    return forge_home() / "tracking"


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _address(configured: str, service: str, port: int) -> str:
    """The address of a service's pages, for links: as configured, else from the environment, else on this machine."""
    return configured or _variable(f"FORGE_{service}_URL") or f"http://127.0.0.1:{port}"


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


def _recorded(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The configuration as MLflow records it; fields that could hold a secret are left out."""
    return {
        name: str(value)[:_PARAM_CHARS]
        for name, value in parameters.items()
        if not any(word in name.lower() for word in _SECRET_WORDS)
    }
