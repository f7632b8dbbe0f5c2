"""What is particular to containers: privileges, mounts, limits of the kernel, and that none is left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import docker
import pytest

from forge_resources.sandbox.container import ContainerSandbox
from forge_resources.sandbox.engine import EXPIRES, image_reference, policy, reap, remove
from training_core.tasks.sandbox import Limits, Program, Sandbox, SandboxUnavailableError

LIMITS = Limits(seconds=5.0, memory_bytes=64 << 20, output_bytes=20_000, processes=16)
FACTS = """
import json, os, resource, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
mounts = [line.split(" - ")[0].split()[4:6] + line.split(" - ")[1].split()[:1] for line in open("/proc/self/mountinfo")]
print(json.dumps({
    "status": {name: value.strip() for name, value in status.items()},
    "mounts": {place: [options.split(","), kind] for place, options, kind in mounts},
    "limits": {n: resource.getrlimit(getattr(resource, "RLIMIT_" + n)) for n in ("NOFILE", "FSIZE", "CORE", "CPU")},
    "init": open("/proc/1/comm").read().strip(),
    "host": socket.gethostname(),
    "shm": os.path.exists("/dev/shm"),
    "size": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize,
    "variables": dict(os.environ),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
}))
"""


@pytest.fixture(scope="module")
def facts(container: Sandbox) -> dict[str, dict[str, object]]:
    outcome = container.run(Program(FACTS), LIMITS)
    assert outcome.status == "ok", outcome
    found: dict[str, dict[str, object]] = json.loads(outcome.stdout)
    return found


@pytest.mark.slow
def test_it_has_no_privilege(facts: dict[str, dict[str, object]]) -> None:
    status = facts["status"]
    assert [status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == ["0" * 16] * 5
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Seccomp_filters"] == "2"  # the engine's and ours
    assert status["Uid"] == status["Gid"] == "65534\t65534\t65534\t65534"


@pytest.mark.slow
def test_nothing_is_writable_but_a_small_tmp(facts: dict[str, dict[str, object]]) -> None:
    mounts = facts["mounts"]
    assert "ro" in mounts["/"][0]  # type: ignore[index]
    for place, (options, kind) in mounts.items():  # type: ignore[misc]
        if kind not in ("proc", "sysfs", "mqueue", "devpts", "cgroup", "cgroup2", "tmpfs"):
            assert "ro" in options, place  # the root, and what the engine puts over it
    for place in ("/tmp", "/run", "/var/tmp"):
        assert {"noexec", "nosuid", "nodev"} <= set(mounts[place][0])  # type: ignore[index]
    assert facts["size"] == 16 << 20
    assert facts["shm"] is False


@pytest.mark.slow
def test_the_limits_of_its_processes(facts: dict[str, dict[str, object]]) -> None:
    assert facts["limits"] == {"NOFILE": [64, 64], "FSIZE": [16 << 20] * 2, "CORE": [0, 0], "CPU": [7, 7]}
    assert facts["init"] != "python3"
    assert facts["host"] == "sandbox"
    assert set(facts["variables"]) <= {"PATH", "TERM", "container", "HOSTNAME", "HOME", "LC_CTYPE"}
    assert facts["descriptors"] == [0, 1, 2]


@pytest.mark.slow
def test_privileged_calls_fail(container: Sandbox) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
done = []
def attempt(name, action):
    try:
        if action() not in (-1, None):
            done.append(name)
        elif ctypes.get_errno() == 0 and name in ("setuid", "chroot", "mknod", "nice"):
            done.append(name)
    except OSError:
        pass
    ctypes.set_errno(0)
attempt("mount", lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
attempt("remount", lambda: libc.mount(b"none", b"/", None, 32, None))
attempt("unshare user", lambda: libc.unshare(0x10000000))
attempt("unshare mount", lambda: libc.unshare(0x00020000))
attempt("setns", lambda: libc.setns(os.open("/proc/self/ns/net", os.O_RDONLY), 0))
attempt("clone", lambda: libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("io_uring", lambda: libc.syscall(425, 8, ctypes.create_string_buffer(200)))
attempt("ptrace", lambda: libc.ptrace(16, 1, 0, 0))
attempt("bpf", lambda: libc.syscall(321, 0, 0, 0))
attempt("keyctl", lambda: libc.syscall(250, 0, 0, 0))
attempt("kexec", lambda: libc.syscall(246, 0, 0, 0, 0))
attempt("perf", lambda: libc.syscall(298, 0, 0, -1, -1, 0))
attempt("clock", lambda: libc.clock_settime(0, (ctypes.c_long * 2)(0, 0)))
attempt("hostname", lambda: libc.sethostname(b"x", 1))
for name, action in {"setuid": lambda: os.setuid(0), "chroot": lambda: os.chroot("/tmp"), "nice": lambda: os.nice(-5),
                     "mknod": lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))}.items():
    try:
        action()
        done.append(name)
    except OSError:
        pass
open("/tmp/tool", "w").write("#!/usr/bin/python3\\n")
os.chmod("/tmp/tool", 0o6755)
try:
    os.execv("/tmp/tool", ["tool"])
except PermissionError:
    print(done or "none")
"""
    outcome = container.run(Program(code), LIMITS)
    assert (outcome.status, outcome.stdout) == ("ok", "none\n"), outcome


