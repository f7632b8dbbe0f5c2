"""Terminals that lack characters or are gone, and processes that were started with their signals ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training_core.terminal import FALLBACK

ASCII = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
PREPARED = "import os, signal, sys, time\nfrom training_core.terminal import prepare_process\nprepare_process()\n"


def started(code: str, **options: Any) -> subprocess.Popen[bytes]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", PREPARED + code], **{**pipes, **options})


def test_marks_have_ascii_forms() -> None:
    assert "✓ 3 ≥ 2 → grün…".encode("ascii", FALLBACK) == b"+ 3 >= 2 -> gr?n..."
    assert "✓ grün".encode("latin-1", FALLBACK) == b"+ gr\xfcn"
    assert "\udce9".encode("utf-8", FALLBACK) == b"?"


def test_terminal_without_the_characters() -> None:
    code = "print('\\u2713 gr\\xfcn')\nprint('\\u2717', file=sys.stderr)\nsys.stdout.buffer.write('\\u2713'.encode())"
    with started(code, env={**os.environ, **ASCII}) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"+ gr?n\n\xe2\x9c\x93", b"x\n")


def test_reader_that_is_gone_does_not_end_the_work(tmp_path: Path) -> None:
    code = "for n in range(3000): print('x' * 100); print('y' * 100, file=sys.stderr)\nopen('done', 'w').close()"
    with started(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


def test_results_that_the_disk_does_not_take_are_an_error() -> None:
    with Path("/dev/full").open("w") as full, started("print('a result', flush=True)", stdout=full) as process:
        _, err = process.communicate()
    assert process.returncode != 0
    assert b"No space left" in err


def test_progress_that_the_disk_does_not_take_is_dropped() -> None:
    code = "from training_core.terminal import own_stream\nprint('progress', file=own_stream(1), flush=True)"
    with Path("/dev/full").open("w") as full, started(code, stdout=full) as process:
        _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")


def test_closed_stream_is_not_given_to_the_next_file(tmp_path: Path) -> None:
    code = f"number = os.open({str(tmp_path / 'database')!r}, os.O_CREAT | os.O_WRONLY)\nprint(number)"
    command = [sys.executable, "-c", PREPARED + code]
    closing = subprocess.run(["bash", "-c", '"$@" 2>&-', "bash", *command], capture_output=True, check=True)
    assert int(closing.stdout) > 2


@pytest.mark.parametrize(
    ("number", "ignored", "status"),
    [
        (signal.SIGINT, signal.SIGINT, 130),  # as a script starts a background job
        (signal.SIGHUP, signal.SIGINT, 130),
        (signal.SIGHUP, signal.SIGHUP, 0),  # nohup
    ],
)
def test_signals_are_heard_however_the_process_was_started(
    number: signal.Signals, ignored: signal.Signals, status: int
) -> None:
    code = "try:\n  print('ready', flush=True)\n  time.sleep(60)\n"
    code += "except KeyboardInterrupt:\n  sys.exit(130)"

    def as_started() -> None:  # whatever the tests themselves were started with
        for each in (signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN if each == ignored else signal.SIG_DFL)

    with started(code, preexec_fn=as_started) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            if status == 0:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
            else:
                assert process.wait(timeout=30) == status
        finally:
            process.kill()


def test_core_is_interrupted_although_sigint_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "training_core", "trunk", "--sandbox", "slow:open"]
    command += ["--out", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "state")]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == b"training_core: interrupted; run the same command again to continue\n"


def test_bundle_is_written_in_utf_8(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom training_core.store.bundle import write_bundle\nfrom pathlib import Path\n"
        f"write_bundle(Path({str(tmp_path / 'bundle')!r}), kind='cognate', model_config={{}}, "
        "tensors={'w': torch.zeros(1)}, tokenizer_json='{\"\\u0120\": 0}')\n"
    )
    with started(code, env={**os.environ, **ASCII}) as process:
        _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert (tmp_path / "bundle" / "tokenizer.json").read_bytes() == '{"Ġ": 0}'.encode()
