"""Real processes are killed while a model trains by the real loop: what is lost, what is freed, what a retry makes."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import live_forge
import psutil
import pytest
import torch
from live_services import LiveForge, wait_for
from live_services import live_forge as services

from forge_resources.model_store import ModelStore
from training_core.store.bundle import open_bundle

CANCEL_S = 3.0
SLOW = {"steps": 60, "step_s": 0.05}
RETRIED = {"dagster/max_retries": "1"}


@pytest.fixture(scope="module")
def live(template: Path, memory: Path) -> Iterator[LiveForge]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home = Path(folder) / "home"
        shutil.copytree(template, home)
        with services(home, "live_forge") as forge:
            yield forge


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of `SLOW` from a run that nothing happens to."""
    checkpoint = tmp_path_factory.mktemp("store") / ".checkpoints" / "undisturbed"
    config = live_forge.LiveConfig(**(SLOW | {"step_s": 0.0}))  # type: ignore[arg-type]
    product = live_forge.learn(live_forge.PhaseContext(checkpoint=checkpoint), config)
    assert product.tensors is not None
    return dict(product.tensors)


def steps(live: LiveForge, root: str) -> list[int]:
    """The steps of `trunk` that began in the run `root` and its retries, in order."""
    lines = live.diary.read_text().splitlines() if live.diary.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(f"{root}-trunk ")]


def wait_until_it_trains(live: LiveForge, run_id: str, count: int = 5) -> int:
    """Wait until a few more steps have begun; the process of the run."""
    before = len(steps(live, run_id))
    wait_for(lambda: len(steps(live, run_id)) >= before + count, 60, lambda: live.status(run_id) + live.logs(["code"]))
    pid = live.run_process(run_id)
    assert pid is not None
    return pid


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def retry_of(live: LiveForge, run_id: str) -> str:
    """Wait until the daemon has retried the run; the id of the retry."""

    def retries() -> list[str]:
        return [run.run_id for run in live.instance.get_runs() if run.parent_run_id == run_id]

    wait_for(retries, 60, lambda: live.logs(["daemon"]))
    (retry,) = retries()
    return retry


def check_finished(live: LiveForge, root: str, expected: dict[str, torch.Tensor], kills: int) -> None:
    """The weights are those of an undisturbed run; at most the step that a kill fell into was computed twice."""
    newest = open_bundle(ModelStore(root=str(live.store)).versions("trunk")[-1])
    tensors = newest.tensors()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    done = steps(live, root)
    assert sorted(set(done)) == list(range(SLOW["steps"]))
    assert done == sorted(done)  # one after the other: no two processes at it
    assert len(done) <= SLOW["steps"] + kills
    wait_for(lambda: list((live.store / ".checkpoints").iterdir()) == [], 60)
    assert list((live.store / ".staging").iterdir()) == []


def cancel(live: LiveForge) -> tuple[float, float]:
    """Cancel a run amid its arithmetic: seconds until it is recorded as cancelled, and until no process of it is left.

    The latter in seconds of a machine that has a core for it: the wait for one is taken off, by the load.
    """
    run_id = live.launch("trunk", config={"steps": 500, "width": 384, "batch_size": 512})
    pid = wait_until_it_trains(live, run_id)
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    begun = time.monotonic()
    assert live.terminate(run_id) == "TerminateRunSuccess"
    wait_for(lambda: live.status(run_id) == "CANCELED", 60)
    recorded, count = time.monotonic() - begun, len(steps(live, run_id))
    wait_for(lambda: all(gone(process.pid) for process in family), 60)
    left = (time.monotonic() - begun) / max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert live.slots_taken() == set()
    assert list((live.store / ".staging").glob("*")) == []
    assert len(steps(live, run_id)) == count < 500  # it trained no more
    shutil.rmtree(live.store / ".checkpoints")
    return recorded, left


@pytest.mark.slow
def test_cancel_in_the_ui_ends_a_training_step_within_3_seconds(live: LiveForge) -> None:
    seconds = cancel(live)
    for _ in range(2):
        if max(seconds) >= CANCEL_S:  # another process may have had the core
            seconds = min(seconds, cancel(live), key=max)
    assert max(seconds) < CANCEL_S


@pytest.mark.slow
def test_killed_daemon_then_killed_run(live: LiveForge, undisturbed: dict[str, torch.Tensor]) -> None:
    first = live.launch("trunk", config=SLOW)
    wait_until_it_trains(live, first, 1)
    second = live.launch("trunk", config=SLOW, tags=RETRIED)  # the same asset, while the first is at it
    live.kill("daemon")
    before = live.instance.get_runs_count()
    assert live.finished(first) == "SUCCESS"
    check_finished(live, first, undisturbed, kills=0)
    assert live.status(second) == "QUEUED"
    assert steps(live, second) == []

    live.start("daemon")
    os.kill(wait_until_it_trains(live, second), signal.SIGKILL)
    assert live.finished(second) == "FAILURE"
    retry = retry_of(live, second)
    assert live.finished(retry) == "SUCCESS"  # it got the slot that the dead one had
    check_finished(live, second, undisturbed, kills=1)
    assert live.instance.get_runs_count() == before + 1
    wait_for(lambda: live.slots_taken() == set(), 60)


@pytest.mark.slow
def test_killed_code_server_leaves_its_run_to_be_cancelled(live: LiveForge) -> None:
    run_id = live.launch("trunk", config={"steps": 2000, "step_s": 0.05})
    pid = wait_until_it_trains(live, run_id)
    live.kill("code")
    wait_until_it_trains(live, run_id)
    live.start("code", "webserver")
    assert live.status(run_id) == "STARTED"
    assert live.terminate(run_id) == "TerminateRunSuccess"
    assert live.finished(run_id) == "CANCELED"
    count = len(steps(live, run_id))
    wait_for(lambda: gone(pid), 60)
    assert len(steps(live, run_id)) == count  # the process ended; it was not only given up by the monitor
    shutil.rmtree(live.store / ".checkpoints")


@pytest.mark.slow
def test_run_killed_together_with_its_code_server(live: LiveForge, undisturbed: dict[str, torch.Tensor]) -> None:
    """As when the container of the code server ends: nobody is left who knows of the run but the daemon."""
    run_id = live.launch("trunk", config=SLOW, tags=RETRIED)
    pid = wait_until_it_trains(live, run_id)
    for process in [*live.kill("code"), pid]:
        if psutil.pid_exists(process):
            os.kill(process, signal.SIGKILL)
    live.start("code")
    assert live.finished(run_id) == "FAILURE"
    retry = retry_of(live, run_id)
    assert live.finished(retry) == "SUCCESS"
    check_finished(live, run_id, undisturbed, kills=1)
    wait_for(lambda: live.slots_taken() == set(), 60)
    own = {process.pid for process in live.processes.values()}
    left = [p for p in live.family() if p.pid not in own and not {q.pid for q in p.parents()} & own]
    psutil.wait_procs(left, timeout=60)  # a server without its proxy ends after its heartbeat
    assert [p for p in left if p.is_running()] == []
