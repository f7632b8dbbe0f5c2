"""Inspection of this machine, from cores to container engine, and the profiles that can run on it."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from forge_resources.sandbox import describe
from forge_resources.sandbox.engine import container_engine, engine_sockets

GIB = 1 << 30
PACKAGES = ("agent-forge", "torch", "dagster", "mlflow", "pydantic-monty")


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured properties of a machine. Sizes are in bytes; `gpu_bytes` is 0 and `gpu` empty without a GPU.

    `sandbox` names the sandbox that model-written code would run in, or the reason why there is none.
    """

    cores: int
    memory_bytes: int
    available_bytes: int
    gpu: str
    gpu_bytes: int
    disk_free_bytes: int
    home: Path
    engine: str
    sandbox: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Requirement:
    """Requirements of a profile: peak memory of a run, and disk space for its models."""

    profile: str
    memory_bytes: int
    gpu_bytes: int
    disk_bytes: int
    time: str


# nano and mini: peak resident memory of a run on two cores, rounded up generously; forge_25m: README's 6 GB.
REQUIREMENTS = (
    Requirement("nano", 2 * GIB, 0, 1 * GIB, "in less than twenty minutes on 2 cores"),
    Requirement("mini", 6 * GIB, 0, 2 * GIB, "some hours on 2 cores (an estimate)"),
    Requirement("forge_25m", 8 * GIB, 6 * 10**9, 10 * GIB, "hours on one GPU (an estimate)"),
)


def inspect_machine(home: Path) -> Machine:
    """Measure this machine; `home` is the folder for models, which need not exist."""
    memory = psutil.virtual_memory()
    gpu, gpu_bytes = _gpu()
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory.total,
        available_bytes=memory.available,
        gpu=gpu,
        gpu_bytes=gpu_bytes,
        disk_free_bytes=shutil.disk_usage(_existing(home)).free,
        home=home,
        engine=container_engine(engine_sockets()),
        sandbox=describe(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    )


def obstacles(machine: Machine, needs: Requirement) -> list[str]:
    """Return the reasons why a profile will not run here; empty if it will."""
    reasons = []
    if machine.memory_bytes < needs.memory_bytes:
        reasons.append(f"{_gb(machine.memory_bytes)} of memory, {_gb(needs.memory_bytes)} wanted")
    if machine.gpu_bytes < needs.gpu_bytes:
        have = f"a GPU of {_gb(machine.gpu_bytes)}" if machine.gpu else "no GPU"
        reasons.append(f"{have}, one of {_gb(needs.gpu_bytes)} wanted")
    if machine.disk_free_bytes < needs.disk_bytes:
        reasons.append(f"{_gb(machine.disk_free_bytes)} of free disk, {_gb(needs.disk_bytes)} wanted")
    return reasons


def _gpu() -> tuple[str, int]:
    import torch

    if not torch.cuda.is_available():
        return "", 0
    properties = torch.cuda.get_device_properties(0)
    return str(properties.name), int(properties.total_memory)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed (running from the source tree)" if package == "agent-forge" else "not installed"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
