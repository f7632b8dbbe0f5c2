"""Sandbox of hardened containers, through the Docker API of Docker or Podman.

Every program gets its own container, created under `engine.policy` with a system call filter (`system_calls.py`),
killed by its id at the time limit and always removed. The image is resolved to its immutable id when the sandbox is
opened, and nothing is ever pulled.

A check uses two containers that do not know of each other. One runs the candidate and answers calls; the other runs
the tests, and sends a line for every call, which this process forwards. The candidate therefore has no test, no
expected value and no path to the verdict: `os._exit(0)` ends its own container, and the next call reports it gone;
patched builtins are its own; its output is discarded; a forged line is just another answer to a call, and answers are
data. The verdict is the last line of the judging container, with a nonce that only it was given.
"""

import json
import secrets
import time
from contextlib import ExitStack
from importlib import resources
from types import TracebackType
from typing import Any, Literal, Self, get_args

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from forge_resources.sandbox.attach_stream import Attachment, OutputLimitError, pump
from forge_resources.sandbox.engine import image_id, image_reference, policy, reap, remove
from training_core.tasks.sandbox import (
    Judgement,
    Limits,
    Outcome,
    Program,
    ProgramVerdict,
    SandboxUnavailableError,
    Status,
    refusal,
)

LINE_BYTES = 1 << 24  # maximum length of one call or answer
KILLED = 137
INTERPRETER = ("python3", "-I", "-B", "-S", "-c")
_FILES = resources.files(__package__)
_SYSTEM_CALLS, _ENTRYPOINT = (
    _FILES.joinpath(f"{name}.py").read_text() for name in ("system_calls", "container_entrypoint")
)
INSIDE = f"{_SYSTEM_CALLS}\nrestrict()\n{_ENTRYPOINT}"


