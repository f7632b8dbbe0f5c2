"""The parts beneath the sandboxes: frames, the codec, the filter of system calls, the image's archive, the errors."""

from __future__ import annotations

import io
import socket
import struct
import tarfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_resources.sandbox.attach_stream import Attachment, OutputLimitError, pump
from forge_resources.sandbox.container_entrypoint import (
    Candidate,
    Gone,
    Handle,
    Unsupported,
    decode,
    encode,
    free_names,
)
from forge_resources.sandbox.image import pull_image, write_archive
from forge_resources.sandbox.monty_errors import not_data
from forge_resources.sandbox.system_calls import ALLOW, ARCHITECTURES, FAIL, instructions
from training_core.tasks.sandbox import SandboxUnavailableError

# --- frames


def frame(stream: int, body: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(body)) + body


def test_frames_are_put_together_however_they_arrive() -> None:
    here, there = socket.socketpair()
    with here, there:
        attachment = Attachment(here, cap=100)
        for byte in frame(1, b"one\ntw") + frame(2, b"oh") + frame(1, b"o\n"):
            there.send(bytes([byte]))
            assert pump([attachment], time.monotonic() + 1)
        assert [attachment.take_line() for _ in range(3)] == [b"one", b"two", None]
        assert bytes(attachment.stderr) == b"oh"
        attachment.send(b"hello")
        assert pump([attachment], time.monotonic() + 1)
        assert there.recv(10) == b"hello"
        there.close()
        assert pump([attachment], time.monotonic() + 1)
        assert attachment.ended
        assert not pump([attachment], time.monotonic() - 1)


def test_a_frame_that_announces_too_much_is_not_waited_for() -> None:
    here, there = socket.socketpair()
    with here, there:
        attachment = Attachment(here, cap=10)
        there.send(frame(2, b"1234") + struct.pack(">BxxxL", 1, 2**32 - 1) + b"abcdefghij")
        with pytest.raises(OutputLimitError, match="more than 10 bytes"):
            pump([attachment], time.monotonic() + 1)
        assert bytes(attachment.stdout) == b"abcdef"


# --- the codec

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@given(plain)
def test_data_is_decoded_as_it_was(value: object) -> None:
    def never(_: object) -> None:
        raise AssertionError("all of it is data")

    assert repr(decode(encode(value, never), never)) == repr(value)  # repr: a nan is not equal to itself
    assert not_data(value) == "" or "<" in repr(value)


def test_what_only_looks_like_data_is_handed_out() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    handed: list[object] = []
    encoded = encode([1, Liar(2), len], lambda value: handed.append(value) or "out")
    assert encoded == {"list": [{"int": "0x1"}, "out", "out"]}
    assert [type(each) for each in handed] == [Liar, type(len)]
    assert not_data([1, {"a": Liar(2)}]) == "a Liar"
    assert not_data("<function 'f' at 0xc>") == "an object of its own"
    assert not_data(["f_1"], {"f_1"}) == "an object of its own"


class Wire:
    """Answers a question with a prepared line."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def send(self, message: object) -> None:
        """Nobody listens."""

    def receive(self) -> object:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [1, None, "passed", [], {}, {"value": 3}, {"value": {"int": "z"}}, {"value": {"set": [{"list": []}]}},
     {"gone": "x"}, {"value": {"int": "0x1", "float": "1"}}, {"raised": "SystemExit", "message": "", "text": ""},
     {"raised": "print", "message": "", "text": ""}, {"raised": "ValueError"}, {"value": {"object": []}}],
)  # fmt: skip
def test_an_answer_out_of_form_is_not_catchable_by_tests(answer: object) -> None:
    with pytest.raises(Gone):
        Candidate(Wire(answer)).ask(op="call")  # type: ignore[arg-type]
    assert not issubclass(Gone, Exception)


def test_a_handle_is_never_compared() -> None:
    handle = Handle(lambda **_: 3, 0)
    for compare in (lambda: handle == 3, lambda: handle != 3, lambda: bool(handle), lambda: handle in [3]):
        with pytest.raises(Unsupported):
            compare()
    with pytest.raises(Unsupported):
        hash(handle)
    assert not issubclass(Unsupported, Exception)


def test_names_are_the_candidates_only_when_nothing_else_can_be_meant() -> None:
    tests = "import math as m\ndef t(a):\n    b = f(a)\n    return len(b) + m.pi + os.x\nt(g)\nclass C: pass\nC, h.y"
    assert free_names(tests) == (["f", "g", "h", "os"], ["h", "os"])


# --- the filter of system calls


def decision(machine: str, number: int, argument: int = 0, architecture: int | None = None) -> int:
    """What the kernel's machine makes of the filter: a small interpreter of its instructions."""
    words = {0: number, 4: ARCHITECTURES[machine] if architecture is None else architecture, 16: argument}
    program = instructions(machine)
    at, held = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        if code == 0x06:
            return operand
        if code == 0x20:
            held, jump = words[operand], 0
        else:
            true = {0x15: held == operand, 0x35: held >= operand, 0x45: bool(held & operand)}[code]
            jump = if_true if true else if_false
        at += 1 + jump


