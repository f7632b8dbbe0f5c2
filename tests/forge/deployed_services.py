"""The services of docker-compose.yml as processes of this machine, with their own Postgres.

Commands, environment, order and health checks are those of the file; only addresses, folders and the code differ.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from forge_instance import REPOSITORY
from ports import answers, free_port

COMPOSE = REPOSITORY / "docker-compose.yml"
HERE = Path(__file__).parent
START_S = 240.0
DAEMON_FIRST_S = 5.0  # delay before the daemon's first health check, whose process would only slow its start
_PORTS = {"postgres": "5432", "code": "4266", "webserver": "3000", "mlflow": "5000"}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def postgres_programs() -> Path | None:
    """Return the folder of Postgres' server programs, which Debian does not put on the PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return installed[-1].parent if installed else Path(on_path).parent if on_path else None


def interpolated(text: str, settings: Mapping[str, str]) -> str:
    """Return `text` with variables interpolated as `docker compose` does."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        setting = settings.get(name, "")
        if not setting and kind == "?":
            raise ValueError(f"required variable {name} is missing a value: {rest}")
        return setting or (rest if kind == "-" else "")

    return _VARIABLE.sub(value, text).replace("$$", "$")


def settings_file(path: Path) -> dict[str, str]:
    """Return the variables of a .env file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