class Ended(Exception):
    """Raised when a container ended or was killed; `status` says how."""

    def __init__(self, status: Status, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


class ContainerSandbox:
    """A `Sandbox` of containers (see the module). Open it with `forge_resources.sandbox.open_sandbox("container")`.

    Args:
        client: a connected Docker client; it is closed with the sandbox.
        image: a reference or an id; default `engine.image_reference()`.

    Raises:
        SandboxUnavailableError: when the engine lacks the image.
    """

    def __init__(self, client: docker.DockerClient, image: str | None = None) -> None:
        self._client = client
        self._reference = image or image_reference()
        self._image = image_id(client, self._reference)
        reap(client)

    @property
    def name(self) -> str:
        """Name of the sandbox: the image and its id."""
        return f"container, image {self._reference} ({self._image.removeprefix('sha256:')[:12]})"

    def run(self, program: Program, limits: Limits) -> Outcome:
        """Run one program; see `training_core.tasks.sandbox.Sandbox`."""
        if why := refusal(program.code, stdin=program.stdin):
            return Outcome("refused", "", why, 0.0)
        with ExitStack() as stack:
            held = Held(stack, self._client, self._image, "program", limits, limits.output_bytes)
            start = time.monotonic()
            try:
                held.attachment.send(_line({"code": program.code, "stdin": program.stdin}))
                while not held.attachment.ended:
                    if not pump([held.attachment], start + limits.seconds):
                        raise Ended("timeout", f"killed after {limits.seconds} s")
                status, error = held.ending(start + limits.seconds)
            except (Ended, OutputLimitError) as ended:
                status = ended.status if isinstance(ended, Ended) else "output_limit"
                error = str(ended)
            stdout = held.attachment.stdout.decode("utf-8", "replace")
            return Outcome(status, stdout, error, time.monotonic() - start)

    def check(self, candidate: str, tests: str, limits: Limits) -> ProgramVerdict:
        """Judge a candidate by hidden tests; see `training_core.tasks.sandbox.Sandbox`."""
        if why := refusal(candidate, tests):
            return ProgramVerdict("refused", why, 0, 0.0)
        with ExitStack() as stack:
            answering = Held(stack, self._client, self._image, "candidate", limits, LINE_BYTES)
            judging = Held(stack, self._client, self._image, "judge", limits, LINE_BYTES)
            start = time.monotonic()
            conversation = ContainerConversation(answering, judging, start + limits.seconds)
            try:
                status, detail = conversation.verdict(candidate, tests)
            except Ended as ended:
                status, detail = ended.status if ended.status != "ok" else "error", ended.error
            return ProgramVerdict(status, detail, conversation.calls, time.monotonic() - start)

    def close(self) -> None:
        """Close the connection; every container has been removed by the call that created it."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Held:
    """A running container with attached streams, which is removed when `stack` closes, whatever happens."""

    def __init__(
        self,
        stack: ExitStack,
        client: docker.DockerClient,
        image: str,
        role: Literal["program", "candidate", "judge"],
        limits: Limits,
        cap: int,
    ) -> None:
        try:
            self._container = client.containers.create(image, [*INTERPRETER, INSIDE, role], **policy(limits))
            stack.callback(remove, self._container)
            parameters = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            self.attachment = Attachment(self._container.attach_socket(params=parameters), cap)
            stack.callback(self.attachment.close)
            self._container.start()
        except (DockerException, RequestException) as error:
            raise SandboxUnavailableError(f"the container engine did not start a sandbox: {error}") from error

    def ending(self, deadline: float) -> tuple[Status, str]:
        """Return how the container ended, after its streams have closed.

        Raises:
            Ended: "timeout", when it closed its streams and kept running.
        """
        state = self._state(deadline)
        code = int(state["ExitCode"])
        last = _last_line(bytes(self.attachment.stderr))
        if last.startswith("MemoryError"):
            return "memory", last
        if state.get("OOMKilled") or code == KILLED:  # Podman does not report which process ran out of memory
            return "memory", "killed at the memory limit, unless it killed itself"
        if code == 0:
            return "ok", ""
        return "error", last or (f"killed by signal {code - 128}" if code > 128 else f"exit status {code}")

    def _state(self, deadline: float) -> dict[str, Any]:
        try:
            while True:
                self._container.reload()
                state: dict[str, Any] = self._container.attrs["State"]
                if not state["Running"]:
                    return state
                if time.monotonic() > deadline:
                    raise Ended("timeout", "killed: it closed its streams and ran on")
                time.sleep(0.01)
        except (DockerException, RequestException) as error:
            raise SandboxUnavailableError(f"the container engine does not say how a sandbox ended: {error}") from error


class ContainerConversation:
    """Forwards lines between a judging and an answering container until `deadline`."""

    def __init__(self, answering: Held, judging: Held, deadline: float) -> None:
        self._answering = answering
        self._judging = judging
        self._deadline = deadline
        self.calls = 0

    def verdict(self, candidate: str, tests: str) -> tuple[Judgement, str]:
        """Run the candidate, then the tests; return the verdict and its detail.

        Raises:
            Ended: when one of the two did not run to completion by itself.
        """
        self._answering.attachment.send(_line({"code": candidate}))
        ready = _parsed(self._next_line(self._answering, "the candidate"))
        if ready.get("ready") is not True:
            return ("memory" if ready.get("memory") else "error"), str(ready.get("failed", "no readiness"))[:500]
        nonce = secrets.token_hex(16)
        self._judging.attachment.send(_line({"tests": tests, "nonce": nonce}))
        while True:
            line = self._next_line(self._judging, "the judge")
            message = _parsed(line)
            if "op" not in message:
                break
            self._answering.attachment.send(line + b"\n")
            self._judging.attachment.send(self._answer() + b"\n")
            self.calls += 1
        status: Judgement | None = message.get("verdict")
        if message.get("nonce") != nonce or status is None or status not in get_args(Judgement):
            return "error", "the judge ended without a verdict"
        self.calls = int(message["calls"])
        return status, str(message["detail"])

    def _answer(self) -> bytes:
        try:
            return self._next_line(self._answering, "the candidate")
        except Ended as ended:
            if ended.status in ("ok", "error"):  # reported to the tests as an exception that they cannot catch
                return json.dumps(
                    {"gone": f"the candidate ended before the tests did: {ended.error or 'exit 0'}"}
                ).encode()
            raise

    def _next_line(self, held: Held, who: str) -> bytes:
        while (line := held.attachment.take_line()) is None:
            if held.attachment.ended:
                status, error = held.ending(self._deadline)
                raise Ended(status, error or f"{who} ended early")
            try:
                if not pump([self._answering.attachment, self._judging.attachment], self._deadline):
                    raise Ended("timeout", f"killed while {who} was waited for")
            except OutputLimitError as error:
                raise Ended("output_limit", str(error)) from error
        return line


def _line(message: dict[str, str]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Raises:
        Ended: "error", when it is not one.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Ended("error", "a line that is not an object of JSON")
    return message


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][-500:] if lines else ""
