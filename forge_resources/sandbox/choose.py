"""Choice of a sandbox: embedded, container, or an error; never the host itself."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Literal, assert_never

import docker

from forge_resources.sandbox.conformance import probe
from forge_resources.sandbox.container import ContainerSandbox
from forge_resources.sandbox.engine import connect, engine_sockets
from forge_resources.sandbox.monty import MontySandbox
from training_core.tasks.sandbox import Sandbox, SandboxUnavailableError

Kind = Literal["auto", "embedded", "container"]
INSTALL_ENGINE = "start Docker or Podman (DOCKER_HOST names its socket), then forge sandbox build-image"


def open_sandbox(kind: Kind = "auto") -> Sandbox:
    """Open a sandbox, which the caller must close.

    kind: "embedded" is an interpreter for a subset of Python in worker processes, a thousand times faster; "container"
        is full Python in containers; "auto" is the embedded one, or containers if that is not installed. A program is
        never passed from one to the other, because measurements must not depend on the machine.

    Raises:
        SandboxUnavailableError: when it is not available; the message says what to install or start.
    """
    match kind:
        case "embedded":
            return MontySandbox()
        case "container":
            return _container()
        case "auto":
            return _either()
        case _:
            assert_never(kind)


@contextmanager
def probed_sandbox() -> Iterator[tuple[Sandbox, Mapping[str, float]]]:
    """Yield a sandbox with the metrics of a probe of its isolation on this machine.

    Raises:
        SandboxUnavailableError: when none is available.
    """
    with open_sandbox("auto") as sandbox:
        yield sandbox, probe(sandbox).metrics()


def describe(kind: Kind = "auto") -> str:
    """Return the name of the sandbox that would be used, or the reason why there is none."""
    try:
        with open_sandbox(kind) as sandbox:
            return sandbox.name
    except SandboxUnavailableError as error:
        return f"none: {error}"


def connected() -> "closing[docker.DockerClient]":
    """Return a client of the first engine that answers, as a context manager that closes it.

    Raises:
        SandboxUnavailableError: when none answers.
    """
    return closing(_client())


def _client() -> docker.DockerClient:
    connection = connect(engine_sockets())
    if connection is None:
        raise SandboxUnavailableError(f"no container engine answers: {INSTALL_ENGINE}")
    return connection[0]


def _container() -> Sandbox:
    client = _client()
    try:
        return ContainerSandbox(client)
    except SandboxUnavailableError:
        client.close()
        raise


def _either() -> Sandbox:
    try:
        return MontySandbox()
    except SandboxUnavailableError as embedded:
        try:
            return _container()
        except SandboxUnavailableError as container:
            raise SandboxUnavailableError(f"model-written code is refused: {embedded}; {container}") from container
