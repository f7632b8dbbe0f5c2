"""Fixtures for the tests of orchestration: each test gets its own Dagster instance, in which the data are made."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
import small_graph
import tiny_forge
import torch
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from forge_instance import Make, make_home, materialize, opened

from forge_resources.model_store import ModelStore
from tests.core.small_data import make_small_data

torch.set_num_threads(1)  # for small tensors a second thread costs more than it saves, above all on a busy machine


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """Return a folder in memory if possible, because Dagster's many small SQLite commits are slow on disk."""
    shared = Path("/dev/shm")
    in_memory = shared.is_dir() and os.access(shared, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="forge-tests-", dir=shared if in_memory else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def template(memory: Path) -> Path:
    """Return a home in which the data assets are made; each test works on a copy of it."""
    home = memory / "template"
    make_home(home)
    with pytest.MonkeyPatch.context() as patch, opened(home, patch) as real:
        assert materialize(real, "tokens", "evaluation_suite").success
    return home


@pytest.fixture
def instance(template: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home = Path(folder) / "home"
        shutil.copytree(template, home)
        with opened(home, monkeypatch) as real:
            yield real


@pytest.fixture
def store(instance: dg.DagsterInstance) -> ModelStore:
    return ModelStore()


@pytest.fixture
def make(instance: dg.DagsterInstance) -> Make:
    """`materialize` in this test's instance."""
    return partial(materialize, instance)


@pytest.fixture
def workspace(instance: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    """Serve the tiny forge from a separate process, as the webserver and the daemon see it."""
    target = ModuleTarget(
        module_name="tiny_forge",
        attribute="defs",
        working_directory=str(Path(tiny_forge.__file__).parent),
        location_name="tiny",
    )
    with WorkspaceProcessContext(instance, target) as context:
        yield context
    context._grpc_server_registry.wait_for_processes()


@pytest.fixture(scope="session")
def made_alone(memory: Path) -> Iterator[Path]:
    """Return a home in which every model of the small graph was made by a single process."""
    home, data = memory / "small", memory / "small_data"
    data.mkdir()
    make_small_data(data)
    make_home(home)
    with pytest.MonkeyPatch.context() as patch, opened(home, patch) as real:
        patch.setenv("SMALL_DATA", str(data))
        assert small_graph.materialize(real, *small_graph.DATA, *small_graph.PHASES).success
    yield home
    shutil.rmtree(home)


@pytest.fixture
def small(made_alone: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home = Path(folder) / "home"
        shutil.copytree(made_alone, home)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with opened(home, monkeypatch) as real:
            yield real