@pytest.mark.slow
def test_disk_files_and_processor_are_limited(container: Sandbox) -> None:
    code = """
import os, time
written = 0
try:
    for number in range(64):
        with open("/tmp/%d" % number, "wb") as f:
            f.write(b"x" * (1 << 20))
        written += 1
except OSError as error:
    print(error.strerror)
print(written < 17)
start, cpu = time.monotonic(), time.process_time()
children = []
for _ in range(3):
    if (pid := os.fork()) == 0:
        while time.monotonic() < start + 1.5:
            pass
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
used = os.times()
print((used.children_user + used.children_system) / (time.monotonic() - start) < 1.25)
"""
    outcome = container.run(Program(code), LIMITS)
    assert (outcome.status, outcome.stdout) == ("ok", "No space left on device\nTrue\nTrue\n"), outcome


@pytest.mark.slow
def test_a_million_files_are_not_made(container: Sandbox) -> None:
    code = "for n in range(1_000_000):\n    open('/tmp/%d' % n, 'w').close()\nprint('made')"
    outcome = container.run(Program(code), Limits(seconds=3, memory_bytes=64 << 20))
    assert outcome.status in ("timeout", "memory", "error")


@pytest.mark.slow
def test_nothing_is_left_after_every_kind_of_end(container: Sandbox, left: Callable[[], list[str]]) -> None:
    brief = Limits(seconds=1.0, memory_bytes=64 << 20, output_bytes=100)
    for code, status in (("1", "ok"), ("while 1: pass", "timeout"), ("print('x' * 999)", "output_limit")):
        assert container.run(Program(code), brief).status == status
        assert left() == []
    assert container.check("def f():\n    while True: pass", "f()", brief).status == "timeout"
    assert left() == []


@pytest.mark.slow
def test_what_a_killed_process_left_is_reaped_when_it_has_expired(
    engine: docker.DockerClient, left: Callable[[], list[str]]
) -> None:
    made = {}
    for name, expires in (("old", time.time() - 1), ("young", time.time() + 600)):
        arguments = policy(LIMITS)
        arguments["labels"] |= {EXPIRES: str(int(expires))}
        made[name] = engine.containers.create(image_reference(), ["python3", "-c", "input()"], **arguments)
        made[name].start()
    try:
        assert reap(engine) >= 1
        assert left() == [made["young"].id]
    finally:
        for each in made.values():
            remove(each)
    remove(made["old"])  # once more is no error


@pytest.mark.slow
def test_an_image_that_is_not_there_is_named(engine: docker.DockerClient) -> None:
    with pytest.raises(SandboxUnavailableError, match="localhost/absent:latest: run forge sandbox build-image"):
        ContainerSandbox(engine, image="localhost/absent:latest")
