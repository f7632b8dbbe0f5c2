"""A run whose terminal lacks characters, is closed or is a full disk goes on, and shows what it can."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from forge_resources.model_store import ModelStore

DRIVER = Path(__file__).with_name("drive_tiny_run.py")
ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("terminal", ["ascii", "closed", "full"])
def test_terminal_does_not_end_a_run(instance: dg.DagsterInstance, store: ModelStore, terminal: str) -> None:
    command = [sys.executable, str(DRIVER), "{}", "tiny_forge", "trunk", "left"]
    reading, writing = os.pipe()
    if terminal != "ascii":
        os.close(reading)
    if terminal == "full":
        os.close(writing)
        writing = os.open("/dev/full", os.O_WRONLY)
    environment = {**os.environ, **(ASCII if terminal == "ascii" else {})}
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=writing, check=True)
    os.close(writing)
    outcome = json.loads(process.stdout)
    assert (outcome["made"], outcome["problems"]) == (["trunk", "left"], [])
    assert [len(store.versions(name)) for name in ("trunk", "left")] == [1, 1]
    if terminal == "ascii":
        with os.fdopen(reading, "rb") as stream:
            shown = stream.read()
        assert b"  + trunk " in shown
        assert b"trunk: gate passed" in shown


WAITING = """
import time
from forge_assets.cli import app
from forge_assets.cli.common import errors

@app.command()
def wait() -> None:
    with errors():
        print("waiting \\u2713", flush=True)
        time.sleep(60)

app(["wait"])
"""


def as_a_script_starts_jobs() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_commands_hear_signals_although_sigint_is_ignored(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env={**os.environ, **ASCII, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=as_a_script_starts_jobs,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"waiting +\n"
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"Interrupted; run again to continue.\n")
