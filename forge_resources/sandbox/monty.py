"""Sandbox of `pydantic-monty`, an interpreter for a subset of Python, in worker processes without access to the host.

The interpreter provides no files, sockets, processes or variables, so there is nothing to restrict; a crash of a worker
ends the program and not this process. It runs a program in about a millisecond. Features that it lacks (generators,
inheritance, most of the standard library) give "unsupported", never "error": a missing feature is not a wrong answer.

A check uses two sessions in two workers. One holds the candidate; the other runs the tests and suspends at every name
that they do not define and at every call of one, which this process resolves in the first session. Arguments and
results are copied as plain data. Hence a candidate can patch and end only its own session.

**Differs from containers**: objects of the candidate's own (instances, functions as values) are always "unsupported";
the two sessions of a check are limited individually and together, so it may take three times `Limits.seconds`;
`Limits.processes` has no effect, because none can be started. The workers run under the account of this process, so the
isolation depends on the soundness of the interpreter alone, whereas a container is also confined by the kernel.
"""

import builtins
import os
import secrets
import sys
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from pydantic_monty import (
    FunctionSnapshot,
    Monty,
    MontyComplete,
    MontyError,
    MontySession,
    NameLookupSnapshot,
    OSPolicy,
    ResourceLimits,
)
from pydantic_monty import __version__ as VERSION

from forge_resources.sandbox.monty_errors import classify, not_data
from training_core.tasks.sandbox import (
    Judgement,
    Limits,
    Outcome,
    Program,
    ProgramVerdict,
    SandboxUnavailableError,
    refusal,
)

MAX_QUESTIONS = 100_000  # suspensions in one check, and lines read by one program
PROGRAMS_PER_WORKER = 1000


class MontySandbox:
    """A `Sandbox` of embedded interpreters (see the module). Open it with
    `forge_resources.sandbox.open_sandbox("embedded")`.

    It is thread-safe.

    Raises:
        SandboxUnavailableError: when the workers do not start.
    """

    def __init__(self) -> None:
        pairs = os.cpu_count() or 1
        self._pairs = threading.BoundedSemaphore(pairs)  # a check needs two workers at once
        try:
            self._pool = Monty(max_processes=2 * pairs, max_checkouts_per_worker=PROGRAMS_PER_WORKER).__enter__()
        except (MontyError, OSError, RuntimeError) as error:
            raise SandboxUnavailableError(
                f"the embedded sandbox does not start: {error}; pip install pydantic-monty brings its program"
            ) from error

    @property
    def name(self) -> str:
        """Name of the sandbox: the interpreter and its version."""
        return f"embedded, pydantic-monty {VERSION}"

    def run(self, program: Program, limits: Limits) -> Outcome:
        """Run one program; see `training_core.tasks.sandbox.Sandbox`. `input` reads `program.stdin`."""
        if why := refusal(program.code, stdin=program.stdin):
            return Outcome("refused", "", why, 0.0)
        printed = Printed(limits.output_bytes)
        lines = iter(program.stdin.splitlines())

        def read_line(prompt: str = "") -> str:
            printed("stdout", str(prompt))
            try:
                return next(lines)
            except StopIteration:
                raise EOFError("EOF when reading a line") from None

        with self._pairs, self._session(limits) as session:
            start = time.monotonic()
            try:
                session.feed_run(program.code, external_lookup={"input": read_line}, print_callback=printed)
                status, error = classify(None)
            except MontyError as raised:
                status, error = classify(raised)
            if printed.overflow:
                status, error = "output_limit", f"more than {limits.output_bytes} bytes of output"
            return Outcome(status, printed.text(), error, time.monotonic() - start)

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        """Judge a candidate by hidden tests; see `training_core.tasks.sandbox.Sandbox`."""
        if why := refusal(candidate, tests):
            return ProgramVerdict("refused", why, 0, 0.0)
        with ExitStack() as stack:
            stack.enter_context(self._pairs)
            answering = stack.enter_context(self._session(limits))
            judging = stack.enter_context(self._session(limits))
            start = time.monotonic()
            conversation = MontyConversation(answering, start + limits.seconds, limits.output_bytes)
            try:
                conversation.load(candidate)
                status, detail = conversation.judge(judging, tests)
            except Stop as stop:
                status, detail = stop.status, stop.detail
            return ProgramVerdict(status, detail, conversation.calls, time.monotonic() - start)

    def close(self) -> None:
        """Stop the workers."""
        self._pool.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(self, limits: Limits) -> MontySession:
        bounds = ResourceLimits(
            max_feed_duration_secs=limits.seconds,
            max_total_sleep_secs=limits.seconds,
            max_memory=limits.memory_bytes,
            max_suspensions=MAX_QUESTIONS,
        )
        return self._pool.checkout(
            limits=bounds, assert_message_annotations=False, os_policy=OSPolicy(random_start={"seed": 0})
        )


