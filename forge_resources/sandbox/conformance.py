"""Conformance probe of a sandbox on this machine: runs a fixed set of hostile programs and reports every breach.

A phase that runs model-written code probes its sandbox first, because the isolation depends on the engine, the kernel
and the image of this machine. Where the host can observe the effect itself, it does not rely on the program's output:
whether a connection came in, a file was touched, a process is alive. The probe also detects a sandbox in which nothing
works, and one that judges everything, or nothing, as "passed".

No probe harms a host whose sandbox fails (`forge_resources.sandbox.abuses`).

An abuse that the embedded interpreter cannot express ("unsupported") was not committed, and counts as held. For a
container this is accepted in only one case: a candidate returns an object that would answer a comparison itself, and
the comparison is refused.

**Does not cover**: escapes through errors of the kernel or of the interpreter; a process that left a sandbox on another
machine or in a virtual one, which this host cannot see.
"""

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from forge_resources.sandbox import abuses
from training_core.tasks.sandbox import Limits, Program, Sandbox

_MEMORY_BYTES = 64 << 20
_OUTPUT_BYTES = 4000
_PROCESSES = 16
_EXCESS = 4  # factor by which an abuse exceeds its limit
_LONGEST_BREACH = 300
_SHORTEST_SECRET = 16  # characters; shorter values of variables could appear in output by chance
_PLANTED = ("FORGE_PLANTED_SECRET", "HTTP_PROXY", "https_proxy")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one abuse, or of one function that must work; `breach` is empty if the sandbox held."""

    name: str
    breach: str


@dataclass(frozen=True, slots=True)
class Conformance:
    """The findings of all probes of a sandbox, with its name and the wall time in seconds."""

    sandbox: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def breaches(self) -> tuple[Finding, ...]:
        """The findings in which the sandbox did not hold."""
        return tuple(finding for finding in self.findings if finding.breach)

    def metrics(self) -> dict[str, float]:
        """Return the flat metrics for a bundle."""
        return {
            "sandbox_probes": float(len(self.findings)),
            "sandbox_breaches": float(len(self.breaches)),
            "sandbox_probe_seconds": self.seconds,
        }

    def describe(self) -> str:
        """Return a summary line, followed by one line for each breach."""
        held = len(self.findings) - len(self.breaches)
        lines = [f"{self.sandbox}: {held} of {len(self.findings)} probes held, in {self.seconds:.1f} s"]
        return "\n".join(lines + [f"  {each.name}: {each.breach}" for each in self.breaches])


def probe(sandbox: Sandbox, time_limit_s: float | None = None) -> Conformance:
    """Run all probes: about a second in the embedded sandbox, at most a minute in containers.

    time_limit_s: the limit of the programs that must run into it; default .3 for the embedded sandbox, else 2, which
        is enough for a container's interpreter to start.

    Raises:
        SandboxUnavailableError: when the isolation itself fails.
    """
    start = time.monotonic()
    limit_s = time_limit_s if time_limit_s is not None else 0.3 if _is_embedded(sandbox) else 2.0
    with tempfile.TemporaryDirectory(prefix="forge-probe-") as folder:
        Path(folder).chmod(0o755)
        bench = Bench(sandbox, Path(folder), limit_s)
        findings = tuple(Finding(name, " ".join(run(bench).split())[:_LONGEST_BREACH]) for name, run in PROBES.items())
    return Conformance(sandbox.name, findings, time.monotonic() - start)


@dataclass(frozen=True, slots=True)
class Bench:
    """The sandbox being probed, a folder of the host for bait files, and the short time limit in seconds."""

    sandbox: Sandbox
    folder: Path
    time_limit_s: float

    def limits(self, seconds: float = 10.0, output_bytes: int = _OUTPUT_BYTES) -> Limits:
        """Return tight limits, with enough time for a program that ends by itself."""
        return Limits(seconds, _MEMORY_BYTES, output_bytes, _PROCESSES)

    def held_back(self, status: str) -> bool:
        """Return whether the sandbox cannot express the program at all, which only the embedded one may."""
        return status == "unsupported" and _is_embedded(self.sandbox)

    def got_at(self, code: str) -> str:
        """Return the breach reported by a program that prints what it reached, or "none"."""
        outcome = self.sandbox.run(Program(code), self.limits(output_bytes=_OUTPUT_BYTES * 10))
        if self.held_back(outcome.status):
            return ""
        if outcome.status != "ok":
            return f"not probed: the program ended as {outcome.status}, {outcome.error}"
        return "" if outcome.stdout.strip() == "none" else f"it got at {outcome.stdout.strip()}"

    def reveals(self, code: str, wanted: Mapping[str, str]) -> str:
        """Return the breach that a program printed any of the `wanted` texts (name -> text), however it ended."""
        outcome = self.sandbox.run(Program(code), self.limits(output_bytes=1 << 20))
        if outcome.status not in ("ok", "error") and not self.held_back(outcome.status):
            return f"not probed: the program ended as {outcome.status}, {outcome.error}"
        seen = [name for name, text in wanted.items() if text in outcome.stdout + outcome.error]
        return f"it read {', '.join(seen)}" if seen else ""

    def resists(self, cheat: str, *expected: str, tests: str = abuses.TESTS) -> str:
        """Return the breach of a cheating candidate, as `judged`; the embedded sandbox may be unable to express it."""
        return self.judged(cheat, tests, *expected, *(("unsupported",) if _is_embedded(self.sandbox) else ()))

    def ends_as(self, code: str, status: str, limits: Limits) -> str:
        """Return the breach that a program did not end with `status`, or exceeded its limits."""
        outcome = self.sandbox.run(Program(code), limits)
        if self.held_back(outcome.status):
            return ""
        if outcome.status != status:
            return f"it ended as {outcome.status}, not as {status}: {outcome.stdout[:60]!r} {outcome.error}"
        if (size := len(outcome.stdout.encode())) > limits.output_bytes:
            return f"{size} bytes of output came through, {limits.output_bytes} were allowed"
        if "survived" in outcome.stdout or outcome.seconds > 2 * limits.seconds + 1:
            return f"it ran on for {outcome.seconds:.1f} s, {limits.seconds} were allowed"
        return ""

    def judged(self, candidate: str, tests: str, *expected: str) -> str:
        """Return the breach that a candidate's verdict is none of the `expected` ones."""
        verdict = self.sandbox.check(candidate, tests, self.limits())
        if verdict.status in expected:
            return ""
        return f"judged {verdict.status}, not {' or '.join(expected)}: {verdict.detail}"


