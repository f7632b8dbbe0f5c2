"""The battery that is run before training: it passes the two sandboxes, and each of its probes finds a breach."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import pytest
from typer.testing import CliRunner

from forge_assets.cli.sandbox import app
from forge_resources.sandbox.conformance import PROBES, Bench, Conformance, Finding, probe
from training_core.tasks.sandbox import Limits, Outcome, Program, ProgramVerdict, Sandbox, Status

MUST_WORK = {
    "a program runs", "a failing program fails", "a right candidate passes", "a wrong candidate is wrong",
    "still run after all that",
}  # fmt: skip
# Without a sandbox nothing keeps the programs from trying; the folders of this machine are kept from them all the same.
CONFINED = f"""
import builtins as _b
def open(path, mode="r", *args, _open=_b.open, **named):
    if mode[0] in "aw" and not str(path).startswith({tempfile.gettempdir()!r}):
        raise PermissionError(path)
    return _open(path, mode, *args, **named)
"""


class Opened:
    """The parts of the protocol that a sandbox of these tests does nothing in."""

    name = "for a test"

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        self.close()


class Leaky(Opened):
    """A child process and nothing else; candidate and tests share an interpreter that may print its own verdict."""

    def run(self, program: Program, limits: Limits) -> Outcome:
        start = time.monotonic()
        ended = self._python(CONFINED + program.code, program.stdin)
        status: Status = "error" if ended.returncode else "ok"
        return Outcome(status, ended.stdout, ended.stderr[-300:], time.monotonic() - start)

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        ended = self._python(f"{CONFINED}{candidate}\n{tests}", "")
        forged = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"verdict"')]
        if not ended.returncode or forged:
            return ProgramVerdict("passed", "", 1, 0.1)
        wrong = "AssertionError" in ended.stderr
        return ProgramVerdict("wrong" if wrong else "error", ended.stderr[-300:], 1, 0.1)

    def _python(self, code: str, stdin: str) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+") as err:
            ended = subprocess.run(
                [sys.executable, "-c", code], input=stdin, stdout=out, stderr=err, encoding="utf-8", check=False
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([], ended.returncode, out.read(), err.read())


@dataclass
class Constant(Opened):
    """Says the same to everything."""

    outcome: Outcome
    verdict: ProgramVerdict
    name: str = "for a test"

    def run(self, program: Program, limits: Limits) -> Outcome:
        return self.outcome

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        return self.verdict


def found(sandbox: Sandbox) -> set[str]:
    return {finding.name for finding in probe(sandbox, 0.3).breaches}


def test_the_embedded_sandbox_holds(embedded: Sandbox) -> None:
    result = probe(embedded)
    assert result.breaches == ()
    assert [finding.name for finding in result.findings] == list(PROBES)
    assert result.metrics() == {
        "sandbox_probes": 22.0, "sandbox_breaches": 0.0, "sandbox_probe_seconds": result.seconds,
    }  # fmt: skip
    assert 0.6 < result.seconds < 6  # two programs run into the limit of .3 s; .8 s in all on an idle machine
    assert result.describe().startswith(f"{embedded.name}: 22 of 22 probes held, in ")


@pytest.mark.slow
def test_the_container_sandbox_holds(container: Sandbox) -> None:
    result = probe(container)
    assert result.breaches == ()
    assert result.seconds < 120


def left_behind() -> list[str]:
    """Files under the random names that the programs use, where they try to write."""
    folders = ("/", "/etc", "/usr", "/usr/bin", "/run", "/var", "/var/tmp", "/dev", "/dev/shm", "/home", "/tmp")
    found = [each for folder in folders if Path(folder).is_dir() for each in os.listdir(folder)]
    return [name for name in found if re.fullmatch(r"(forge-probe-)?[0-9a-f]{16}(-\d)?", name)]


@pytest.fixture(scope="module")
def of_the_leaky() -> Conformance:
    files, variables = left_behind(), dict(os.environ)
    result = probe(Leaky(), 0.3)
    assert left_behind() == files
    assert dict(os.environ) == variables
    assert "FORGE_PLANTED_SECRET" not in os.environ
    return result


@pytest.mark.parametrize("name", sorted(set(PROBES) - MUST_WORK))
def test_each_abuse_is_found_where_nothing_holds(of_the_leaky: Conformance, name: str) -> None:
    (breach,) = [finding.breach for finding in of_the_leaky.findings if finding.name == name]
    assert breach
    assert not breach.startswith("not probed")


def test_what_must_work_works_without_a_sandbox(of_the_leaky: Conformance) -> None:
    assert not MUST_WORK & {finding.name for finding in of_the_leaky.breaches}
    assert of_the_leaky.metrics()["sandbox_breaches"] == len(PROBES) - len(MUST_WORK)
    assert of_the_leaky.describe().count("\n") == len(PROBES) - len(MUST_WORK)


def test_a_sandbox_in_which_nothing_works_is_found() -> None:
    for name in ("for a test", "embedded, for a test"):
        dead = Constant(Outcome("unsupported", "", "", 0.1), ProgramVerdict("unsupported", "", 0, 0.1), name)
        assert found(dead) >= MUST_WORK
    dead = Constant(Outcome("unsupported", "", "", 0.1), ProgramVerdict("unsupported", "", 0, 0.1))
    assert found(dead) == set(PROBES) - {"lie about equality"}, "from a container, unsupported is no excuse"


class Denying(Leaky):
    """Lets everything out, and says that nothing was got at."""

    def run(self, program: Program, limits: Limits) -> Outcome:
        return replace(super().run(program, limits), status="ok", stdout="none", error="")


def test_what_the_host_can_see_is_not_left_to_the_program(tmp_path: Path) -> None:
    bench = Bench(Denying(), tmp_path, 0.3)
    assert PROBES["reach the network"](bench) == "it connected to a server of the host"
    assert PROBES["touch files of the host"](bench) == "it changed files of the host"
    assert PROBES["leave a grandchild behind"](bench) == "2 of 2 grandchildren outlived their program"
    time.sleep(0.3)
    running = [p.info for p in psutil.process_iter(["cmdline", "uids"]) if p.info["uids"].real == os.getuid()]
    assert not [info for info in running if "# orphan-" in " ".join(info["cmdline"] or [])], "they were ended"


def test_a_sandbox_that_says_one_thing_to_all_is_found() -> None:
    passing = Constant(Outcome("ok", "none", "", 0.1), ProgramVerdict("passed", "", 1, 0.1))
    assert found(passing) >= MUST_WORK - {"a right candidate passes"} | {
        "end before the tests do",
        "lie about equality",
    }
    failing = Constant(Outcome("error", "", "", 0.1), ProgramVerdict("error", "", 1, 0.1))
    assert found(failing) >= {"a program runs", "a right candidate passes", "a wrong candidate is wrong"}
    slow = Constant(Outcome("timeout", "", "", 9.0), ProgramVerdict("timeout", "", 1, 0.1))
    assert "run without end" in found(slow)


@pytest.mark.parametrize(
    ("outcome", "limits", "breach"),
    [
        (Outcome("output_limit", "x" * 101, "", 0.1), Limits(output_bytes=100), "101 bytes of output came through"),
        (Outcome("output_limit", "x" * 100, "", 0.1), Limits(output_bytes=100), ""),
        (Outcome("output_limit", "survived", "", 0.1), Limits(), "it ran on for 0.1 s"),
        (Outcome("output_limit", "", "", 3.1), Limits(seconds=1), "it ran on for 3.1 s, 1 were allowed"),
        (Outcome("memory", "", "", 0.1), Limits(), "it ended as memory, not as output_limit"),
    ],
)
def test_the_right_status_alone_does_not_hold(outcome: Outcome, limits: Limits, breach: str, tmp_path: Path) -> None:
    bench = Bench(Constant(outcome, ProgramVerdict("error", "", 1, 0.1)), tmp_path, 0.3)
    said = bench.ends_as("", "output_limit", limits)
    assert said.startswith(breach)
    assert bool(said) == bool(breach)


def test_a_breach_is_said_in_words() -> None:
    result = Conformance("a sandbox", (Finding("one", ""), Finding("two", "it got at x")), 1.25)
    assert result.describe() == "a sandbox: 1 of 2 probes held, in 1.2 s\n  two: it got at x"
    assert result.metrics() == {"sandbox_probes": 2.0, "sandbox_breaches": 1.0, "sandbox_probe_seconds": 1.25}


def test_status_probes_when_asked() -> None:
    ran = CliRunner().invoke(app, ["status", "--probe"])
    assert ran.exit_code == 0
    assert "22 of 22 probes held" in ran.stdout.splitlines()[-1]
