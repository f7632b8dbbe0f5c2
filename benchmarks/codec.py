"""Size and speed of four lossless codes for ternary symbols, compared with the entropy.

    python -m benchmarks.codec [--symbols 262144] [--runs 7]

Symbols are i.i.d. draws from {-1, 0, +1}, zero with probability p0 and otherwise of either sign with equal
probability. "bytes / entropy" counts the whole stream, including tables and padding. Times are medians over the runs
after one warm-up. The input of zstd and LZMA is packed at five trits per byte.
"""

from __future__ import annotations

import argparse
import lzma
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import zstandard

from training_core.formats.codec import decode_ternary, encode_ternary
from training_core.formats.ternary_packing import pack_trits, unpack_trits

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Coder:
    """An encoder and its decoder under test."""

    name: str
    encode: Callable[[Codes], bytes]
    decode: Callable[[bytes, int], Codes]


def pack(codes: Codes) -> bytes:
    """Return the codes packed at five trits per byte."""
    return pack_trits(torch.from_numpy(codes)).numpy().tobytes()


def unpack(data: bytes, count: int) -> Codes:
    """Return `count` codes from packed bytes; the inverse of `pack`."""
    codes: Codes = unpack_trits(torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()), count).numpy()
    return codes


CODERS = (
    Coder("ANS (model.forge)", encode_ternary, decode_ternary),
    Coder("5 trits a byte (model.ternary)", pack, unpack),
    Coder(
        "5 trits + zstd-19",
        lambda codes: zstandard.ZstdCompressor(level=19).compress(pack(codes)),
        lambda data, count: unpack(zstandard.ZstdDecompressor().decompress(data), count),
    ),
    Coder(
        "5 trits + LZMA",
        lambda codes: lzma.compress(pack(codes), preset=9 | lzma.PRESET_EXTREME),
        lambda data, count: unpack(lzma.decompress(data), count),
    ),
)


def entropy_bits(codes: Codes) -> float:
    """Return the entropy of the sequence, n H of its empirical distribution, in bits."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def median_ms(function: Callable[[], object], runs: int) -> float:
    """Return the median wall time of `runs` calls in milliseconds, after one warm-up call."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def table_row(coder: Coder, zero: float, codes: Codes, runs: int) -> str:
    """Measure one coder and return its table row.

    Raises:
        ValueError: when decoding does not restore the input.
    """
    data, bits = coder.encode(codes), entropy_bits(codes)
    if not np.array_equal(coder.decode(data, codes.size), codes):
        raise ValueError(f"{coder.name} must restore the symbols that it encoded, but does not")
    encode_ms = median_ms(lambda: coder.encode(codes), runs)
    decode_ms = median_ms(lambda: coder.decode(data, codes.size), runs)
    return (
        f"| {zero} | {bits / codes.size:.4f} | {coder.name} | {len(data)} | {8 * len(data) / codes.size:.4f} "
        f"| {8 * len(data) / bits:.4f} | {encode_ms:.1f} | {decode_ms:.1f} |"
    )


def main() -> None:
    """Measure every coder at three zero probabilities and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=1 << 18)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.symbols} symbols, median of {arguments.runs} runs, one thread\n")
    print("| p0 | entropy, bit | code | bytes | bit / symbol | bytes / entropy | encode, ms | decode, ms |")
    print("|---|---|---|---|---|---|---|---|")
    symbols = np.array([-1, 0, 1], dtype=np.int8)
    for zero in (0.3, 0.5, 0.7):
        p = [(1 - zero) / 2, zero, (1 - zero) / 2]
        codes = np.random.default_rng(0).choice(symbols, size=arguments.symbols, p=p)
        for coder in CODERS:
            print(table_row(coder, zero, codes, arguments.runs))


if __name__ == "__main__":
    main()
