"""Entropy coding of ternary symbols, and general-purpose compression of everything else.

Ternary symbols go through asymmetric numeral systems (Duda 2013, arXiv 1311.2540) as implemented by
`constriction`, with one static probability table per tensor. The table consists of integers that sum to 65535 and
is stored with the stream, so encoder and decoder build the same model on every machine. Other bytes are stored raw,
deflated or LZMA-compressed, whichever is smallest.

**Does not cover** arithmetic-coded int8 weights: a deflate stream with Huffman codes only is within a few
percent of their entropy and needs no table of ours.
"""

from __future__ import annotations

import lzma
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]

TABLE_TOTAL = 65535  # probabilities are integers / 65535, so each fits in two bytes; the third follows from two
_CHUNK = 1 << 20  # symbols coded at a time, to bound the int32 copies that constriction needs
_RAW, _DEFLATE, _LZMA = 0, 1, 2
_LZMA_LEAST = 256  # bytes; below this size LZMA is never the smallest
_LZMA_FILTERS: list[Mapping[str, Any]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "dict_size": 1 << 16,
        "lc": 3,
        "lp": 0,
        "pb": 0,
        "nice_len": 273,
        "mode": lzma.MODE_NORMAL,
    }
]


class CodecError(ValueError):
    """Raised when bytes are not the output of the encoder."""


def encode_ternary(codes: Int8) -> bytes:
    """Encode int8 `codes` in {-1, 0, +1}, any shape, with ANS in row-major order; an empty array gives no bytes.

    Layout: the frequencies of -1 and +1 as two little-endian uint16 (0 has the rest of 65535), then the
    coder's 32-bit words, little-endian, without trailing zero bytes. If only one symbol occurs, nothing follows
    the table.

    Raises:
        ValueError: when another value occurs.
    """
    flat = codes.reshape(-1)
    if flat.size == 0:
        return b""
    counts = _counts(flat)
    if sum(counts) != flat.size:
        raise ValueError(f"ternary codes must be -1, 0 or +1, got {flat.min()} to {flat.max()}; ternarize first")
    table = _frequencies(counts)
    header = struct.pack("<HH", table[0], table[2])
    present = [index for index, frequency in enumerate(table) if frequency]
    if len(present) == 1:
        return header
    import constriction

    coder, model = constriction.stream.stack.AnsCoder(), _categorical([table[index] for index in present])
    ranks = np.zeros(3, dtype=np.int32)
    ranks[present] = np.arange(len(present))
    for start in reversed(range(0, flat.size, _CHUNK)):  # ANS is a stack: the last chunk encoded is decoded first
        coder.encode_reverse(ranks[flat[start : start + _CHUNK].astype(np.int32) + 1], model)
    return header + words_to_bytes(coder.get_compressed())


def decode_ternary(data: bytes, count: int) -> Int8:
    """Decode the `count` codes, int8 (count,), of `encode_ternary`.

    Memory is allocated only after `count` has been checked against the length of `data`.

    Raises:
        CodecError: when `data` is not the code of `count` symbols.
    """
    if count == 0 and not data:
        return np.zeros(0, dtype=np.int8)
    if count <= 0 or len(data) < 4:
        raise CodecError(f"{len(data)} bytes cannot be the code of {count} ternary symbols; the stream is damaged")
    minus, plus = struct.unpack_from("<HH", data)
    table = [minus, TABLE_TOTAL - minus - plus, plus]
    if table[1] < 0:
        raise CodecError(f"frequencies must sum to {TABLE_TOTAL}, got {minus} + {plus}; the stream is damaged")
    present = [index for index, frequency in enumerate(table) if frequency]
    if len(present) == 1:
        if len(data) != 4:
            raise CodecError("bytes follow a table with a single symbol; the stream is damaged")
        return np.full(count, present[0] - 1, dtype=np.int8)
    # Every symbol costs at least the code length of the most frequent one, which bounds `count` by the data's length.
    least_bits = -count * math.log2(max(table) / TABLE_TOTAL)
    if 0.98 * least_bits > 8 * len(data) + 64:
        raise CodecError(f"{count} symbols need {least_bits:.0f} bits, got {8 * len(data)}; the stream is damaged")
    coder, model = open_coder(data[4:]), _categorical([table[index] for index in present])
    symbols = np.array(present, dtype=np.int8) - np.int8(1)
    codes = np.empty(count, dtype=np.int8)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        codes[start : start + size] = symbols[coder.decode(model, size)]
    if not coder.is_empty() or _frequencies(_counts(codes)) != table:
        raise CodecError(f"the stream does not hold exactly {count} symbols; it is damaged")
    return codes


