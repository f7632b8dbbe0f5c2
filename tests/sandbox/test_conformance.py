"""What every sandbox must hold. Each abuse fails inside, leaves the host as it was, and ends in time.

A program that the embedded interpreter cannot even express ("unsupported") has not done the abuse either; where that
is the expected end the test says so, and never accepts it from the container.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from forge_resources.sandbox import abuses
from forge_resources.sandbox.conformance import own_addresses
from training_core.tasks.sandbox import MAX_SOURCE_BYTES, Limits, Outcome, Program, Sandbox

LIMITS = Limits(seconds=3.0, memory_bytes=64 << 20, output_bytes=4000, processes=16)
BRIEF = Limits(seconds=1.0, memory_bytes=64 << 20, output_bytes=4000, processes=16)
MARGIN_S = 12.0  # the engine's own time, on a busy machine


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 3 * LIMITS.seconds + MARGIN_S


def report(sandbox: Sandbox, code: str) -> str:
    """What a program prints that collects its successes; an embedded interpreter may lack the means altogether."""
    outcome = sandbox.run(Program(code), LIMITS)
    if sandbox.name.startswith("embedded") and outcome.status == "unsupported":
        return "none"
    assert outcome.status == "ok", outcome
    return outcome.stdout.strip()


# --- what must work


def test_a_program_prints_and_reads(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("name = input()\nprint('Grüße,', name)\nprint(2**100)", "Ada\nrest"), LIMITS)
    assert (outcome.status, outcome.stdout, outcome.error) == ("ok", f"Grüße, Ada\n{2**100}\n", "")
    assert 0 < outcome.seconds < LIMITS.seconds


def test_a_program_that_raises_is_an_error(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program("print('before')\n1/0"), LIMITS)
    assert (outcome.status, outcome.stdout) == ("error", "before\n")
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert sandbox.run(Program("def f(:"), LIMITS).status == "error"
    assert sandbox.run(Program("import no_such_module"), LIMITS).status == "error"


def test_what_is_no_program_is_refused(sandbox: Sandbox) -> None:
    assert sandbox.run(Program("\ud800"), LIMITS) == Outcome(
        "refused", "", "the source is not text: it holds half of a surrogate pair", 0.0
    )
    assert sandbox.run(Program("#" * (MAX_SOURCE_BYTES + 1)), LIMITS).status == "refused"
    assert sandbox.check("#" * (MAX_SOURCE_BYTES + 1), "f()", LIMITS).status == "refused"


def test_programs_do_not_see_each_other(sandbox: Sandbox) -> None:
    assert sandbox.run(Program("import math\nkept = 3\nmath.pi = 3"), LIMITS).status in ("ok", "error")
    assert sandbox.run(Program("print(kept)"), LIMITS).error.startswith("NameError")
    assert sandbox.run(Program("import math\nprint(math.pi)"), LIMITS).stdout == "3.141592653589793\n"


# --- the network


def test_nothing_is_reached_over_the_network(sandbox: Sandbox) -> None:
    with socket.create_server(("", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        hosts = ["127.0.0.1", "169.254.169.254", *own_addresses()]
        assert report(sandbox, abuses.network(hosts, port)) == "none"
        with pytest.raises(TimeoutError):
            server.accept()


# --- files and variables of the host


def test_no_file_of_the_host_is_read_written_or_linked_to(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the host's")
    tmp_path.chmod(0o755)
    sockets = ["/var/run/docker.sock", os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or "/run/none"]
    nonce = secrets.token_hex(8)
    assert report(sandbox, abuses.host_files(str(secret), sockets, nonce)) == "none"
    assert report(sandbox, abuses.links(str(secret), nonce)) == "none"
    assert secret.read_text() == "the host's"
    assert list(tmp_path.iterdir()) == [secret]


@pytest.mark.parametrize("mode", ["r", "w"])
def test_open_is_denied(sandbox: Sandbox, tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").write_text("the host's")
    outcome = sandbox.run(Program(f"open({str(tmp_path / 'file')!r}, {mode!r})"), LIMITS)
    assert outcome.status == "error"
    assert outcome.error.split(":")[0] in ("FileNotFoundError", "PermissionError", "OSError")
    assert (tmp_path / "file").read_text() == "the host's"


def test_no_variable_of_the_host_is_seen(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(8)
    for name in ("FORGE_SECRET", "HTTP_PROXY", "https_proxy", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"http://{secret}:1")
    seen = report(sandbox, abuses.VARIABLES)
    assert secret not in seen
    assert "proxy" not in seen.lower()


# --- resources


def test_a_fork_bomb_stops_at_the_limit(sandbox: Sandbox) -> None:
    code = """