class Printed:
    """Collects a program's output up to a limit in bytes; beyond it only `overflow` is set."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._kept = bytearray()
        self.overflow = False

    def __call__(self, stream: str, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self.overflow |= len(data) > self._room
        if stream == "stdout":
            self._kept += data[: self._room]
        self._room -= min(len(data), self._room)

    def text(self) -> str:
        """Return the text written to standard output."""
        return self._kept.decode("utf-8", "replace")


class Stop(Exception):
    """Raised to end a check with a status; only by this process, never inside a session."""

    def __init__(self, status: Judgement, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class MontyConversation:
    """The session of the candidate, to which the tests' lookups and calls are forwarded until `deadline`."""

    def __init__(self, answering: MontySession, deadline: float, output_bytes: int) -> None:
        self._answering = answering
        self._deadline = deadline
        self._printed = Printed(output_bytes)
        self._stand_ins: dict[str, str] = {}
        self.calls = 0

    def load(self, candidate: str) -> None:
        """Run the candidate's source.

        Raises:
            Stop: when it does not run to completion.
        """
        try:
            self._answering.feed_run(candidate, print_callback=self._printed, external_lookup={})
        except MontyError as error:
            raise Stop(*self._failed(error)) from error

    def judge(self, judging: MontySession, tests: str) -> tuple[Judgement, str]:
        """Run the tests in their session; return the verdict and its detail.

        Raises:
            Stop: when a session exceeded a limit, or a value cannot be passed between the sessions.
        """
        used = False
        try:
            at = judging.feed_start(tests, print_callback=Printed(0))
            while not isinstance(at, MontyComplete):
                if time.monotonic() > self._deadline:
                    raise Stop("timeout", "the tests did not end in time")
                if isinstance(at, FunctionSnapshot) and not at.is_os_function:
                    used = True
                    at = at.resume(self._call(str(at.function_name), at.args, at.kwargs))
                elif isinstance(at, NameLookupSnapshot) and self._may_look_up(at.variable_name):
                    used = True
                    at = at.resume(value=self._look_up(at.variable_name))
                elif isinstance(at, NameLookupSnapshot):
                    at = at.resume()
                else:
                    at = at.resume_auto()
        except MontyError as error:
            status, text = classify(error)
            return ("wrong" if status == "error" and text.startswith("AssertionError") else status_of(status)), text
        if not used:
            return "error", "the tests use nothing that the candidate defines"
        return "passed", ""

    def _may_look_up(self, name: str) -> bool:
        """Return whether a name that is not called belongs to the candidate.

        Raises:
            Stop: "unsupported", when it is a module of the standard library that the tests did not import.
        """
        if name in sys.stdlib_module_names:
            raise Stop("unsupported", f"the tests look into the module {name} and do not import it")
        return self._has(name)

    def _has(self, name: str) -> bool:
        """Return whether the candidate defines a name that the tests may use."""
        if not name.isidentifier() or hasattr(builtins, name):
            return False
        try:
            self._answering.feed_run(name, print_callback=self._printed, external_lookup={})
        except MontyError as error:
            if isinstance(error.exception(), NameError):
                return False
            raise Stop(*self._failed(error)) from error
        return True

    def _look_up(self, name: str) -> Any:
        """Return the value of a name if it is data, else a function of this process that represents it."""
        value = self._answering.feed_run(name, print_callback=self._printed, external_lookup={})
        if not not_data(value):
            return value

        def stand_in(*_: Any) -> None:  # never called: the session stops at the call and names it
            raise SandboxUnavailableError(f"{name} was called outside of its session")

        stand_in.__name__ = f"{name}_{secrets.token_hex(16)}"  # identifies it, both when called and as an argument
        self._stand_ins[stand_in.__name__] = name
        return stand_in

    def _call(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call the candidate's function; return its value or exception as the answer to a suspended call."""
        name = self._stand_ins.get(name, name)
        if not self._has(name):
            return {"exception": NameError(f"name {name!r} is not defined")}
        self.calls += 1
        if why := not_data([arguments, named], self._stand_ins):
            raise Stop("unsupported", f"the tests hand the candidate {why}; only data can be handed over")
        try:
            value = self._ask(f"{name}(*_arguments, **_named)", {"_arguments": arguments, "_named": named})
        except MontyError as error:
            return {"exception": error.exception()}
        return {"return_value": value}

    def _ask(self, expression: str, inputs: dict[str, Any]) -> Any:
        """Evaluate an expression in the candidate's session.

        Raises:
            MontyError: the candidate's own exception.
            Stop: when it exceeded a limit, or the value is not data.
        """
        try:
            value = self._answering.feed_run(
                expression, inputs=inputs, print_callback=self._printed, external_lookup={}
            )
        except MontyError as error:
            status, text = self._failed(error)
            if status != "error" or not isinstance(error.exception(), Exception):
                raise Stop(status, text) from error
            raise
        if time.monotonic() > self._deadline:
            raise Stop("timeout", "the candidate did not answer in time")
        if why := not_data(value):
            raise Stop("unsupported", f"the candidate gives {why}; only data can be compared")
        return value

    def _failed(self, error: MontyError) -> tuple[Judgement, str]:
        if self._printed.overflow:
            return "output_limit", "the candidate printed more than it may"
        status, text = classify(error)
        return status_of(status), text


def status_of(status: str) -> Judgement:
    """Map a program's status to a verdict's; every status that is not a limit becomes "error"."""
    limits: dict[str, Judgement] = {
        "timeout": "timeout", "memory": "memory", "output_limit": "output_limit", "unsupported": "unsupported",
    }  # fmt: skip
    return limits.get(status, "error")