def words_to_bytes(words: npt.NDArray[np.uint32]) -> bytes:
    """Serialise the coder's words, little-endian; the last word is not zero, so its zero bytes need not be stored."""
    return words.astype("<u4").tobytes().rstrip(b"\0")


def open_coder(data: bytes) -> Any:
    """Open a constriction `AnsCoder` on the bytes of `words_to_bytes`.

    Raises:
        CodecError: when `data` ends with a zero byte, which `words_to_bytes` never writes.
    """
    import constriction

    if data.endswith(b"\0"):
        raise CodecError("an entropy-coded stream ends with a zero byte; it is damaged")
    return constriction.stream.stack.AnsCoder(
        np.frombuffer(data + b"\0" * (-len(data) % 4), dtype="<u4").astype(np.uint32)
    )


def _counts(flat: Int8) -> list[int]:
    return [int(np.count_nonzero(flat == symbol)) for symbol in (-1, 0, 1)]


def _frequencies(counts: list[int]) -> list[int]:
    """Integers proportional to `counts` that sum to TABLE_TOTAL; at least 1 for a count above 0, else 0."""
    total = sum(counts)
    table = [max(1, (count * TABLE_TOTAL + total // 2) // total) if count else 0 for count in counts]
    table[counts.index(max(counts))] += TABLE_TOTAL - sum(table)
    return table


def _categorical(frequencies: list[int]) -> Any:
    """constriction's model of the frequencies. Integers in float64 undergo only IEEE additions and products, so the
    model is the same on every machine."""
    import constriction

    return constriction.stream.model.Categorical(np.array(frequencies, dtype=np.float64), perfect=False)


def squeeze(data: bytes) -> bytes:
    """Return a method byte followed by `data` raw, deflated or LZMA-compressed, whichever is smallest."""
    candidates = [bytes([_RAW]) + data]
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY):
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        candidates.append(bytes([_DEFLATE]) + deflater.compress(data) + deflater.flush())
    if len(data) >= _LZMA_LEAST:
        candidates.append(bytes([_LZMA]) + lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA_FILTERS))
    return min(candidates, key=len)


def unsqueeze(data: bytes, size: int) -> bytes:
    """Return the `size` bytes that `squeeze` was given, decompressing at most `size` + 1 bytes of untrusted data.

    Raises:
        CodecError: when `data` does not hold exactly `size` bytes.
    """
    method, body = data[:1], data[1:]
    try:
        if method == bytes([_RAW]):
            content, ended = body, True
        elif method == bytes([_DEFLATE]):
            inflater = zlib.decompressobj(-15)
            content = inflater.decompress(body, size + 1)
            ended = inflater.eof and not inflater.unused_data
        elif method == bytes([_LZMA]):
            unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA_FILTERS)
            content = unpacker.decompress(body, size + 1)
            ended = unpacker.eof and not unpacker.unused_data
        else:
            raise CodecError(f"compression method must be 0, 1 or 2, got {method!r}; the stream is damaged")
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise CodecError(f"a compressed section cannot be read ({error}); it is damaged") from error
    if len(content) != size or not ended:
        raise CodecError(f"a section must hold exactly {size} bytes, and does not; it is damaged")
    return content
