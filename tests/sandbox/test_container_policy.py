"""The hardening, as the engine is asked for it. Needs no engine: a server records what the Docker client sends."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from forge_resources.sandbox.container import ContainerSandbox
from forge_resources.sandbox.engine import GRACE_S, owner, policy
from training_core.tasks.sandbox import Limits, Program, SandboxUnavailableError

LIMITS = Limits(seconds=2.5, memory_bytes=64 << 20, processes=12)
IMAGE_ID = "sha256:" + "a" * 64


def test_every_argument_of_a_container_is_as_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert policy(LIMITS) == {
        "network_mode": "none",
        "network_disabled": True,
        "read_only": True,
        "tmpfs": {
            "/tmp": "rw,noexec,nosuid,nodev,size=16m,mode=1777",
            "/run": "rw,noexec,nosuid,nodev,size=64k,mode=755",
            "/var/tmp": "rw,noexec,nosuid,nodev,size=64k,mode=755",
        },
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "privileged": False,
        "user": "65534:65534",
        "pids_limit": 12,
        "mem_limit": 64 << 20,
        "memswap_limit": 64 << 20,
        "nano_cpus": 10**9,
        "ulimits": [
            {"Name": "nofile", "Soft": 64, "Hard": 64},
            {"Name": "nproc", "Soft": 4096, "Hard": 4096},
            {"Name": "fsize", "Soft": 16 << 20, "Hard": 16 << 20},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "cpu", "Soft": 5, "Hard": 5},
        ],
        "ipc_mode": "none",
        "init": True,
        "hostname": "sandbox",
        "working_dir": "/tmp",
        "environment": {},
        "use_config_proxy": False,
        "log_config": {"Type": "none", "Config": {}},
        "stdin_open": True,
        "tty": False,
        "auto_remove": False,
        "labels": {"agent-forge.sandbox": owner(), "agent-forge.sandbox.expires": str(1003 + GRACE_S)},
    }


class RecordingEngine(http.server.BaseHTTPRequestHandler):
    """Knows one image, and keeps the request for a container, which it then declines."""

    asked: list[tuple[str, dict[str, object]]]

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self._answer(200, {"Version": "4.3.1", "ApiVersion": "1.41"})
        elif "/images/known" in self.path:
            self._answer(200, {"Id": IMAGE_ID})
        elif "/containers/json" in self.path:
            self._answer(200, [])
        else:
            self._answer(404, {"message": "no such image"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, json.loads(body)))
        self._answer(500, {"message": "declined"})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def recording() -> Iterator[docker.DockerClient]:
    RecordingEngine.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RecordingEngine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = docker.DockerClient(base_url=f"tcp://127.0.0.1:{server.server_port}")
        yield client
        client.close()
        server.shutdown()
        thread.join()


def test_the_engine_is_asked_for_it_and_for_nothing_of_the_host(
    recording: docker.DockerClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORGE_SECRET", "leaked-variable")
    proxies = {"proxies": {"default": {"httpProxy": "http://leaked-proxy"}}}
    (tmp_path / "config.json").write_text(json.dumps(proxies))
    recording.api._general_configs = proxies
    sandbox = ContainerSandbox(recording, image="known")
    with pytest.raises(SandboxUnavailableError, match="did not start"):
        sandbox.run(Program("print('a-word-of-the-program')"), LIMITS)
    ((path, asked),) = RecordingEngine.asked
    assert path.startswith("/v1.41/containers/create")
    assert asked["Image"] == IMAGE_ID  # not the name: what a name means may change
    assert asked["User"] == "65534:65534"
    assert not asked.get("Env")
    assert asked["NetworkDisabled"] is True
    assert "leaked" not in json.dumps(asked)
    assert "a-word-of-the-program" not in json.dumps(asked)  # it goes over standard input
    host = asked["HostConfig"]
    assert isinstance(host, dict)
    for name in ("Privileged", "Binds", "Mounts", "Devices", "DeviceRequests", "CapAdd", "VolumesFrom", "PortBindings",
                 "PidMode", "UsernsMode", "UTSMode", "CgroupParent", "ExtraHosts", "GroupAdd", "Sysctls"):  # fmt: skip
        assert not host.get(name), name
    assert host["ReadonlyRootfs"] is True
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"], host["NanoCpus"]) == (64 << 20, 64 << 20, 12, 10**9)
    assert (host["CapDrop"], host["SecurityOpt"], host["IpcMode"]) == (["ALL"], ["no-new-privileges:true"], "none")


def test_an_image_that_is_not_there_is_never_pulled(recording: docker.DockerClient) -> None:
    with pytest.raises(SandboxUnavailableError, match="forge sandbox build-image"):
        ContainerSandbox(recording, image="absent:latest")
    assert RecordingEngine.asked == []
