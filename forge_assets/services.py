"""`forge up`: the Dagster UI with its daemon, and the MLflow server, started and stopped together."""

import errno
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

HOST = "127.0.0.1"
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_MAX_PORT = 65535


class ServiceError(ValueError):
    """A service could not start, or exited unexpectedly."""


@dataclass(frozen=True, slots=True)
class Service:
    """A server: its command, the port that it listens on, and its log file."""

    name: str
    command: Sequence[str]
    port: int
    log: Path


def services(home: Path, port: int, mlflow_port: int, workspace: Path | None) -> tuple[Service, Service]:
    """Return the Dagster server (on `workspace`, else the installed code location) and the MLflow server.

    Both keep their state in the forge home `home`.

    Raises:
        ServiceError: when a port is not one, or both are the same.
    """
    for option, number in (("--port", port), ("--mlflow-port", mlflow_port)):
        if not 1 <= number <= _MAX_PORT:
            raise ServiceError(f"{option} must be a whole number from 1 to {_MAX_PORT}, got {number}: choose another")
    if port == mlflow_port:
        raise ServiceError(f"--port and --mlflow-port are both {port}: choose another one for one of them")
    location = ["-w", str(workspace)] if workspace else ["-m", "forge_assets.definitions"]
    dagster = [sys.executable, "-m", "dagster", "dev", *location, "-h", HOST, "-p", str(port)]
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port)]
    mlflow += ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"]
    mlflow += ["--default-artifact-root", (home / "mlflow-artifacts").as_uri()]
    return (
        Service("Dagster", dagster, port, home / "logs" / "dagster.log"),
        Service("MLflow", mlflow, mlflow_port, home / "logs" / "mlflow.log"),
    )


def serve(wanted: Sequence[Service], environment: Mapping[str, str], ready: Callable[[], None]) -> None:
    """Run the services until Ctrl-C or SIGTERM; call `ready` once all of them accept connections.

    Each service runs in its own session, so that Ctrl-C in the terminal reaches only this process, which then stops
    the services in order and leaves no process behind.

    Raises:
        ServiceError: when a port is taken, or a service exits by itself or does not answer in time.
    """
    for service in wanted:
        require_free_port(service)
    started: list[tuple[Service, subprocess.Popen[bytes]]] = []
    with _terminated_like_interrupted():
        try:
            for service in wanted:
                started.append((service, _start(service, environment)))
            deadline = time.monotonic() + _START_TIMEOUT_S
            waiting = [service for service, _ in started]
            announced = False
            while True:
                _require_alive(started)
                waiting = [service for service in waiting if not _answers(service.port)]
                if not waiting and not announced:
                    ready()
                    announced = True
                if waiting and time.monotonic() > deadline:
                    raise ServiceError(f"{waiting[0].name} does not answer; see {waiting[0].log}")
                time.sleep(0.3)
        except KeyboardInterrupt:
            return
        finally:
            _stop([process for _, process in started])


def require_free_port(service: Service) -> None:
    """Check that the service can listen on its port.

    Raises:
        ServiceError: when the port is in use, or may not be used.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to listen on
        try:
            probe.bind((HOST, service.port))
        except OSError as error:
            option = "--port" if service.name == "Dagster" else "--mlflow-port"
            taken = error.errno == errno.EADDRINUSE
            why = "is in use: stop what listens there" if taken else f"cannot be used ({error.strerror}): change that"
            raise ServiceError(
                f"port {service.port}, wanted for {service.name}, {why} or choose another with {option}"
            ) from error


def _start(service: Service, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    service.log.parent.mkdir(parents=True, exist_ok=True)
    with service.log.open("wb") as log:
        return subprocess.Popen(
            list(service.command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_default_interrupt,
        )


def _default_interrupt() -> None:
    # Shell scripts start background jobs with SIGINT ignored. Dagster copies that disposition to SIGTERM, and could
    # then be stopped only by SIGKILL.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _require_alive(started: Sequence[tuple[Service, subprocess.Popen[bytes]]]) -> None:
    for service, process in started:
        if process.poll() is not None:
            lines = service.log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no output"
            raise ServiceError(f"{service.name} ended with status {process.returncode} ({last}); see {service.log}")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt the services, wait, and kill whatever is left of them and of the processes that they started."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave half of them running
        signal.signal(number, signal.SIG_IGN)
    family = [member for process in processes for member in _family(process.pid)]
    mains = {process.pid for process in processes}
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    psutil.wait_procs([member for member in family if member.pid in mains], timeout=_STOP_TIMEOUT_S)
    _, left = psutil.wait_procs(family, timeout=0.5)
    for member in left:
        member.terminate()
    _, left = psutil.wait_procs(left, timeout=5)
    for member in left:
        member.kill()
    for process in processes:
        process.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asks to outlive the terminal
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
