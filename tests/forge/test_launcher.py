"""Phases 1 and 2 made by two processes, of one machine and of two Slurm nodes: the same models, and no process is left
behind by a run that was cancelled or killed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import psutil
import pytest
import slurm_cluster
import small_graph
import torch
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from forge_instance import failure_text, launch
from small_graph import materialize, newest

from forge_resources.launcher import WORKER, Launcher, WholeLinesReader, _environment
from forge_resources.model_store import ModelStore

MODES = ("torchrun", "slurm")


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of two Slurm nodes."""
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A way to start two processes, chosen by the environment as a person would."""
    chosen = getattr(request, "param", "torchrun")
    monkeypatch.setenv("FORGE_LAUNCHER", chosen)
    monkeypatch.setenv("FORGE_PROCESSES", "2" if chosen == "torchrun" else "1")
    monkeypatch.setenv("FORGE_NODES", "2")
    if chosen == "slurm":
        monkeypatch.setenv("SLURM_CONF", request.getfixturevalue("nodes")["SLURM_CONF"])
    return str(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, indirect=True)
def test_two_processes_make_the_model_of_one(small: dg.DagsterInstance, mode: str) -> None:
    """The merge's evaluations are dealt out, its numbers stay the same; sums of gradients round differently."""
    merged, _ = newest(small, "merged_model")
    assert materialize(small, "merged_model").success
    shared, recorded = newest(small, "merged_model")
    assert recorded["processes"].value == 2
    assert str(recorded["first_process"].value) == ("n1" if mode == "slurm" else os.uname().nodename)
    assert shared.folder != merged.folder  # measured anew, and the same model
    assert shared.digest() == merged.digest()
    assert shared.lineage().metrics["merge_evaluations"] == merged.lineage().metrics["merge_evaluations"]

    before = newest(small, "trunk")[0].tensors()
    result = materialize(small, "trunk")
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True]
    after = newest(small, "trunk")[0].tensors()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert all(torch.allclose(after[name], before[name], rtol=1e-3, atol=1e-4) for name in before)
    assert not list(ModelStore().path.glob(".staging/*"))
    assert not list(ModelStore().path.glob(".checkpoints/*"))


@pytest.mark.slow
def test_what_cannot_be_split_is_refused_and_not_tried_again(small: dg.DagsterInstance, mode: str) -> None:
    result = materialize(small, "trunk", training={"batch_size": 1})
    assert not result.success
    assert "a batch of 1 rows cannot be split among 2 processes" in failure_text(result, "trunk")
    assert not [event for event in result.all_events if event.event_type_value == "STEP_RESTARTED"]


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        (Launcher(mode="spark"), "launcher mode must be one of inline, torchrun, slurm, got 'spark'"),
        (Launcher(mode="slurm"), "srun is not installed here: choose another launcher mode"),
    ],
)
def test_a_launcher_that_cannot_be_says_so(
    small: dg.DagsterInstance, launcher: Launcher, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = materialize(small, "trunk", launcher=launcher)
    assert message in failure_text(result, "trunk")


def test_a_message_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    read: list[object] = []
    handler, ended = SimpleNamespace(handle_message=read.append), threading.Event()
    file = tmp_path / "messages"
    file.write_text('{"number": 1}\n{"num')
    reader = threading.Thread(target=WholeLinesReader(str(file))._reader_thread, args=(handler, ended))
    reader.start()
    wait_for(lambda: read)
    with file.open("a") as more:
        more.write('ber": 2}\n{"number": 3}\n')
    ended.set()
    reader.join()
    assert read == [{"number": 1}, {"number": 2}, {"number": 3}]


def test_launched_processes_are_given_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = ("OPENROUTER_API_KEY", "PGPASSWORD", "FORGE_ALERT_WEBHOOK", "FORGE_MLFLOW_URI", "SLURM_JWT", "hub_token")
    for name in (*hidden, "FORGE_HOME"):
        monkeypatch.setenv(name, "planted")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = _environment(2)
    assert given["FORGE_HOME"] == "planted"
    assert not set(hidden) & set(given)
    assert int(given["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert "OMP_NUM_THREADS" not in _environment(0), "the cores of another machine are not known here"


def workers(home: Path) -> list[psutil.Process]:
    """The processes, of any parent, that make a model of this home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if WORKER in line and any(str(home) in word for word in line):
            found.append(process)
    return found


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def workspace(small: dg.DagsterInstance, mode: str) -> Iterator[WorkspaceProcessContext]:
    """The small graph served by a process of its own that inherits how models are made."""
    folder = str(Path(small_graph.__file__).parent)
    target = ModuleTarget("small_graph", attribute="defs", working_directory=folder, location_name="tiny")
    with WorkspaceProcessContext(small, target) as context:
        yield context
    context._grpc_server_registry.wait_for_processes()


def start(workspace: WorkspaceProcessContext, instance: dg.DagsterInstance, steps: int) -> str:
    """Launch a run of the trunk in a process of its own and wait until both processes train; the run's id."""
    run_id = launch(workspace, "__ASSET_JOB", "trunk", config={"trunk": {"training": {"steps": steps}}})["runId"]
    instance.launch_run(run_id, workspace.create_request_context())
    wait_for(lambda: list(ModelStore().path.glob(f".checkpoints/{run_id}-trunk/trunk.safetensors")))
    return run_id


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, indirect=True)
def test_a_run_that_ends_takes_its_processes_with_it(
    small: dg.DagsterInstance, mode: str, workspace: WorkspaceProcessContext
) -> None:
    home = ModelStore().path
    run_id = start(workspace, small, steps=100_000)
    assert len(workers(home)) >= 2
    small.run_launcher.terminate(run_id)
    wait_for(lambda: not workers(home), 10)
    wait_for(lambda: small.get_run_by_id(run_id).is_finished)
    assert small.get_run_by_id(run_id).status == dg.DagsterRunStatus.CANCELED
    if mode == "slurm":
        return  # what ends the processes of a killed run is the same pipe, which the cancelled one closed too

    run_id = start(workspace, small, steps=100_000)
    events = [record.event_log_entry.dagster_event for record in small.get_records_for_run(run_id).records]
    os.kill(next(e.pid for e in events if e is not None and e.is_step_start), signal.SIGKILL)
    wait_for(lambda: not workers(home), 10)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_next_attempt_goes_on(
    small: dg.DagsterInstance, mode: str, workspace: WorkspaceProcessContext
) -> None:
    assert materialize(small, "trunk", training={"steps": 40}).success
    undisturbed, _ = newest(small, "trunk")
    run_id = start(workspace, small, steps=40)
    ranks = [process for process in workers(ModelStore().path) if not process.children()]
    ranks[-1].kill()
    wait_for(lambda: small.get_run_by_id(run_id).is_finished, 120)
    assert small.get_run_by_id(run_id).status == dg.DagsterRunStatus.SUCCESS
    events = [r.event_log_entry.dagster_event for r in small.get_records_for_run(run_id).records]
    assert [e.event_type_value for e in events if e is not None].count("STEP_RESTARTED") == 1
    assert newest(small, "trunk")[0].digest() == undisturbed.digest()
    assert not workers(ModelStore().path)
