"""Code server, daemon and webserver as separate processes on a temporary home, which tests kill and restart.

The commands are those of docker-compose.yml; the settings are those of `dagster_home/dagster.yaml` with shorter
intervals.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import yaml
from forge_instance import LAUNCH, REPOSITORY
from live_forge import DIARY
from ports import answers, free_port

HERE = Path(__file__).parent
SERVICES = ("code", "daemon", "webserver")
FINAL = ("SUCCESS", "FAILURE", "CANCELED")
START_S = 120.0
_TERMINATE = """
mutation ($id: String!) { terminateRun(runId: $id) { __typename
  ... on TerminateRunFailure { message } ... on PythonError { message } } }
"""
_RELOAD = """
mutation { reloadRepositoryLocation(repositoryLocationName: "forge") { __typename
  ... on WorkspaceLocationEntry { locationOrLoadError { __typename } } } }
"""
_LOADED = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"


class LiveForge:
    """The services of a forge in `home`; `location` is the module that defines its assets."""

    def __init__(self, home: Path, location: str, *, poll_s: int = 1, mlflow_uri: str = "") -> None:
        self.home, self.location = home, location
        self.ports = {name: str(free_port()) for name in ("code", "webserver")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        settings = yaml.safe_load((REPOSITORY / "dagster_home" / "dagster.yaml").read_text())
        queue = {"dequeue_interval_seconds": poll_s, "user_code_failure_retry_delay": 5 * poll_s}
        settings["run_coordinator"]["config"] |= {"gate_table": location, **queue}
        settings["run_monitoring"] |= {"poll_interval_seconds": poll_s, "free_slots_after_run_end_seconds": poll_s}
        home.mkdir(parents=True, exist_ok=True)
        (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
        self.instance = dg.DagsterInstance.from_config(str(home))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DAGSTER", "FORGE", "LIVE"))}
        self.environment = {
            **kept,
            "DAGSTER_HOME": str(home),
            "FORGE_CODE_HOST": "127.0.0.1",
            "FORGE_CODE_PORT": self.ports["code"],
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)]),
            "PYTHONWARNINGS": "ignore",
            **({"FORGE_MLFLOW_URI": mlflow_uri} if mlflow_uri else {}),
        }

    @property
    def store(self) -> Path:
        return self.home / "forge" / "models"

    @property
    def diary(self) -> Path:
        """The file that lists every step that began (`live_forge.learn`)."""
        return self.store / DIARY

    def command(self, name: str) -> list[str]:
        programs = Path(sys.executable).parent
        workspace = ["--workspace", str(REPOSITORY / "deployment" / "workspace.yaml")]
        address = ["--host", "127.0.0.1", "--port", self.ports.get(name, "")]
        return {
            "code": [str(programs / "dagster"), "code-server", "start", *address, "--module-name", self.location],
            "daemon": [str(programs / "dagster-daemon"), "run", *workspace],
            "webserver": [str(programs / "dagster-webserver"), *address, *workspace],
        }[name]

    def start(self, *names: str) -> None:
        """Start those services that do not run, and wait until all of `names` respond."""
        for name in names:
            if not self.alive(name):
                self.spawn(name)
        wait_for(lambda: all(self.answers(name) for name in names), START_S, lambda: self.logs(names))

    def spawn(self, name: str) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name),
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def alive(self, name: str) -> bool:
        return name in self.processes and self.processes[name].poll() is None

    def answers(self, name: str) -> bool:
        assert self.alive(name), f"{name} ended: {self.logs([name])}"
        if name == "daemon":  # it has no port; tests wait for its effects instead
            return True
        if not answers(int(self.ports[name])):
            return False
        return name == "code" or self.loaded()

    def loaded(self) -> bool:
        """Return whether the webserver has loaded the code location."""
        try:
            entries = self.ask(_LOADED)["workspaceOrError"]["locationEntries"]
        except OSError:
            return False
        states = [(entry["locationOrLoadError"] or {}).get("__typename") for entry in entries]
        return states == ["RepositoryLocation"]

    def reload(self) -> None:
        """Reload the code location, as the UI's button does."""
        self.ask(_RELOAD)

    def kill(self, name: str) -> list[int]:
        """Kill the main process of a service and return the ids of the processes that it had started."""
        process = self.processes.pop(name)
        children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.wait()
        return children

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        address = f"http://127.0.0.1:{self.ports['webserver']}/graphql"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                reply: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        assert "errors" not in reply, reply["errors"]
        return reply["data"]

    def launch(
        self, *assets: str, config: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Launch models with their gates, or data, as the UI does, and return the run's id.

        `config` applies to every model.
        """
        models = [name for name in assets if name not in ("tokens", "evaluation_suite")]
        selector = {
            "repositoryLocationName": "forge",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": [name]} for name in assets],
            "assetCheckSelection": [{"assetKey": {"path": [name]}, "name": "gate"} for name in models],
        }
        parameters = {
            "selector": selector,
            "mode": "default",
            "runConfigData": {"ops": {name: {"config": dict(config or {})} for name in models}},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
        }
        answer = self.ask(LAUNCH, params=parameters)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def terminate(self, run_id: str) -> str:
        """Terminate a run, as the UI's button does, and return the type of the response."""
        return str(self.ask(_TERMINATE, id=run_id)["terminateRun"]["__typename"])

    def status(self, run_id: str) -> str:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None, run_id
        return run.status.value

    def finished(self, run_id: str, seconds: float = 120.0) -> str:
        """Wait until the run has ended, and return its status."""
        wait_for(lambda: self.status(run_id) in FINAL, seconds, lambda: self.status(run_id) + self.logs(SERVICES))
        return self.status(run_id)

    def slots_taken(self) -> set[str]:
        """Return the ids of the runs that hold a concurrency slot or wait for one."""
        return set(self.instance.event_log_storage.get_concurrency_run_ids())

    def run_process(self, run_id: str) -> int | None:
        """Return the id of the process that executes the run, as recorded by its first step."""
        records = self.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_START).records
        return next((e.pid for r in records if (e := r.event_log_entry.dagster_event)), None)

    def family(self) -> list[psutil.Process]:
        """Return every process of this forge, even if orphaned: all have its home in their environment."""
        family = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DAGSTER_HOME") == str(self.home) and process.pid != os.getpid():
                    family.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in family if process.status() != psutil.STATUS_ZOMBIE]

    def logs(self, names: Sequence[str]) -> str:
        return "".join(f"\n--- {n}\n" + (self.home / f"{n}.log").read_text(errors="replace")[-1500:] for n in names)

    def interrupt(self) -> None:
        """End the services as a supervisor does: SIGTERM, then SIGKILL for those that do not exit."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """Kill every process of this forge that is left."""
        for process in self.family():
            process.kill()
        for service in self.processes.values():
            service.wait()
        self.instance.dispose()


def wait_for(condition: Callable[[], object], seconds: float, explain: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited too long; {explain()}"
        time.sleep(0.05)


@contextmanager
def live_forge(home: Path, location: str, mlflow_uri: str = "") -> Iterator[LiveForge]:
    """Run all services on a new home; after the block, none of their processes is left."""
    forge = LiveForge(home, location, mlflow_uri=mlflow_uri)
    try:
        forge.start(*SERVICES)
        yield forge
    finally:
        forge.stop()
