"""A container's standard streams over the engine's attach socket, with a cap enforced while streaming."""

import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

HEADER_BYTES = 8
STDOUT, STDERR = 1, 2
READ_BYTES = 1 << 16


class OutputLimitError(ValueError):
    """Raised when a container exceeds its output limit."""


class Attachment:
    """The standard streams of one container. Frames on the socket: stream number, three zero bytes, length, bytes.

    Args:
        stream: the return value of docker's `attach_socket`.
        cap: bytes of buffered output above which reading raises `OutputLimitError`; `take_line` frees its line.
    """

    def __init__(self, stream: Any, cap: int) -> None:
        self._stream = stream
        self._socket: socket.socket = getattr(stream, "_sock", stream)
        self._socket.setblocking(False)
        self._cap = cap
        self._frames = bytearray()
        self._to_send = bytearray()
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.ended = False

    def send(self, data: bytes) -> None:
        """Queue bytes for the container's standard input; `pump` sends them."""
        self._to_send += data

    def take_line(self) -> bytes | None:
        """Return the next complete line of standard output, without its end; None if there is none yet."""
        end = self.stdout.find(b"\n")
        if end < 0:
            return None
        line = bytes(self.stdout[:end])
        del self.stdout[: end + 1]
        return line

    def fileno(self) -> int:
        """Return the socket's descriptor, for `select`."""
        return self._socket.fileno()

    @property
    def waits_to_send(self) -> bool:
        """Whether queued input remains to be sent."""
        return bool(self._to_send) and not self.ended

    def transmit(self) -> None:
        """Send as much queued input as the socket accepts now."""
        try:
            sent = self._socket.send(self._to_send)
        except BlockingIOError:
            return
        except OSError:  # the container is gone; its remaining output is still read
            self._to_send.clear()
            return
        del self._to_send[:sent]

    def collect(self) -> None:
        """Read the data that the socket has now.

        Raises:
            OutputLimitError: when the cap is exceeded; the kept output is truncated to it.
        """
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
            return
        self._frames += data
        while len(self._frames) >= HEADER_BYTES:
            stream, length = struct.unpack(">BxxxL", self._frames[:HEADER_BYTES])
            body = self._frames[HEADER_BYTES : HEADER_BYTES + length]
            room = self._cap - len(self.stdout) - len(self.stderr)
            if length > room:  # raised without waiting for the body: a frame may announce more than fits in memory
                self._keep(stream, body[:room])
                raise OutputLimitError(f"more than {self._cap} bytes of output")
            if len(body) < length:
                return
            self._keep(stream, body)
            del self._frames[: HEADER_BYTES + length]

    def _keep(self, stream: int, body: bytes | bytearray) -> None:
        (self.stderr if stream == STDERR else self.stdout).extend(body)

    def close(self) -> None:
        """Close the client's HTTP response that owns the socket, then the socket."""
        if (response := getattr(self._stream, "_response", None)) is not None:
            response.close()
        self._socket.close()


def pump(attachments: Sequence[Attachment], deadline: float) -> bool:
    """Transfer available bytes of all attachments once; return False if `deadline` (`time.monotonic`) has passed.

    Raises:
        OutputLimitError: from `Attachment.collect`.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    reading = [each for each in attachments if not each.ended]
    writing = [each for each in attachments if each.waits_to_send]
    readable, writable, _ = select.select(reading, writing, [], left)
    for each in writable:
        each.transmit()
    for each in readable:
        each.collect()
    return True