import os, time
children = 0
while children < 200:
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError:
        break
    children += 1
print(children)
"""
    seen = report(sandbox, code)
    assert seen == "none" or 1 <= int(seen) < LIMITS.processes
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    outcome = sandbox.run(Program(bomb), BRIEF)
    assert outcome.status in ("timeout", "memory", "unsupported")
    assert sandbox.run(Program("print(1)"), LIMITS).stdout == "1\n"


@pytest.mark.parametrize("code", ["x = 'a' * 10**9", "x = []\nwhile True:\n    x.append('a' * 100_000 + str(len(x)))"])
def test_memory_is_limited(sandbox: Sandbox, code: str) -> None:
    assert sandbox.run(Program(code), LIMITS).status == "memory"


def test_more_memory_may_be_given(sandbox: Sandbox) -> None:
    code = "x = 'a' * (100 << 20)\nprint(len(x) >> 20)"
    assert sandbox.run(Program(code), Limits(seconds=5, memory_bytes=256 << 20)).stdout == "100\n"


@pytest.mark.parametrize("line", ["print('x' * 1000)", "print('x' * 1000, file=sys.stderr)"])
def test_a_flood_of_output_is_cut(sandbox: Sandbox, line: str) -> None:
    outcome = sandbox.run(Program(f"import sys\nprint('first')\nwhile True:\n    {line}"), LIMITS)
    assert outcome.status == "output_limit"
    assert outcome.stdout.startswith("first\n")
    assert len(outcome.stdout.encode()) <= LIMITS.output_bytes


def test_output_up_to_the_limit_is_kept(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Program(f"print('x' * {LIMITS.output_bytes - 1})"), LIMITS)
    assert outcome.status == "ok"
    assert len(outcome.stdout) == LIMITS.output_bytes


@pytest.mark.parametrize("wait", ["pass", "time.sleep(0.2)", "time.sleep(9)"])
def test_time_is_limited(sandbox: Sandbox, wait: str) -> None:
    outcome = sandbox.run(Program(f"import time\nwhile True:\n    {wait}"), BRIEF)
    assert outcome.status == "timeout"
    assert outcome.seconds < 2 * BRIEF.seconds + 1


def test_time_is_limited_for_one_that_ignores_signals(sandbox: Sandbox) -> None:
    code = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
print("deaf", flush=True)
while True:
    try:
        time.sleep(1)
    except BaseException:
        pass
"""
    outcome = sandbox.run(Program(code), BRIEF)
    assert outcome.status in ("timeout", "unsupported")
    assert outcome.stdout == ("deaf\n" if outcome.status == "timeout" else "")


@pytest.mark.parametrize("parent", ["os._exit(0)", "time.sleep(60)"])
def test_no_grandchild_survives(sandbox: Sandbox, parent: str) -> None:
    mark = f"orphan-{secrets.token_hex(8)}"
    code = f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/usr/bin/python3", ["python3", "-c", "import time; time.sleep(300)  # {mark}"])
    os._exit(0)
time.sleep(0.2)
{parent}
"""
    outcome = sandbox.run(Program(code), BRIEF)
    assert outcome.status in ("ok", "timeout", "unsupported")
    time.sleep(0.3)
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]
