"""Compressed files read as streams. A frame that the file does not end is refused, because text would be missing."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from training_core.data.documents import CorpusError

COMPRESSED = (".gz", ".zst")
_CHUNK_BYTES = 1 << 14


def decompressed(file: BinaryIO, name: str | Path, suffix: str) -> BinaryIO:
    """Return the stream of what `file` holds: its frames (members of gzip) one after the other.

    suffix: ".gz" or ".zst"; any other returns `file` itself.

    Raises (when read):
        CorpusError: when the last frame is incomplete or the data is damaged, with the byte of the file.
    """
    if suffix == ".gz":
        return io.BufferedReader(_Frames(file, str(name), "gzip", lambda: zlib.decompressobj(31), zlib.error))
    if suffix == ".zst":
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        return io.BufferedReader(_Frames(file, str(name), "zstd", decompressor.decompressobj, zstandard.ZstdError))
    return file


class _Frames(io.RawIOBase):
    """Decompressed bytes of concatenated frames. The libraries' own readers end silently at a frame that is cut."""

    def __init__(self, file: BinaryIO, name: str, kind: str, new: Callable[[], Any], damage: type[Exception]) -> None:
        self._file, self._name, self._kind, self._new, self._damage = file, name, kind, new, damage
        self._frame: Any = None
        self._started = 0  # byte at which the current frame begins
        self._position = 0  # bytes of the file that were given to frames
        self._input = b""
        self._output = memoryview(b"")
        self._any = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._output and self._advance():
            pass
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _advance(self) -> bool:
        """Decompress one more piece; False at the end of the file."""
        self._input = self._input or self._file.read(_CHUNK_BYTES)
        if not self._input:
            if self._frame is not None or not self._any:
                raise CorpusError(
                    f"{self._name} ends at byte {self._position} inside the {self._kind} frame that begins at byte "
                    f"{self._started}: the file is cut short; copy or download it again"
                )
            return False
        if self._frame is None:
            if self._any and self._kind == "gzip":  # zeros after a member pad it to the blocks of a tape
                length = len(self._input)
                self._input = self._input.lstrip(b"\0")
                self._position += length - len(self._input)
                if not self._input:
                    return True
            self._frame, self._started, self._any = self._new(), self._position, True
        try:
            self._output = memoryview(self._frame.decompress(self._input))
        except self._damage as error:
            raise CorpusError(
                f"{self._name} is not valid {self._kind} in the frame that begins at byte {self._started} ({error}): "
                "copy or download it again, or correct its name if it is not compressed"
            ) from error
        rest = self._frame.unused_data if self._frame.eof else b""
        self._position += len(self._input) - len(rest)
        self._input = rest
        if self._frame.eof:
            self._frame = None
        return True