def _is_embedded(sandbox: Sandbox) -> bool:
    return sandbox.name.startswith("embedded")


def _first(breaches: Iterator[str]) -> str:
    return next((breach for breach in breaches if breach), "")


def _runs(bench: Bench) -> str:
    program = Program("name = input()\nprint('Grüße,', name)\nprint(2**100)", "Ada\nrest")
    outcome = bench.sandbox.run(program, bench.limits())
    right = (outcome.status, outcome.stdout) == ("ok", f"Grüße, Ada\n{2**100}\n")
    return "" if right else f"it ended as {outcome.status}: {outcome.stdout[:60]!r} {outcome.error}"


def _fails(bench: Bench) -> str:
    outcome = bench.sandbox.run(Program("print('before')\n1/0"), bench.limits())
    right = (outcome.status, outcome.stdout) == ("error", "before\n") and "ZeroDivisionError" in outcome.error
    return "" if right else f"it ended as {outcome.status}: {outcome.stdout[:60]!r} {outcome.error}"


def _passes(bench: Bench) -> str:
    return bench.judged(abuses.ADD, abuses.TESTS, "passed")


def _is_wrong(bench: Bench) -> str:
    return _first(
        bench.judged(wrong, abuses.TESTS, "wrong") for wrong in (abuses.SUBTRACT, abuses.FIVE)
    ) or bench.judged("def other(): pass", abuses.TESTS, "error")


