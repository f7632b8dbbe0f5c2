"""The container engine: discovery, the security policy of containers, and their reliable removal."""

import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import LogConfig, Ulimit
from requests.exceptions import RequestException

from training_core.tasks.sandbox import Limits, SandboxUnavailableError

DEFAULT_IMAGE = "localhost/forge-sandbox:latest"
LABEL = "agent-forge.sandbox"
EXPIRES = "agent-forge.sandbox.expires"
API_TIMEOUT_S = 60
GRACE_S = 120  # time after a program's limit until its container counts as left over
REMOVAL_ATTEMPTS = 8  # over 13 seconds
FILE_BYTES = 16 << 20
# This limit counts over all containers of the user, so the effective one is `pids_limit`; without it Podman requests
# more than a machine may grant.
NUM_PROCESSES = 4096


def engine_sockets() -> list[str]:
    """Return the addresses at which a container engine may listen: DOCKER_HOST, Docker's and Podman's sockets, rootless
    or not."""
    sockets = [os.environ["DOCKER_HOST"]] if os.environ.get("DOCKER_HOST") else []
    paths = ["/var/run/docker.sock", "/run/podman/podman.sock"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        paths[1:1] = [f"{runtime}/docker.sock", f"{runtime}/podman/podman.sock"]
    return sockets + [f"unix://{path}" for path in paths if Path(path).exists()]


def connect(addresses: Sequence[str]) -> tuple[docker.DockerClient, str] | None:
    """Connect to the first engine that answers; return the client and its name, version and address, or None."""
    for address in addresses:
        if not _accepts(address):
            continue
        try:
            if address == os.environ.get("DOCKER_HOST"):
                client = docker.from_env(timeout=API_TIMEOUT_S)  # also reads TLS settings from the environment
            else:
                client = docker.DockerClient(base_url=address, timeout=API_TIMEOUT_S)
            client.ping()
            described = client.version()
        except (DockerException, RequestException, OSError, ValueError):
            continue
        platform_name = described.get("Platform", {}).get("Name") or "engine"
        return client, f"{platform_name} {described.get('Version', '')} at {address}".strip()
    return None


def container_engine(addresses: Sequence[str]) -> str:
    """Return the name, version and address of the first engine that answers; empty if none does."""
    connection = connect(addresses)
    if connection is None:
        return ""
    connection[0].close()
    return connection[1]


def image_reference() -> str:
    """Return the configured image: `FORGE_SANDBOX_IMAGE` (best with a digest), else the one of `build-image`."""
    return os.environ.get("FORGE_SANDBOX_IMAGE") or DEFAULT_IMAGE


def image_id(client: docker.DockerClient, reference: str) -> str:
    """Resolve a reference to the image's immutable id. Nothing is pulled.

    Raises:
        SandboxUnavailableError: when the engine does not have the image.
    """
    try:
        return str(client.images.get(reference).id)
    except NotFound as error:
        raise SandboxUnavailableError(
            f"the container engine answers but has no image {reference}: run forge sandbox build-image"
        ) from error


def policy(limits: Limits) -> dict[str, Any]:
    """Return the arguments of every container: no network, no privileges, no writable files except a small /tmp, and
    limits on every resource.

    The engine's default seccomp profile stays in force; no host path, device, namespace or variable is passed in.
    `memswap_limit` equals `mem_limit`, because swap would otherwise double the memory. The limit on CPU time ends a
    program whose host died before it could kill it.
    """
    return {
        "network_mode": "none",
        "network_disabled": True,
        "read_only": True,
        "tmpfs": {
            "/tmp": "rw,noexec,nosuid,nodev,size=16m,mode=1777",
            "/run": "rw,noexec,nosuid,nodev,size=64k,mode=755",  # Podman would make these two writable without a limit
            "/var/tmp": "rw,noexec,nosuid,nodev,size=64k,mode=755",
        },
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "privileged": False,
        "user": "65534:65534",
        "pids_limit": limits.processes,
        "mem_limit": limits.memory_bytes,
        "memswap_limit": limits.memory_bytes,
        "nano_cpus": 10**9,
        "ulimits": [
            Ulimit(name="nofile", soft=64, hard=64),
            Ulimit(name="nproc", soft=NUM_PROCESSES, hard=NUM_PROCESSES),
            Ulimit(name="fsize", soft=FILE_BYTES, hard=FILE_BYTES),
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="cpu", soft=math.ceil(limits.seconds) + 2, hard=math.ceil(limits.seconds) + 2),
        ],
        "ipc_mode": "none",
        "init": True,
        "hostname": "sandbox",
        "working_dir": "/tmp",
        "environment": {},
        "use_config_proxy": False,  # otherwise the client passes on the proxies of its own configuration
        "log_config": LogConfig(type="none"),
        "stdin_open": True,
        "tty": False,
        "auto_remove": False,  # the exit state is read before removal
        "labels": {LABEL: owner(), EXPIRES: str(math.ceil(time.time() + limits.seconds + GRACE_S))},
    }


def owner() -> str:
    """Return the value of the label that identifies the process that created a container."""
    return f"{socket.gethostname()}-{os.getpid()}"


def remove(container: Any) -> None:
    """Kill a container by its id and remove it, in whatever state it is.

    Raises:
        SandboxUnavailableError: when the engine cannot remove it.
    """
    for attempt in range(REMOVAL_ATTEMPTS):
        try:
            container.remove(force=True, v=True)
            return
        except NotFound:
            return
        except (APIError, RequestException) as error:  # refused while the container is ending: retry
            if attempt == REMOVAL_ATTEMPTS - 1:
                raise SandboxUnavailableError(f"the container {container.id} could not be removed: {error}") from error
            time.sleep(0.05 * 2**attempt)


def reap(client: docker.DockerClient) -> int:
    """Remove sandbox containers of any process that outlived their program; return their number."""
    removed = 0
    for container in client.containers.list(all=True, filters={"label": LABEL}, sparse=True):
        expires = container.attrs.get("Labels", {}).get(EXPIRES, "0")
        if not expires.isdigit() or int(expires) < time.time():
            remove(container)
            removed += 1
    return removed


def _accepts(address: str) -> bool:
    """Whether something listens on a Unix socket; True for other addresses, which the Docker client checks."""
    if not address.startswith("unix://"):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(3)
        return probe.connect_ex(address.removeprefix("unix://")) == 0
