"""A context manager that runs a Slurm cluster of two virtual nodes on this machine, from Debian's packages."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import free_port

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo")
_UP_S = 60.0


def why_not() -> str:
    """Return why no cluster can be started here; empty if one can."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"no Slurm here ({', '.join(missing)} missing): apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started by root only"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run the daemons with all of their files in `folder`, and yield the environment of a client."""
    folder.chmod(0o755)
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool-{node}").mkdir()
    (folder / "slurm.conf").write_text(_configuration(folder))
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    files = {
        "socket": "munge.socket",
        "key-file": "munge.key",
        "log-file": "munge.log",
        "pid-file": "munge.pid",
        "seed-file": "munge.seed",
    }
    munged = ["munged", "-F", "--force", *(f"--{option}={folder / name}" for option, name in files.items())]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)):
            with (folder / f"{command[0]}-{len(daemons)}.out").open("wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(0.5)
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    end = time.monotonic() + _UP_S
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    while True:
        states = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.split()
        if states == ["idle"] * len(NODES):
            return
        logs = {path.name: path.read_text()[-400:] for path in folder.glob("*.out")}
        assert time.monotonic() < end, f"the nodes are {states}: {logs}"
        time.sleep(0.3)


def _configuration(folder: Path) -> str:
    ports = [free_port() for _ in range(1 + len(NODES))]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000"
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    return f"""
ClusterName=forge
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
{nodes}
PartitionName=all Nodes={",".join(NODES)} Default=YES State=UP
"""
