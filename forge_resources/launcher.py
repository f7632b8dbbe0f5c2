"""Launching of training: in the run's own process, in several processes on this machine (torchrun), or on Slurm.

All three run `training_core.worker.make`. Launched processes report through Dagster Pipes: the first rank sends
metrics, progress and figures while it works, and the materialization once the bundle is on disk. Files are passed
through the model store, which must be on a file system that all nodes share.

Launched processes hold the other end of a pipe. When the run that started them is cancelled or killed, they read
end-of-file and stop, on every node.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import dagster as dg
from pydantic import Field

from forge_resources.sandbox import probed_sandbox
from training_core.phase import Phase
from training_core.reporting import Figure, Reporter
from training_core.store.bundle import Bundle, open_bundle
from training_core.worker import Job, make

Mode = Literal["inline", "torchrun", "slurm"]
WORKER = "forge_resources.pipes_worker"
_POLL_S = 0.2
_STOP_S = 2.0  # wait after each signal before the next, harder one
_REPORTED_S = 60.0  # a network file system shows the last message with a delay
# Environment variables with these words are not passed on: launched processes need none of them.
_SECRET_WORDS = ("KEY", "PASSWORD", "SECRET", "TOKEN", "CREDENTIAL", "WEBHOOK", "JWT", "MLFLOW")


class WorkerFailedError(RuntimeError):
    """Raised when launched processes ended without a model; a retry resumes from their checkpoint."""


class Launcher(dg.ConfigurableResource[Any]):
    """Starts the processes that make a model. Empty fields are read from the environment."""

    mode: str = Field(
        default="",
        description="inline: in the run's process. torchrun: several processes on this machine. slurm: srun on a "
        "cluster. Empty: FORGE_LAUNCHER, else inline.",
    )
    processes: int = Field(
        default=0, ge=0, description="Processes on each node, one per GPU. 0: FORGE_PROCESSES, else 1."
    )
    nodes: int = Field(default=0, ge=0, description="Nodes of a Slurm step. 0: FORGE_NODES, else 1.")
    slurm_arguments: list[str] = Field(
        default_factory=list,
        description="Additional arguments of srun, such as --partition=gpu and --gpus-per-task=1. Empty: "
        "FORGE_SLURM_ARGUMENTS.",
    )

    def make(
        self, context: dg.AssetExecutionContext, phase: Phase, job: Job, reporter: Reporter
    ) -> tuple[Bundle, Mapping[str, Any]]:
        """Make the model of `job`; return the bundle in `job.out`, and metadata on where it was made.

        Phases that do not support several processes run in one.

        Raises:
            ValueError: for an unknown mode, and from the phase.
            WorkerFailedError: when launched processes died.
        """
        mode, processes, nodes = self._mode(), self._number("processes"), self._number("nodes")
        if not phase.parallel:
            processes = nodes = 1
        if mode == "inline" or (mode == "torchrun" and processes == 1):
            make(phase, job, reporter, probed_sandbox)
            return open_bundle(job.out), {}
        folder = job.out.parent / "launch"
        folder.mkdir(parents=True)
        command = _torchrun(processes) if mode == "torchrun" else self._srun(processes, nodes)
        environment = _environment(processes if mode == "torchrun" else 0)
        return _launched(context, job, [*command, str(folder / "job.json")], folder, environment, reporter)

    def _mode(self) -> Mode:
        wanted = self.mode or os.environ.get("FORGE_LAUNCHER", "").strip() or "inline"
        for mode in get_args(Mode):
            if mode == wanted:
                return mode  # type: ignore[no-any-return]
        raise ValueError(
            f"launcher mode must be one of {', '.join(get_args(Mode))}, got {wanted!r}: set it in the launchpad "
            "(resources: launcher) or in FORGE_LAUNCHER"
        )

    def _number(self, field: str) -> int:
        variable = f"FORGE_{field.upper()}"
        text = str(getattr(self, field) or os.environ.get(variable, "").strip() or 1)
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{variable} must be a whole number from 1, got {text!r}")
        return int(text)

    def _srun(self, processes: int, nodes: int) -> list[str]:
        more = self.slurm_arguments or shlex.split(os.environ.get("FORGE_SLURM_ARGUMENTS", ""))
        return [
            "srun",
            f"--nodes={nodes}",
            f"--ntasks={nodes * processes}",  # otherwise the number of tasks of the allocation would apply
            f"--ntasks-per-node={processes}",
            "--kill-on-bad-exit=1",
            "--wait=0",  # the first process still measures after the others have ended
            "--quit-on-interrupt",  # otherwise a single interrupt only asks whether to cancel
            "--export=ALL",
            *more,
            sys.executable,
            "-m",
            WORKER,
        ]


def _torchrun(processes: int) -> list[str]:
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*elastic, "--module", WORKER]


def _launched(
    context: dg.AssetExecutionContext,
    job: Job,
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    reporter: Reporter,
) -> tuple[Bundle, Mapping[str, Any]]:
    (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    with dg.open_pipes_session(
        context=context.op_execution_context,
        context_injector=dg.PipesFileContextInjector(str(folder / "context.json")),
        message_reader=WholeLinesReader(str(folder / "messages")),
    ) as session:
        context.log.info(f"starting {shlex.join(command)}")
        try:
            process = subprocess.Popen(
                command, env={**environment, **session.get_bootstrap_env_vars()}, stdin=subprocess.PIPE
            )
        except FileNotFoundError as error:
            raise ValueError(f"{command[0]} is not installed here: choose another launcher mode") from error
        sent = 0
        try:
            while process.poll() is None:
                sent = _forward(session.get_custom_messages(), sent, reporter)
                time.sleep(_POLL_S)
        finally:
            _stop(process)
        end = time.monotonic() + _REPORTED_S
        while process.returncode == 0 and not session.get_reported_results() and time.monotonic() < end:
            time.sleep(_POLL_S)
    _forward(session.get_custom_messages(), sent, reporter)
    if refused := [m["refused"] for m in session.get_custom_messages() if "refused" in m]:
        raise ValueError(refused[0])
    reported = [r for r in session.get_reported_results() if isinstance(r, dg.MaterializeResult)]
    if process.returncode != 0 or not reported:
        raise WorkerFailedError(
            f"the launched processes ended with code {process.returncode} and "
            f"{'a' if reported else 'no'} model; their output is in this step's log (stderr)"
        )
    version = reported[0].data_version
    if not job.out.is_dir() or version is None or (bundle := open_bundle(job.out)).digest() != version.value:
        raise WorkerFailedError(f"{job.out} does not hold the model that was reported: is it on a shared file system?")
    return bundle, dict(reported[0].metadata or {})


class WholeLinesReader(dg.PipesFileMessageReader):
    """A Pipes file reader that waits for complete lines, and skips one that a full disk cut short.

    Dagster's own takes a line that is still being written for a message, fails to parse it, and stops reading.
    """

    def _reader_thread(self, handler: dg.PipesMessageHandler, is_resource_complete: threading.Event) -> None:
        rest = ""
        with open(self._path, encoding="utf-8") as file:
            while True:
                ends = is_resource_complete.is_set()  # read before the file, so that the last pass sees all of it
                *lines, rest = (rest + file.read()).split("\n")
                for line in lines:
                    with contextlib.suppress(json.JSONDecodeError):
                        handler.handle_message(json.loads(line))
                if ends:
                    return
                is_resource_complete.wait(_POLL_S)


def _forward(messages: Sequence[Mapping[str, Any]], sent: int, reporter: Reporter) -> int:
    """Forward the messages from index `sent` to the reporter, and return the number of messages so far."""
    for message in messages[sent:]:
        if "metrics" in message:
            reporter.metrics(*message["metrics"])
        elif "progress" in message:
            reporter.progress(*message["progress"])
        elif "figure" in message:
            name, figure = message["figure"]
            reporter.figure(name, Figure(**figure))
    return len(messages)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the launched processes if they are still running: close their pipe, then send SIGINT, SIGTERM, SIGKILL."""
    if process.stdin is not None:
        process.stdin.close()
    for measure in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(measure)
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            continue


def _environment(sharing: int) -> dict[str, str]:
    """This process's environment without secrets, with the machine's cores divided among `sharing` processes."""
    kept = {n: value for n, value in os.environ.items() if not any(word in n.upper() for word in _SECRET_WORDS)}
    if sharing:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        kept.setdefault("OMP_NUM_THREADS", str(max(1, cores // sharing)))
    return kept
