"""What is known of a run's process: that it lives, that it died, that it ended in order; and that it can be reached."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher.base import WorkerStatus
from live_forge import DIARY, HOLD
from live_services import wait_for

from forge_assets.run_graph import release_dead_runs
from forge_resources.model_store import ModelStore
from forge_resources.run_launcher import AttendedRunLauncher
from forge_resources.run_process import died, executing, forget, lives, request_cancel

SCRIPT = """
import sys, time
from forge_resources.run_process import executing
with executing("a-run"):
    print("executing", flush=True)
    time.sleep(120)
"""


@contextmanager
def executing_run(*, deaf: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process that executes a run; `deaf` starts it with SIGINT ignored, as scripts start background jobs."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler),
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"executing\n"
            yield started
        finally:
            started.kill()


@pytest.fixture
def process(instance: dg.DagsterInstance) -> Iterator[subprocess.Popen[bytes]]:
    with executing_run(deaf=False) as started:
        yield started


def test_killed_process_is_told_from_one_that_ended(process: subprocess.Popen[bytes]) -> None:
    assert (lives("a-run"), died("a-run")) == (True, False)
    assert (lives("another-run"), died("another-run")) == (False, False)
    process.kill()
    process.communicate()
    assert (lives("a-run"), died("a-run")) == (False, True)
    with executing("another-run", lambda run_id: False):
        assert lives("another-run")
        assert died("a-run")
    with executing("another-run", lambda run_id: run_id == "a-run"):
        assert not died("a-run")
    assert (lives("another-run"), died("another-run")) == (False, False)


@pytest.mark.parametrize("deaf", [False, True])
def test_request_interrupts_the_process(instance: dg.DagsterInstance, deaf: bool) -> None:
    with executing_run(deaf=deaf) as process:
        request_cancel("a-run")
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert (lives("a-run"), died("a-run")) == (False, False)


def test_dead_run_of_the_ui_does_not_keep_forge_run_waiting(
    instance: dg.DagsterInstance, process: subprocess.Popen[bytes]
) -> None:
    instance.add_run(dg.DagsterRun("job", "a-run", status=dg.DagsterRunStatus.STARTED))
    assert release_dead_runs(instance) == []
    launcher = instance.run_launcher
    assert isinstance(launcher, AttendedRunLauncher)
    (run,) = instance.get_runs(dg.RunsFilter(run_ids=["a-run"]))
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    process.kill()
    process.communicate()
    wait_for(lambda: launcher.check_run_worker_health(run).status == WorkerStatus.NOT_FOUND, 60)
    assert release_dead_runs(instance) == ["a-run"]
    assert instance.get_run_by_id("a-run").status == dg.DagsterRunStatus.FAILURE
    assert not died("a-run")


def test_forge_run_is_cancelled_from_the_ui(instance: dg.DagsterInstance, store: ModelStore) -> None:
    store.path.mkdir(parents=True, exist_ok=True)
    (store.path / HOLD).write_text("3")
    driver = Path(__file__).with_name("drive_tiny_run.py")
    command = [sys.executable, str(driver), '{"trunk": {"steps": 5}}', "live_forge", "trunk"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        try:
            wait_for(lambda: (store.path / DIARY).exists(), 120)
            (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            assert instance.run_coordinator.cancel_run(run.run_id)
            out, _ = running.communicate(timeout=60)
        finally:
            running.kill()
    assert json.loads(out) == {"run_id": run.run_id, "made": [], "problems": [], "interrupted": True}
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED
    assert store.versions("trunk") == []


def test_training_state_stays_until_the_run_has_recorded_the_asset(tmp_path: Path) -> None:
    store = ModelStore(root=str(tmp_path))
    (store.checkpoint("trunk", "a-run", "inputs") / "state").touch()
    store.finish(store.checkpoint("trunk", "a-run", "inputs"))
    assert store.unfinished("trunk", "inputs") == ["a-run"]  # killed now, it goes on from its last step
    store._remove_finished_checkpoints("another-run")
    assert (store.checkpoint("trunk", "a-run", "inputs") / "state").exists()
    store._remove_finished_checkpoints("a-run")  # it goes on: not finished any more
    assert (store.checkpoint("trunk", "a-run", "inputs") / "state").exists()
    store.finish(store.checkpoint("trunk", "a-run", "inputs"))
    store._remove_finished_checkpoints("a-run")
    assert list((tmp_path / ".checkpoints").iterdir()) == []


def test_nothing_is_forgotten_of_a_process_that_lives(process: subprocess.Popen[bytes]) -> None:
    forget("a-run")
    assert lives("a-run")
    process.kill()
    process.communicate()