class Deployment:
    """The running services; `ports` maps each service to the port that it listens on."""

    def __init__(self, folder: Path, settings: Mapping[str, str], programs: Path) -> None:
        self.folder, self.settings, self.programs = folder, settings, programs
        self.services: dict[str, Any] = compose()["services"]
        self.ports = {name: str(free_port()) for name in _PORTS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environments = {name: self._environment(name) for name in self.services}

    def translated(self, text: str) -> str:
        """Return a word of the compose file translated to this machine's paths and ports."""
        text = interpolated(text, self.settings)
        text = text.replace("/forge/workspace.yaml", f"{REPOSITORY}/deployment/workspace.yaml")
        text = re.sub(r"^/forge|(?<==)/forge", str(self.folder), text).replace("0.0.0.0", "127.0.0.1")
        text = text.replace("forge_assets.definitions", "deployed_forge").replace("//mlflow:", "//127.0.0.1:")
        for name, port in _PORTS.items():
            text = re.sub(rf"\b{port}\b", self.ports[name], text)
        return text

    def start_all(self) -> None:
        """Start every service as soon as those that it depends on are healthy."""
        waiting, healthy = list(self.services), set[str]()
        deadline, not_before = time.monotonic() + START_S, dict[str, float]()
        while waiting or len(healthy) < len(self.services):
            assert time.monotonic() < deadline, f"not healthy in time: {set(self.services) - healthy}"
            for name in [n for n in waiting if set(self.services[n].get("depends_on", {})) <= healthy]:
                self._start(name)
                waiting.remove(name)
                not_before[name] = time.monotonic() + (0 if name in self.ports else DAEMON_FIRST_S)
            for name in self.processes.keys() - healthy:
                assert self.processes[name].poll() is None, f"{name} ended: {self.log(name)[-2000:]}"
                if time.monotonic() >= not_before[name] and self.is_healthy(name):
                    healthy.add(name)
            time.sleep(0.2)

    def is_healthy(self, name: str) -> bool:
        """Return whether the service's own health check passes."""
        if name in self.ports and not answers(int(self.ports[name])):
            return False  # saves starting the process of the health check
        kind, *command = self.services[name]["healthcheck"]["test"]
        words = [self.translated(word) for word in command]
        words = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        ended = subprocess.run(words, env=self.environments[name], capture_output=True, check=False, cwd=self.folder)
        return ended.returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in self.processes.values():
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def sql(self, database: str, query: str) -> list[str]:
        """Run `query` and return its rows as lines, fields separated by `|`."""
        program = [str(self.programs / "psql"), "-AtXq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", query]
        return self._client(program).splitlines()

    def dump(self, database: str) -> str:
        return self._client([str(self.programs / "pg_dump"), "--inserts", "--no-sync", database])

    def _client(self, program: list[str]) -> str:
        ended = subprocess.run(
            program, env=self.environments["daemon"], capture_output=True, text=True, check=False, cwd=self.folder
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def _environment(self, name: str) -> dict[str, str]:
        """Return the environment of a container: the file's variables, and from this process only the search paths."""
        given = {key: self.translated(str(value)) for key, value in self.services[name].get("environment", {}).items()}
        given |= {key: "127.0.0.1" for key in ("PGHOST", "FORGE_CODE_HOST") if given.get(key) in self.services}
        path = os.pathsep.join([str(Path(sys.executable).parent), str(self.programs), os.environ["PATH"]])
        python = os.pathsep.join([str(REPOSITORY), str(HERE)])
        kept = {key: os.environ[key] for key in ("OMP_NUM_THREADS", "HOME") if key in os.environ}
        if name == "postgres":
            kept |= {"PGPORT": self.ports[name]}
        return {**kept, "PATH": path, "PYTHONPATH": python, "PYTHONWARNINGS": "ignore", "LC_ALL": "C.UTF-8", **given}

    def _start(self, name: str) -> None:
        (self.folder / "logs").mkdir(exist_ok=True)
        command = [self.translated(str(word)) for word in self.services[name].get("command", [])]
        user = None
        if name == "postgres":
            command, user = self._cluster()
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.environments[name],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
            )

    def _cluster(self) -> tuple[list[str], str | None]:
        """Make a new cluster as the image's entry point does; return the command that serves it and the user.

        Postgres refuses to run as root, so that root needs another user.
        """
        environment = self.environments["postgres"]
        user = None
        data = self.folder / "postgres"
        data.mkdir()
        if os.geteuid() == 0:
            user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
            shutil.chown(data, user)
        secret = data / "password"
        secret.write_text(environment["POSTGRES_PASSWORD"])
        if user:
            shutil.chown(secret, user)
        cluster, name = str(data / "data"), environment["POSTGRES_USER"]
        initdb = [str(self.programs / "initdb"), "-D", cluster, "-U", name, "--auth=scram-sha-256", "--no-sync"]
        single = [str(self.programs / "postgres"), "--single", "-D", cluster, "postgres"]
        statements = f"CREATE DATABASE {environment['POSTGRES_DB']};\n" + "\n".join(
            line
            for line in (REPOSITORY / "deployment" / "databases.sql").read_text().splitlines()
            if not line.startswith("--")
        )
        quiet: dict[str, Any] = {"user": user, "env": environment, "cwd": data, "capture_output": True, "check": True}
        subprocess.run([*initdb, "--encoding=UTF8", f"--pwfile={secret}"], **quiet)
        secret.unlink()
        subprocess.run(single, input=statements.encode() + b"\n", **quiet)
        serve = ["-D", cluster, "-p", self.ports["postgres"], "-c", "listen_addresses=127.0.0.1", "-k", str(data)]
        return [str(self.programs / "postgres"), *serve, "-c", "fsync=off"], user


@contextmanager
def deployed(folder: Path, settings: Mapping[str, str], programs: Path) -> Iterator[Deployment]:
    """Run every service of docker-compose.yml below `folder`; yield when all are healthy, stop them afterwards."""
    instance = yaml.safe_load((REPOSITORY / "deployment" / "dagster.yaml").read_text())
    instance["run_coordinator"]["config"]["gate_table"] = "deployed_forge"
    for name in ("dagster_home", "state", "artifacts"):
        (folder / name).mkdir()
    (folder / "dagster_home" / "dagster.yaml").write_text(yaml.safe_dump(instance))
    deployment = Deployment(folder, settings, programs)
    try:
        deployment.start_all()
        yield deployment
    finally:
        deployment.stop()
