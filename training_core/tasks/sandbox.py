"""What the phases ask of a sandbox for model-written programs, and what it answers. No engine is known here.

A phase takes a `Sandbox` as an argument and never runs a program itself. Two things are asked for:

* `run`: one program, with its printed output; the way a tool call is answered.
* `check`: a candidate against hidden tests. The candidate never shares an interpreter with the tests: it sees the
  arguments of the calls that the tests make, one call after the other, and nothing else. What it gives back is copied
  as data. So it can neither read the tests, nor patch what judges it, nor end the judging early, nor print a verdict.

Does not cover: tests that are too weak. A candidate that computes wrong answers which the tests accept passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

Status = Literal["ok", "error", "timeout", "memory", "output_limit", "unsupported", "refused"]
Judgement = Literal["passed", "wrong", "error", "timeout", "memory", "output_limit", "unsupported", "refused"]

MAX_SOURCE_BYTES = 1 << 18
MAX_STDIN_BYTES = 8 << 20  # what a program reads may hold a whole package and its tests


class SandboxUnavailableError(ValueError):
    """No isolation can be had, or it was lost; nothing was judged. Programs never run on the host instead."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    seconds: wall time; in a container the start of its interpreter counts, some tenths of a second.
    memory_bytes: all memory of the program and its children.
    output_bytes: what it may print, both streams together; more ends it.
    processes: processes and threads alive at once, the sandbox's own two or three included.

    Raises:
        ValueError: when a limit is outside of what every sandbox can keep.
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
    """A Python program, and what it reads from standard input."""

    code: str
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    status: "ok" when it ran to its end. "unsupported": the sandbox's interpreter lacks a feature that the program uses,
        which says nothing about the program. "refused": it was not started, because it is too large or is not text.
    stdout: what it printed, never longer than the limit. error: the last line of its error, empty when "ok".
    seconds: wall time.
    """

    status: Status
    stdout: str
    error: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What hidden tests found about a candidate.

    status: "passed", when the tests ran to their end and used the candidate; "wrong", when an assertion failed;
        "error", when the candidate or the tests raised or stopped; else as in `Outcome`.
    detail: the failed assertion or the error, empty when passed. calls: how often the tests turned to the candidate.
    """

    status: Judgement
    detail: str
    calls: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test held."""
        return self.status == "passed"


class Sandbox(Protocol):
    """A place where a program can do no harm and learn nothing. To be closed, or used as a context manager."""

    @property
    def name(self) -> str:
        """Which sandbox this is, with the version or the image that decides what a program can do."""

    def run(self, program: Program, limits: Limits) -> Outcome:
        """Run one program.

        Raises:
            SandboxUnavailableError: when the isolation itself fails. What the program does never raises.
        """

    def check(self, candidate: str, tests: str, limits: Limits) -> Verdict:
        """Judge a candidate by tests that it cannot see.

        candidate: source that defines functions. tests: source whose free names are looked up in the candidate (those
        of builtins, and of standard modules that are looked into, are not: a candidate cannot replace them); it
        passes when it runs to its end. `limits` hold for each of the two, and `seconds` for both together.

        Raises:
            SandboxUnavailableError: when the isolation itself fails. What the programs do never raises.
        """

    def close(self) -> None:
        """Give back workers and engine, and remove whatever was left running."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def refusal(*sources: str, stdin: str = "") -> str:
    """Why these sources are not even started, empty when they are: they must be text, and not too long."""
    for text, most in (*((source, MAX_SOURCE_BYTES) for source in sources), (stdin, MAX_STDIN_BYTES)):
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return "the source is not text: it holds half of a surrogate pair"
        if size > most:
            return f"the source has {size} bytes, at most {most} are run"
    return ""
