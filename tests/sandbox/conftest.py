"""Both sandboxes, opened once per session. Without a container engine, the container tests skip with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import docker
import pytest

from forge_resources.sandbox import open_sandbox
from forge_resources.sandbox.choose import connected
from forge_resources.sandbox.engine import LABEL, owner
from training_core.tasks.sandbox import Sandbox, SandboxUnavailableError


def left_of_this_process(client: docker.DockerClient) -> list[str]:
    """Return the ids of containers that the tests of this process made and did not remove."""
    mine = client.containers.list(all=True, filters={"label": f"{LABEL}={owner()}"}, sparse=True)
    return [each.id for each in mine]


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    with ExitStack() as stack:
        try:
            stack.enter_context(open_sandbox("container"))
            client = stack.enter_context(connected())
        except SandboxUnavailableError as error:
            pytest.skip(str(error))
        yield client
        assert left_of_this_process(client) == []


@pytest.fixture(scope="session")
def left(engine: docker.DockerClient) -> Callable[[], list[str]]:
    return partial(left_of_this_process, engine)


@pytest.fixture(scope="session")
def embedded() -> Iterator[Sandbox]:
    with open_sandbox("embedded") as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def container(engine: docker.DockerClient) -> Iterator[Sandbox]:
    with open_sandbox("container") as sandbox:
        yield sandbox


@pytest.fixture(params=["embedded", pytest.param("container", marks=pytest.mark.slow)])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    opened: Sandbox = request.getfixturevalue(request.param)
    return opened