def _network(bench: Bench) -> str:
    with socket.create_server(("", 0)) as server:
        server.setblocking(False)
        hosts = ["127.0.0.1", "169.254.169.254", *own_addresses()]
        breach = bench.got_at(abuses.network(hosts, server.getsockname()[1]))
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return breach
        return "it connected to a server of the host"


def own_addresses() -> list[str]:
    """Return the IPv4 addresses of this host, except the loopback."""
    addresses = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    return [address for address in addresses if not address.startswith("127.")]


@contextmanager
def _bait(folder: Path) -> Iterator[tuple[str, str]]:
    """Create a bait file on the host; yield its path and the secret word in it."""
    path, word = folder / "secret.txt", secrets.token_hex(16)
    path.write_text(word)
    yield str(path), word
    path.unlink(missing_ok=True)


def _files(bench: Bench) -> str:
    sockets = ["/var/run/docker.sock", os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or "/run/none"]
    with _bait(bench.folder) as (path, word):
        reading = (f"print(open({path!r}).read())", f"from pathlib import Path\nprint(Path({path!r}).read_text())")
        breach = _first(bench.reveals(code, {"a file of the host": word}) for code in reading)
        listing = f"import os\nprint(os.listdir({str(bench.folder)!r}))"
        breach = breach or bench.reveals(listing, {"the names in a folder of the host": Path(path).name})
        breach = breach or bench.got_at(abuses.host_files(path, sockets, secrets.token_hex(8)))
        for code in (f"open({path!r}, 'w').write('x')", f"from pathlib import Path\nPath({path!r}).write_text('x')"):
            bench.sandbox.run(Program(code), bench.limits())
        left = {each.name: each.read_text() for each in bench.folder.iterdir()}
        return breach or ("" if left == {"secret.txt": word} else "it changed files of the host")


def _links(bench: Bench) -> str:
    with _bait(bench.folder) as (path, _):
        return bench.got_at(abuses.links(path, secrets.token_hex(8)))


def _variables(bench: Bench) -> str:
    word = secrets.token_hex(16)
    before = {name: os.environ.get(name) for name in _PLANTED}
    os.environ.update(dict.fromkeys(_PLANTED, f"http://{word}:1"))
    try:
        wanted = {k: v for k, v in os.environ.items() if len(v) >= _SHORTEST_SECRET and k != "PATH"}
        reading = [abuses.VARIABLES]
        reading += [f"import os\nprint(os.getenv({name!r}), os.environ[{name!r}])" for name in (*_PLANTED[:1], "PWD")]
        return _first(bench.reveals(code, wanted | {"a planted secret": word}) for code in reading)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _counted(bench: Bench, code: str) -> str:
    """The breach of a program that prints how many processes or threads it had at once."""
    outcome = bench.sandbox.run(Program(code), bench.limits())
    if bench.held_back(outcome.status):
        return ""
    if outcome.status != "ok" or not outcome.stdout.strip().isdecimal():
        return f"not probed: the program ended as {outcome.status}, {outcome.error}"
    number = int(outcome.stdout)
    return "" if number < _PROCESSES else f"{number} were started, of {_PROCESSES} allowed"


def _processes(bench: Bench) -> str:
    return _counted(bench, abuses.forks(_EXCESS * _PROCESSES))


def _threads(bench: Bench) -> str:
    return _counted(bench, abuses.threads(_EXCESS * _PROCESSES))


def _memory(bench: Bench) -> str:
    programs = abuses.memory(_EXCESS * _MEMORY_BYTES)
    return _first(bench.ends_as(code, "memory", bench.limits()) for code in programs)


def _output(bench: Bench) -> str:
    lines = _EXCESS * _OUTPUT_BYTES // 1000
    floods = (abuses.flood(stream, lines) for stream in ("stdout", "stderr"))
    return _first(bench.ends_as(code, "output_limit", bench.limits()) for code in floods)