DENY = FAIL | 1


@pytest.mark.parametrize(
    ("machine", "denied", "allowed", "clone", "sockets"),
    [("x86_64", {"unshare": 272, "mount": 165, "ptrace": 101, "bpf": 321, "setns": 308, "io_uring_setup": 425},
      {"read": 0, "write": 1, "fork": 57, "execve": 59, "exit_group": 231}, 56, 41),
     ("aarch64", {"unshare": 97, "mount": 40, "ptrace": 117, "bpf": 280, "setns": 268, "io_uring_setup": 425},
      {"read": 63, "write": 64, "execve": 221, "exit_group": 94}, 220, 198)],
)  # fmt: skip
def test_the_filter_decides_as_written(
    machine: str, denied: dict[str, int], allowed: dict[str, int], clone: int, sockets: int
) -> None:
    assert {name for name, number in denied.items() if decision(machine, number) != DENY} == set()
    assert {name for name, number in allowed.items() if decision(machine, number) != ALLOW} == set()
    assert decision(machine, clone, 0x01200011) == ALLOW  # a fork
    assert decision(machine, clone, 0x003D0F00) == ALLOW  # a thread
    for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x08000000, 0x04000000, 0x02000000):
        assert decision(machine, clone, flag | 17) == DENY
    assert decision(machine, 435) == FAIL | 38  # clone3 is not there
    families = {family for family in range(46) if decision(machine, sockets, family) == ALLOW}
    assert families == {1, 2, 10}
    assert decision(machine, 0x40000000 + 1) == DENY
    assert decision(machine, 1, architecture=0x40000003) == DENY  # another architecture's numbers


# --- the image


def package(files: dict[str, int]) -> bytes:
    """A package's tar archive with these files and modes; each holds its own name."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, mode in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.mode, member.size, member.uid, member.mtime = mode, len(name), 1000, 99
            archive.addfile(member, io.BytesIO(name.encode()))
    return made.getvalue()


def test_the_archive_has_no_setuid_program_and_is_the_same_each_time() -> None:
    first = package({"usr/bin/python3.11": 0o755, "bin/su": 0o4755})
    second = package({"lib/libx.so": 0o666, "usr/share/doc/x": 0o644})
    made = []
    for _ in range(2):
        made.append(io.BytesIO())
        write_archive([first, second], made[-1])
    assert made[0].getvalue() == made[1].getvalue()
    with tarfile.open(fileobj=io.BytesIO(made[0].getvalue())) as archive:
        members = {member.name: member for member in archive}
        held = archive.extractfile("usr/bin/su")
        assert held is not None
        assert held.read() == b"bin/su"
    assert {name for name in members if members[name].mode & 0o6000} == set()
    assert (members["usr/bin/su"].mode, members["usr/lib/libx.so"].mode) == (0o755, 0o644)
    assert (members["lib"].linkname, members["usr/bin/python3"].linkname) == ("usr/lib", "python3.11")
    assert "usr/share/doc/x" not in members
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}


def test_an_image_is_pulled_by_digest_alone() -> None:
    with pytest.raises(SandboxUnavailableError, match="pulled by its digest, got python:3.12-slim"):
        pull_image(None, "python:3.12-slim", "localhost/x:latest")
