"""The interface between the phases and a sandbox for model-written programs, independent of any container engine.

A phase takes a `Sandbox` as an argument and never runs a program itself. The interface has two operations:

* `run` executes one program and returns its output; it answers tool calls.
* `check` judges a candidate by hidden tests. The candidate never shares an interpreter with the tests: it receives the
  arguments of the tests' calls, one call at a time, and nothing else, and its return values are copied as data. It can
  therefore neither read the tests, nor patch the judge, nor end the judging early, nor print a verdict.

Does not cover: tests that are too weak. A candidate that computes wrong answers which the tests accept passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

Status = Literal["ok", "error", "timeout", "memory", "output_limit", "unsupported", "refused"]
Judgement = Literal["passed", "wrong", "error", "timeout", "memory", "output_limit", "unsupported", "refused"]

MAX_SOURCE_BYTES = 1 << 18
MAX_STDIN_BYTES = 8 << 20  # room for a whole package and its tests


class SandboxUnavailableError(ValueError):
    """Isolation is unavailable or was lost, and nothing was judged. Programs never run on the host instead."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one program.

    seconds: wall time; in a container this includes the interpreter's start, some tenths of a second.
    memory_bytes: total memory of the program and its children.
    output_bytes: output on both streams together; a program that exceeds it is killed.
    processes: processes and threads alive at once, including the sandbox's own two or three.

    Raises:
        ValueError: when a limit is outside the range that every sandbox can enforce.
    """

    seconds: float = 5.0
    memory_bytes: int = 256 << 20
    output_bytes: int = 64 << 10
    processes: int = 32

    def __post_init__(self) -> None:
        bounds = {
            "seconds": (self.seconds, 0.05, 3600.0),
            "memory_bytes": (self.memory_bytes, 32 << 20, 64 << 30),
            "output_bytes": (self.output_bytes, 1, 16 << 20),
            "processes": (self.processes, 4, 4096),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {value}: change it in Limits")


@dataclass(frozen=True, slots=True)
class Program:
    """A Python program and its standard input."""

    code: str
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of running a program.

    status: "ok" if it ran to completion. "unsupported": the sandbox's interpreter lacks a feature that the program
        uses, which says nothing about the program. "refused": not started, because it is too large or is not text.
    stdout: its output, truncated to the limit. error: the last line of its error, empty when "ok".
    seconds: wall time.
    """

    status: Status
    stdout: str
    error: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ProgramVerdict:
    """The verdict of hidden tests on a candidate.

    status: "passed" if the tests ran to completion and called the candidate; "wrong" if an assertion failed; "error"
        if the candidate or the tests raised or stopped; otherwise as in `Outcome`.
    detail: the failed assertion or the error, empty when passed. calls: number of calls that the tests made to the
        candidate.
    """

    status: Judgement
    detail: str
    calls: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status == "passed"


class Sandbox(Protocol):
    """An isolated place to run programs, where they can do no harm and learn nothing. Close it or use it in `with`."""

    @property
    def name(self) -> str:
        """Name of the sandbox, with the version or image that determines what a program can do."""

    def run(self, program: Program, limits: Limits) -> Outcome:
        """Run one program and return its outcome.

        Raises:
            SandboxUnavailableError: when the isolation itself fails. A program's own failure never raises.
        """

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        """Judge a candidate by tests that it cannot see.

        candidate: source that defines functions. tests: source whose free names are resolved in the candidate, except
        builtins and the standard modules whose attributes it uses, which a candidate cannot replace; the tests pass
        when they run to completion. `limits` apply to each of the two, `seconds` to both together.

        Raises:
            SandboxUnavailableError: when the isolation itself fails. The programs' own failures never raise.
        """

    def close(self) -> None:
        """Release workers and engine, and remove everything that is still running."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def refusal(*sources: str, stdin: str = "") -> str:
    """Return why these sources are refused without being run (not text, or too long); empty if they are accepted."""
    for text, most in (*((source, MAX_SOURCE_BYTES) for source in sources), (stdin, MAX_STDIN_BYTES)):
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return "the source is not text: it holds half of a surrogate pair"
        if size > most:
            return f"the source has {size} bytes, at most {most} are run"
    return ""
