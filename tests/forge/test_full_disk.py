"""No room while a model is trained or saved: earlier versions stay readable, and the run goes on once there is room."""

import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import live_forge
import pytest
import torch
from live_services import wait_for
from rich.console import Console

from forge_assets.freshness import plan, resolve_config
from forge_assets.graph_view import Forge
from forge_assets.run_graph import RunOutcome, execute
from forge_resources.model_store import ModelStore
from training_core.store.bundle import open_bundle

DRIVER = Path(__file__).with_name("drive_tiny_run.py")
ROOM = 2_000_000  # bytes a file may have: more than Dagster's databases need here


def run(forge: Forge, config: dict[str, Any]) -> tuple[RunOutcome, str]:
    configs, text = resolve_config(forge, {"trunk": config}), io.StringIO()
    steps = plan(forge, configs, select=["trunk"])
    return execute(forge, steps, configs, Console(file=text, width=200)), text.getvalue()


def run_until_full(config: dict[str, Any], store: ModelStore) -> dict[str, Any]:
    """What `forge run` does in a process of its own, for which large files become impossible once it trains."""
    command = [sys.executable, str(DRIVER), json.dumps({"trunk": config}), "live_forge", "trunk"]
    diary, hold = store.path / live_forge.DIARY, store.path / live_forge.HOLD
    before = len(diary.read_text().splitlines())
    hold.write_text("3")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        wait_for(lambda: len(diary.read_text().splitlines()) == before + 4, 120)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (ROOM, ROOM))
        hold.unlink()
        out, _ = process.communicate(timeout=120)
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "resumed"),
    [
        pytest.param({"steps": 6, "width": 384}, 3, id="resume point"),
        pytest.param({"steps": 6, "ballast": ROOM}, 6, id="finished model"),
    ],
)
def test_no_room(instance: dg.DagsterInstance, store: ModelStore, config: dict[str, Any], resumed: int) -> None:
    forge = Forge(live_forge.defs, instance, store, live_forge.GATES)
    assert run(forge, {"steps": 1})[0].problems == []
    (earlier,) = store.versions("trunk")
    before = {file.name: file.read_bytes() for file in earlier.iterdir()}

    full = run_until_full(config, store)
    assert len(full["problems"]) == 1
    assert "no room" in full["problems"][0]
    assert "free some space" in full["problems"][0]
    tried_again = {dg.DagsterEventType.STEP_UP_FOR_RETRY}
    assert list(instance.all_logs(full["run_id"], of_type=tried_again)) == []
    assert store.versions("trunk") == [earlier]
    assert {file.name: file.read_bytes() for file in earlier.iterdir()} == before
    assert list((store.path / ".staging").iterdir()) == []
    assert list(instance.event_log_storage.get_concurrency_run_ids()) == []

    outcome, text = run(forge, config)
    assert outcome.problems == []
    assert f"Going on from the checkpoint of run {full['run_id'][:8]}" in text
    newest = open_bundle(store.versions("trunk")[-1])
    assert newest.lineage().metrics["steps_resumed"] == resumed
    peace = live_forge.LiveConfig(**config)
    (store.path / ".checkpoints" / "peace").mkdir()
    undisturbed = live_forge.PhaseContext(checkpoint=store.path / ".checkpoints" / "peace")
    expected = live_forge.learn(undisturbed, peace).tensors
    assert expected is not None
    tensors = newest.tensors()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
