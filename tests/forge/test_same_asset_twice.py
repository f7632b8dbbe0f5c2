"""Two runs of one asset at the same time, whatever started them: the second waits for the first."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import live_forge
from live_services import wait_for

from forge_resources.model_store import ModelStore
from training_core.store.bundle import open_bundle

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import dagster as dg, live_forge
from dagster._core.storage.tags import ROOT_RUN_ID_TAG
asset, config = sys.argv[1], json.loads(sys.argv[2])
with dg.DagsterInstance.get() as instance:
    job = live_forge.defs.resolve_implicit_global_asset_job_def()
    ops = {asset: {"config": config}}
    result = job.execute_in_process({"ops": ops}, instance, asset_selection=[dg.AssetKey(asset)], raise_on_error=False)
sys.exit(not result.success)
"""


@contextmanager
def two_processes(asset: str, store: ModelStore, steps: int) -> Iterator[tuple[int, int]]:
    """Two processes that materialize an asset without a queue: the one that is held at its first step, and the other.

    Afterwards they are let go, and both must end well.
    """
    store.path.mkdir(parents=True, exist_ok=True)
    hold = store.path / live_forge.HOLD
    hold.write_text("0")
    command = [sys.executable, "-c", SCRIPT, asset, json.dumps({"steps": steps})]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as one, subprocess.Popen(command, **quiet) as another:
        try:
            wait_for(lambda: diary(store), 120)
            ids = {one.pid, another.pid}
            first = diary(store)[0][0]
            yield first, (ids - {first}).pop()
            assert diary(store) == [(first, 0)]
            hold.unlink()
            assert [process.wait(120) for process in (one, another)] == [0, 0]
        finally:
            hold.unlink(missing_ok=True)
            one.kill()
            another.kill()


def diary(store: ModelStore) -> list[tuple[int, int]]:
    """Process and step, in order."""
    path = store.path / live_forge.DIARY
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(process), int(step)) for _, step, process in lines]


def logged(instance: dg.DagsterInstance, text: str) -> bool:
    runs = instance.get_runs()
    return any(text in entry.user_message for run in runs for entry in instance.all_logs(run.run_id))


def test_data_is_made_by_one_process_at_a_time(instance: dg.DagsterInstance, store: ModelStore) -> None:
    with two_processes("notes", store, steps=2) as (first, second):
        wait_for(lambda: logged(instance, f"in process {first}: waiting until that ends"), 120)
    assert logged(instance, "notes is being made by run ")
    assert diary(store) == [(process, step) for process in (first, second) for step in range(2)]
    assert len(store.versions("notes")) == 1
    assert list((store.path / ".staging").iterdir()) == []


def test_model_whose_slot_was_given_away_is_still_trained_by_one_process(
    instance: dg.DagsterInstance, store: ModelStore
) -> None:
    """The monitor frees the slot of a run that it believes dead; the next one must not join a run that is not."""
    slots = instance.event_log_storage
    with two_processes("trunk", store, steps=5) as (first, second):
        wait_for(lambda: len(slots.get_concurrency_run_ids()) == 2, 120)
        (key,) = slots.get_concurrency_keys()
        for slot in slots.get_concurrency_info(key).claimed_slots:
            slots.free_concurrency_slots_for_run(slot.run_id)
        wait_for(lambda: logged(instance, f"in process {first}: waiting until that ends"), 120)
    assert logged(instance, "trunk is being made by run ")
    assert diary(store) == [(process, step) for process in (first, second) for step in range(5)]
    (folder,) = store.versions("trunk")
    assert open_bundle(folder, expected_digest=open_bundle(folder).lineage().digest).kind == "cognate"
    assert list((store.path / ".checkpoints").iterdir()) == []
