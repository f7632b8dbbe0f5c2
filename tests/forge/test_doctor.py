"""`forge doctor` reports what the machine has, and judges the profiles by it."""

import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from forge_resources.compute import (
    GIB,
    REQUIREMENTS,
    Machine,
    inspect_machine,
    obstacles,
)
from forge_resources.sandbox.engine import container_engine, engine_sockets

SERVER = Machine(
    cores=16,
    memory_bytes=64 * GIB,
    available_bytes=60 * GIB,
    gpu="an accelerator",
    gpu_bytes=24 * GIB,
    disk_free_bytes=500 * GIB,
    home=Path("/models"),
    engine="",
    sandbox="",
    versions={},
)
NANO, MINI, FORGE_25M = REQUIREMENTS


def test_this_machine_is_measured(tmp_path: Path) -> None:
    machine = inspect_machine(tmp_path / "not" / "yet" / "made")
    assert machine.memory_bytes == psutil.virtual_memory().total
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.versions["dagster"] == "1.13.27"
    assert machine.disk_free_bytes > 0
    assert not (tmp_path / "not").exists()
    assert machine.sandbox == f"embedded, pydantic-monty {version('pydantic-monty')}"


def test_requirements_name_the_profiles() -> None:
    from training_core.profiles import PROFILES

    assert tuple(needs.profile for needs in REQUIREMENTS) == PROFILES


def test_profiles_are_judged_by_what_is_missing() -> None:
    assert [obstacles(SERVER, needs) for needs in REQUIREMENTS] == [[], [], []]
    laptop = replace(SERVER, gpu="", gpu_bytes=0, memory_bytes=4 * GIB)
    assert obstacles(laptop, NANO) == []
    assert obstacles(laptop, MINI) == ["4.3 GB of memory, 6.4 GB wanted"]
    assert "no GPU, one of 6.0 GB wanted" in obstacles(laptop, FORGE_25M)
    full = replace(SERVER, disk_free_bytes=GIB // 2, gpu_bytes=4 * 10**9)
    assert obstacles(full, NANO) == ["0.5 GB of free disk, 1.1 GB wanted"]
    assert obstacles(full, FORGE_25M)[0] == "a GPU of 4.0 GB, one of 6.0 GB wanted"


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers as the Docker API does to a ping and to a question for its version."""

    def do_GET(self) -> None:
        body = b"OK"
        if self.path.endswith("/version"):
            body = b'{"Version": "4.3.1", "ApiVersion": "1.41", "Platform": {"Name": "Podman Engine"}}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def engine() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_first_engine_that_answers_is_named(engine: str) -> None:
    assert container_engine([]) == ""
    assert container_engine(["unix:///no/such.sock"]) == ""
    assert container_engine(["unix:///no/such.sock", engine]) == f"Podman Engine 4.3.1 at {engine}"


def test_docker_host_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine:2375")
    assert engine_sockets()[0] == "tcp://engine:2375"
