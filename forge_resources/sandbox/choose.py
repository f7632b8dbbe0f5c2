"""Choose a sandbox: one of two, or a refusal. The host itself is not among the choices."""

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
    """Open a sandbox; to be closed.

    kind: "embedded" is an interpreter of a subset of Python in worker processes, a thousand times quicker; "container"
        is the whole of Python in containers; "auto" is the embedded one, and containers where that is not installed.
        A program is never handed from one to the other: what is measured must not depend on the machine.

    Raises:
        SandboxUnavailableError: when it cannot be had; it says what to install or start.
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
    """A sandbox, and the metrics of a probe that says whether it holds here and now.

    Raises:
        SandboxUnavailableError: when none can be had.
    """
    with open_sandbox("auto") as sandbox:
        yield sandbox, probe(sandbox).metrics()


def describe(kind: Kind = "auto") -> str:
    """Which sandbox would run, or why none can."""
    try:
        with open_sandbox(kind) as sandbox:
            return sandbox.name
    except SandboxUnavailableError as error:
        return f"none: {error}"


def connected() -> "closing[docker.DockerClient]":
    """A client of the first engine that answers; it closes with the block.

    Raises:
        SandboxUnavailableError: when none answers.
    """
    return closing(_client())


def _client() -> docker.DockerClient:
    found = connect(engine_sockets())
    if found is None:
        raise SandboxUnavailableError(f"no container engine answers: {INSTALL_ENGINE}")
    return found[0]


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
