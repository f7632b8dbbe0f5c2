"""The container `model.forge`: one self-contained file with configuration, tokenizer and weights.

    bytes  content
    6      magic "FORGE" and the format version
    n      directory: JSON {"config": {...}, "tensors": [[names], "letters", [[shapes]]]}, compressed;
           preceded by its two lengths, uncompressed and compressed
    n      tokenizer in its compact form, preceded by its length
    n      per tensor, in the directory's order: its payload, preceded by its length
    32     SHA-256 of everything before

Lengths are LEB128 (seven bits per byte, least significant first). A reader verifies the digest first, so a
damaged file is never partly read. Because anyone can compute a digest, it also checks every announced value: at
most 2^27 weights in total, at most 2^20 bytes of directory, exact sizes after decompression, no trailing bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training_core.formats.codec import CodecError, squeeze, unsqueeze
from training_core.formats.tensor_code import CLASSES, TensorCode, decode_tensor
from training_core.formats.tokenizer_codec import compact, expand
from training_core.store.bundle import canonical_json

MAGIC = b"FORGE"
VERSION = 1
MAX_ELEMENTS = 1 << 27
MAX_DIMENSIONS = 8
MAX_DIRECTORY_BYTES = 1 << 20
_DIGEST_BYTES = 32
_CONFIG_REPAIR = "use lists, text keys and finite numbers only"
_NAME = re.compile(r"[!-~]{1,256}")


class ContainerError(CodecError):
    """Raised when bytes are not a container of this version, or are damaged or forged."""


@dataclass(frozen=True, slots=True)
class Container:
    """The contents of a container; `tensors` keeps the order in which they were written."""

    config: dict[str, Any]
    tokenizer_json: str
    tensors: dict[str, TensorCode]

    def dequantize(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return every tensor as float32."""
        return {name: tensor.dequantize() for name, tensor in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    letter: str
    shape: tuple[int, ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Layout:
    config: dict[str, Any]
    tokenizer: bytes
    entries: list[_Entry]
    sizes: dict[str, int]


def write_container(config: Mapping[str, Any], tokenizer_json: str, tensors: Mapping[str, TensorCode]) -> bytes:
    """Return the bytes of `model.forge`. Equal arguments give equal bytes.

    Raises:
        ValueError: when `config` is not a JSON object with finite numbers, the tokenizer has no compact form,
            a name is not 1 to 256 printable ASCII characters without spaces, or the whole exceeds a reader's
            limits.
    """
    letters = {kind: letter for letter, kind in CLASSES.items()}
    listing = [list(tensors), "".join(letters[type(code)] for code in tensors.values())]  # type: ignore[index]
    shapes = [list(code.shape) for code in tensors.values()]
    document = {"config": dict(config), "tensors": [*listing, shapes]}
    try:
        directory = canonical_json(document)
        comes_back = _parse_directory(directory)[0] == dict(config)
    except TypeError as error:
        raise ValueError(f"config must be a JSON object ({error}); {_CONFIG_REPAIR}") from error
    if not comes_back:
        raise ValueError(f"config must come back from JSON as it is; {_CONFIG_REPAIR}")
    packed = squeeze(directory)
    parts = [MAGIC + bytes([VERSION]), _varint(len(directory)), _varint(len(packed)), packed]
    for part in (compact(tokenizer_json), *(code.payload() for code in tensors.values())):
        parts += [_varint(len(part)), part]
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def read_container(data: bytes) -> Container:
    """Verify and decode the container in `data`.

    Raises:
        ContainerError: when `data` is not a complete, undamaged container of this version within the limits.
    """
    layout = _layout(data)
    try:
        tokenizer_json = expand(layout.tokenizer)
        tensors = {e.name: decode_tensor(e.letter, e.payload, e.shape) for e in layout.entries}
    except CodecError as error:
        raise ContainerError(f"a section of the container cannot be decoded: {error}") from error
    return Container(layout.config, tokenizer_json, tensors)


def describe(data: bytes) -> dict[str, int]:
    """Return the size in bytes of each part of a container: "magic", "directory", "tokenizer", "tensor <name>"...,
    "checksum".

    Each part includes its length prefix; the values sum to `len(data)`.

    Raises:
        ContainerError: as `read_container`, but without decoding tokenizer and tensors.
    """
    return _layout(data).sizes


class _Cursor:
    """A bounds-checked reader that consumes `data` from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.position:
            raise ContainerError(
                f"{size} bytes are announced at byte {self.position} and {len(self.data) - self.position} "
                "are left; "
                "the container is damaged"
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def varint(self) -> int:
        value = 0
        for index in range(5):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if byte == 0 and index:
                    break
                return value
        raise ContainerError(f"a length before byte {self.position} is malformed; the container is damaged")


def _layout(data: bytes) -> _Layout:
    """Verify `data` and split it into sections, with the size of each."""
    smallest = len(MAGIC) + 1 + _DIGEST_BYTES
    if len(data) < smallest or not data.startswith(MAGIC):
        raise ContainerError(f"not a container: it must start with {MAGIC!r} and have at least {smallest} bytes")
    if data[len(MAGIC)] != VERSION:
        raise ContainerError(f"container version is {data[len(MAGIC)]}, this program reads version {VERSION}")
    if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise ContainerError("the container's SHA-256 does not match: it is cut short or damaged; copy it again")
    cursor = _Cursor(data[:-_DIGEST_BYTES])
    cursor.position = len(MAGIC) + 1
    sizes = {"magic": cursor.position}
    config, listing = _read_directory(cursor)
    sizes["directory"] = cursor.position - sizes["magic"]
    start = cursor.position
    tokenizer = cursor.take(cursor.varint())
    sizes["tokenizer"] = cursor.position - start
    entries = []
    for name, letter, shape in listing:
        start = cursor.position
        entries.append(_Entry(name, letter, shape, cursor.take(cursor.varint())))
        sizes[f"tensor {name}"] = cursor.position - start
    if cursor.position != len(cursor.data):
        raise ContainerError(f"{len(cursor.data) - cursor.position} bytes follow the last tensor; it is damaged")
    sizes["checksum"] = _DIGEST_BYTES
    return _Layout(config, tokenizer, entries, sizes)


def _read_directory(cursor: _Cursor) -> tuple[dict[str, Any], list[tuple[str, str, tuple[int, ...]]]]:
    size = cursor.varint()
    if size > MAX_DIRECTORY_BYTES:
        raise ContainerError(f"a directory must have at most {MAX_DIRECTORY_BYTES} bytes, got {size}; it is damaged")
    try:
        return _parse_directory(unsqueeze(cursor.take(cursor.varint()), size))
    except CodecError as error:
        raise error if isinstance(error, ContainerError) else ContainerError(f"directory: {error}") from error


def _parse_directory(directory: bytes) -> tuple[dict[str, Any], list[tuple[str, str, tuple[int, ...]]]]:
    """Configuration and (name, letter, shape) of each tensor; all limits are checked before anything is allocated."""
    try:
        document = json.loads(directory, parse_constant=_no_constant)
        canonical = canonical_json(document) == directory  # excludes keys that occur twice
        config, (names, letters, shapes) = document["config"], document["tensors"]
        if not isinstance(names, list) or not isinstance(letters, str) or not isinstance(shapes, list):
            raise TypeError("names and shapes must be lists, letters a text")
        listing = list(zip(names, letters, shapes, strict=True))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContainerError(f"the directory is not what a container holds ({error}); the file is damaged") from error
    if not canonical or len(directory) > MAX_DIRECTORY_BYTES or not isinstance(config, dict):
        raise ContainerError("the directory must be a canonical JSON object of at most 1 MiB; the file is damaged")
    total = 0
    for name, letter, shape in listing:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or letter not in CLASSES:
            raise ContainerError(f"a tensor must have a printable ASCII name and a known code, got {name!r} {letter!r}")
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
            raise ContainerError(f"{name} must have at most {MAX_DIMENSIONS} sizes of 0 to 2^27, got {shape!r:.100}")
        total += math.prod(max(size, 1) for size in shape)
        if total > MAX_ELEMENTS:
            raise ContainerError(f"a container must have at most {MAX_ELEMENTS} weights; {name} exceeds that")
    if len(set(names)) != len(listing):
        raise ContainerError("a tensor's name occurs twice; the file is damaged")
    return config, [(name, letter, tuple(shape)) for name, letter, shape in listing]


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def _no_constant(text: str) -> float:
    raise ContainerError(f"numbers must be finite, got {text}")


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
