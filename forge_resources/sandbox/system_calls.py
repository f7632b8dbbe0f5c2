"""The seccomp filter that a container installs on itself before foreign code runs; it cannot be removed afterwards.

Engines have filters of their own, which stay in force, but they differ: Podman's allows a process to create a user
namespace, in which it is root over a part of the kernel that was out of reach before; and a network namespace does not
confine `AF_VSOCK`, the path from a virtual machine to its host. Denied here: new namespaces, mounts, tracing, kernel
keys, kernel programs, performance events, io_uring, and sockets other than local and internet ones.

The text of this file runs before `container_entrypoint.py`. Without `no-new-privileges` the kernel refuses the filter,
and the container ends before it has read a program.
"""

import ctypes
import errno
import os
import platform
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DENIED = {
    "x86_64": (101, 133, 155, 161, 163, 165, 166, 175, 176, 179, 246, 248, 249, 250, 259, 272, 298, 308, 310, 311, 313,
               320, 321, 323),
    "aarch64": (33, 39, 40, 41, 51, 60, 89, 97, 104, 105, 106, 117, 217, 218, 219, 241, 268, 270, 271, 273, 280, 282,
                294),
}  # fmt: skip
# ptrace mknod pivot_root chroot acct mount umount2 init_module delete_module quotactl kexec_load add_key request_key
# keyctl mknodat unshare perf_event_open setns process_vm_readv/writev finit_module kexec_file_load bpf userfaultfd
DENIED_EVERYWHERE = (
    425,
    426,
    427,
    428,
    429,
    430,
    431,
    432,
    433,
    438,
    442,
)  # io_uring_*, the new mount calls, pidfd_getfd
CLONE = {"x86_64": 56, "aarch64": 220}
SOCKET = {"x86_64": 41, "aarch64": 198}
CLONE3 = 435
NEW_NAMESPACES = 0x7E020000
SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; the last two reach only the container's own loopback
OTHER_ABI = 0x40000000  # x32 numbers the same calls differently

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16
ALLOW, FAIL = 0x7FFF0000, 0x00050000


def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    """Return the BPF program of the filter as (code, jump if true, jump if false, operand), for one architecture."""
    deny = (RETURN, 0, 0, FAIL | errno.EPERM)
    made = [(LOAD, 0, 0, ARCHITECTURE_AT), (EQUAL, 1, 0, ARCHITECTURES[machine]), deny]
    made += [(LOAD, 0, 0, NUMBER_AT), (AT_LEAST, 0, 1, OTHER_ABI), deny]
    for number in (*DENIED[machine], *DENIED_EVERYWHERE):
        made += [(EQUAL, 0, 1, number), deny]
    made += [
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, FAIL | errno.ENOSYS),
    ]  # libc then falls back to clone, whose flags BPF can see
    made += [(EQUAL, 0, 4, CLONE[machine]), (LOAD, 0, 0, FIRST_ARGUMENT_AT), (ANY_BIT, 0, 1, NEW_NAMESPACES), deny]
    made += [(RETURN, 0, 0, ALLOW), (EQUAL, 0, 2 + len(SOCKET_FAMILIES), SOCKET[machine])]
    made += [(LOAD, 0, 0, FIRST_ARGUMENT_AT)]
    made += [(EQUAL, len(SOCKET_FAMILIES) - at, 0, family) for at, family in enumerate(SOCKET_FAMILIES)]
    return [*made, deny, (RETURN, 0, 0, ALLOW)]


def restrict() -> None:
    """Install the filter on this process and all its future children.

    Raises:
        OSError: when the kernel refuses, or the architecture is not known.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOTSUP, f"no filter of system calls is known for {machine}")
    words = [struct.pack("=HBBI", *instruction) for instruction in instructions(machine)]
    program = ctypes.create_string_buffer(b"".join(words))
    header = struct.pack("@HP", len(words), ctypes.addressof(program))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(22, 2, ctypes.c_char_p(header), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), f"no filter of system calls: {os.strerror(ctypes.get_errno())}")