def _time(bench: Bench) -> str:
    limits = bench.limits(bench.time_limit_s)
    programs = (abuses.waiting(pause, 3 * bench.time_limit_s) for pause in ("pass", "time.sleep(0.05)"))
    return _first(bench.ends_as(code, "timeout", limits) for code in programs)


def _signals(bench: Bench) -> str:
    return bench.ends_as(abuses.deaf(3 * bench.time_limit_s), "timeout", bench.limits(bench.time_limit_s))


def _orphans(bench: Bench) -> str:
    survivors = 0
    for parent in ("os._exit(0)", "time.sleep(0.5)"):
        mark = f"orphan-{secrets.token_hex(8)}"
        outcome = bench.sandbox.run(
            Program(abuses.orphan(mark, parent, 20)), bench.limits(max(1.0, bench.time_limit_s))
        )
        if outcome.status not in ("ok", "timeout") and not bench.held_back(outcome.status):
            return f"not probed: the program ended as {outcome.status}, {outcome.error}"
        if bench.held_back(outcome.status):
            continue
        time.sleep(0.3)
        for process in psutil.process_iter(["cmdline"]):
            if mark in " ".join(process.info["cmdline"] or []):
                survivors += 1
                process.kill()
    return f"{survivors} of 2 grandchildren outlived their program" if survivors else ""


def _kept_state(bench: Bench) -> str:
    word, path = secrets.token_hex(16), f"/tmp/forge-probe-{secrets.token_hex(8)}"
    leaving = (f"import math\nkept = {word!r}\nmath.kept = {word!r}", f"open({path!r}, 'w').write({word!r})")
    for code in leaving:
        bench.sandbox.run(Program(code), bench.limits())
    taking = f"import os\nprint(open({path!r}).read())\nos.remove({path!r})"
    finding = ("print(kept)", "import math\nprint(math.kept)", taking)
    return _first(bench.reveals(code, {"what another program left": word}) for code in finding)


def _early_ends(bench: Bench) -> str:
    return _first(bench.resists(code, "error") for code in abuses.EARLY_ENDS.values())


def _patches(bench: Bench) -> str:
    patched = (patch + abuses.FIVE for patch in abuses.PATCHES.values())
    return _first(bench.resists(code, "wrong", "error", tests=abuses.PATCHABLE_TESTS) for code in patched)


def _liars(bench: Bench) -> str:
    return _first(bench.resists(code, "wrong", "unsupported") for code in abuses.LIARS.values())


def _forgers(bench: Bench) -> str:
    return _first(bench.resists(code, "wrong", "error") for code in abuses.FORGERS.values())


def _tests_read(bench: Bench) -> str:
    candidate, tests = abuses.looking(secrets.token_hex(16))
    if _is_embedded(bench.sandbox):  # it has no frames, no gc and no globals() to look into
        candidate = "def look(x):\n    return 'look here' + repr(x)"
    return bench.judged(candidate, tests, "passed")


PROBES: Mapping[str, Callable[[Bench], str]] = {
    "a program runs": _runs,
    "a failing program fails": _fails,
    "a right candidate passes": _passes,
    "a wrong candidate is wrong": _is_wrong,
    "reach the network": _network,
    "touch files of the host": _files,
    "follow links out": _links,
    "read variables of the host": _variables,
    "start processes without end": _processes,
    "start threads without end": _threads,
    "take memory without end": _memory,
    "print without end": _output,
    "run without end": _time,
    "ignore signals": _signals,
    "leave a grandchild behind": _orphans,
    "leave something to the next program": _kept_state,
    "end before the tests do": _early_ends,
    "patch what judges": _patches,
    "lie about equality": _liars,
    "forge a verdict": _forgers,
    "read the tests": _tests_read,
    "still run after all that": _runs,
}
