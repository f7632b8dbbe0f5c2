"""A real MLflow server that tests kill and start again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from live_services import wait_for
from ports import answers, free_port


class MlflowServer:
    """`mlflow server` on a database in `folder`, in a session of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "mlflow-server.log"

    def command(self) -> list[str]:
        backend = ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        artifacts = ["--artifacts-destination", (self.folder / "artifacts").as_uri()]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        return [sys.executable, "-m", "mlflow", "server", *address, *backend, *artifacts]

    def spawn(self) -> None:
        """Start the server without waiting for it."""
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env={**kept, **settings, "PYTHONWARNINGS": "ignore"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> None:
        self.spawn()
        wait_for(lambda: answers(self.port), 120, lambda: self.log.read_text(errors="replace"))

    def kill(self) -> None:
        """Kill the server and its workers, if they run, and wait until none of them answers."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            wait_for(lambda: not answers(self.port), 30, lambda: f"a worker still answers on port {self.port}")

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Run an MLflow server; after the block, none of its processes is left."""
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
