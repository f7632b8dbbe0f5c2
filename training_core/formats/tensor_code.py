"""The four encodings of a tensor in a container. Each class holds exactly the information that the file stores.

Hence `dequantize()` before writing equals `dequantize()` after reading, bit for bit, and a training graph that
computes with these values is the model in the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from training_core.formats.codec import CodecError, decode_ternary, encode_ternary, squeeze, unsqueeze

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
Half = npt.NDArray[np.float16]
Float = npt.NDArray[np.float32]
LARGEST_HALF = 65504.0
OCTAVE = 32  # row scales are stored on a grid of 1/32 octave, with a relative error of at most 1.1 %
_MAX_STEP = 255


class TensorCode(Protocol):
    """A tensor in the form that a container stores."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""

    def dequantize(self) -> Float:
        """Return the tensor, float32, exactly as a reader of the file obtains it."""

    def payload(self) -> bytes:
        """Return the bytes stored in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class TernaryCode:
    """`codes` int8 in {-1, 0, +1} times one `scale`, a float16 value of at least 0 (two bytes)."""

    codes: Int8
    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.codes.shape

    def dequantize(self) -> Float:
        """Return codes * scale, float32."""
        return self.codes.astype(np.float32) * np.float32(self.scale)

    def payload(self) -> bytes:
        """Return the scale and the entropy-coded symbols."""
        return struct.pack("<e", self.scale) + encode_ternary(self.codes)

    @classmethod
    def from_payload(cls, data: bytes, shape: tuple[int, ...]) -> TernaryCode:
        """Decode the bytes of `payload`."""
        scale = _unpack("<e", data)
        return cls(decode_ternary(data[2:], math.prod(shape)).reshape(shape), scale)


@dataclass(frozen=True, slots=True, eq=False)
class TernaryRowsCode:
    """Ternary codes with one scale per row: scale_r = base * 2^(-steps_r / 32), rounded to float32.

    `codes` int8 (rows, ...); `steps` uint8 (rows,), the logarithmic int8 scale; `base` a positive float16
    value.
    """

    codes: Int8
    steps: UInt8
    base: float

    def __post_init__(self) -> None:
        _check_scale(self.base)
        if self.codes.ndim < 2 or self.steps.shape != self.codes.shape[:1]:
            raise ValueError(
                f"steps must have one entry per row of codes with two or more dimensions, got {self.steps.shape} for "
                f"{self.codes.shape}; use TernaryCode for a vector"
            )

    @classmethod
    def from_scales(cls, codes: Int8, scales: Float) -> TernaryRowsCode:
        """Round positive `scales` (rows,) to the grid; base is the largest, rounded to float16.

        Scales below base / 250 are raised to it. Values on the grid are unchanged.

        Raises:
            ValueError: when a scale is not positive and finite, or the largest is not representable in
                float16.
        """
        exact = np.asarray(scales, dtype=np.float64).reshape(-1)
        if exact.size == 0 or not np.isfinite(exact).all() or exact.min() <= 0 or exact.max() > LARGEST_HALF:
            raise ValueError(f"row scales must be positive and at most 65504, got {scales!r}; clamp them first")
        base = float(np.float16(exact.max()))
        if base == 0:
            raise ValueError(f"the largest row scale must be at least 2^-24, got {exact.max()}; rescale the tensor")
        steps = np.clip(np.rint(-OCTAVE * np.log2(exact / base)), 0, _MAX_STEP).astype(np.uint8)
        return cls(codes, steps, base)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.codes.shape

    def scales(self) -> Float:
        """Return the scale of each row, float32 (rows,)."""
        return (self.base * _GRID[self.steps]).astype(np.float32)

    def dequantize(self) -> Float:
        """Return codes * scales, float32."""
        scales = self.scales().reshape(-1, *(1 for _ in self.shape[1:]))
        return self.codes.astype(np.float32) * scales

    def payload(self) -> bytes:
        """Return base, length of the compressed steps, the compressed steps and the entropy-coded symbols."""
        steps = squeeze(self.steps.tobytes())
        return struct.pack("<eI", self.base, len(steps)) + steps + encode_ternary(self.codes)

    @classmethod
    def from_payload(cls, data: bytes, shape: tuple[int, ...]) -> TernaryRowsCode:
        """Decode the bytes of `payload`."""
        base, length = _unpack("<e", data), int(_unpack("<I", data[2:]))
        if len(shape) < 2 or length > len(data) - 6:
            raise CodecError(f"a tensor of shape {shape} cannot have {length} bytes of row scales; it is damaged")
        steps = np.frombuffer(unsqueeze(data[6 : 6 + length], shape[0]), dtype=np.uint8)
        return cls(decode_ternary(data[6 + length :], math.prod(shape)).reshape(shape), steps, base)


@dataclass(frozen=True, slots=True, eq=False)
class HalfCode:
    """A finite float16 tensor."""

    values: Half

    def __post_init__(self) -> None:
        if self.values.dtype != np.float16 or not np.isfinite(self.values).all():
            raise ValueError(f"values must be finite float16, got {self.values.dtype}; use HalfCode.from_values")

    @classmethod
    def from_values(cls, values: Float) -> HalfCode:
        """Round `values` to float16.

        Raises:
            ValueError: when a value is not finite or exceeds 65504.
        """
        if not np.isfinite(values).all() or (values.size and np.abs(values).max() > LARGEST_HALF):
            raise ValueError("values must be finite and within +-65504 to be stored as float16; rescale the tensor")
        return cls(np.asarray(values, dtype=np.float16))

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.values.shape

    def dequantize(self) -> Float:
        """Return the values as float32."""
        return self.values.astype(np.float32)

    def payload(self) -> bytes:
        """Return all low bytes, then all high bytes, compressed."""
        # Byte planes compress better: sign and exponent are repetitive, the low bits of the mantissa are not.
        return squeeze(self.values.astype("<f2").reshape(-1, 1).view(np.uint8).T.tobytes())

    @classmethod
    def from_payload(cls, data: bytes, shape: tuple[int, ...]) -> HalfCode:
        """Decode the bytes of `payload`."""
        planes = np.frombuffer(unsqueeze(data, 2 * math.prod(shape)), dtype=np.uint8).reshape(2, -1)
        return cls(np.ascontiguousarray(planes.T).view("<f2").astype(np.float16).reshape(shape))


@dataclass(frozen=True, slots=True, eq=False)
class Int8Code:
    """`codes` int8 in [-127, 127] times one float32 `scale`, max|x| / 127."""

    codes: Int8
    scale: float

    def __post_init__(self) -> None:
        if not (0 <= self.scale < math.inf and float(np.float32(self.scale)) == self.scale):
            raise ValueError(f"scale must be a non-negative float32 value, got {self.scale}; use from_values")

    @classmethod
    def from_values(cls, values: Float) -> Int8Code:
        """Round `values` to the nearest of 255 levels between -max|x| and max|x|.

        Raises:
            ValueError: when a value is not finite.
        """
        if not np.isfinite(values).all():
            raise ValueError("values must be finite to be stored as int8; the tensor has diverged")
        scale = float(np.float32(np.abs(values).max() / 127)) if values.size else 0.0
        codes = np.rint(np.asarray(values, dtype=np.float64) / scale) if scale else np.zeros(values.shape)
        return cls(np.clip(codes, -127, 127).astype(np.int8), scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.codes.shape

    def dequantize(self) -> Float:
        """Return codes * scale, float32."""
        return self.codes.astype(np.float32) * np.float32(self.scale)

    def payload(self) -> bytes:
        """Return the scale and the compressed codes."""
        return struct.pack("<f", self.scale) + squeeze(self.codes.tobytes())

    @classmethod
    def from_payload(cls, data: bytes, shape: tuple[int, ...]) -> Int8Code:
        """Decode the bytes of `payload`."""
        scale = _unpack("<f", data)
        codes = np.frombuffer(unsqueeze(data[4:], math.prod(shape)), dtype=np.int8)
        return cls(codes.reshape(shape), scale)


def decode_tensor(letter: str, data: bytes, shape: tuple[int, ...]) -> TensorCode:
    """Decode a payload into the tensor of `shape` whose class has `letter` in CLASSES.

    Raises:
        CodecError: when `data` is not such a payload.
    """
    if letter not in CLASSES:
        raise CodecError(f"tensor code must be one of {', '.join(CLASSES)}, got {letter!r}; the file is damaged")
    try:
        return CLASSES[letter].from_payload(data, shape)
    except ValueError as error:
        raise (error if isinstance(error, CodecError) else CodecError(f"the file is damaged: {error}")) from error


def _unpack(layout: str, data: bytes) -> float:
    if len(data) < struct.calcsize(layout):
        raise CodecError("a tensor is cut short; the file is damaged")
    return float(struct.unpack_from(layout, data)[0])


def _check_scale(scale: float) -> None:
    if not 0 <= scale <= LARGEST_HALF or float(np.float16(scale)) != scale:
        raise ValueError(f"a ternary scale must be a float16 value of at least 0, got {scale}; round it before use")


def _octave_grid() -> npt.NDArray[np.float64]:
    """2^(-k / 32), k = 0..255, by square roots and products, which IEEE arithmetic rounds equally on every machine."""
    roots = [0.5]
    while len(roots) < 6:
        roots.append(math.sqrt(roots[-1]))  # 2^-1, 2^-1/2, 2^-1/4, ... 2^-1/32
    grid = np.empty(_MAX_STEP + 1)
    for k in range(_MAX_STEP + 1):
        fraction = math.prod(root for bit, root in zip((16, 8, 4, 2, 1), roots[1:], strict=True) if k & bit)
        grid[k] = math.ldexp(fraction, -(k // OCTAVE))
    return grid


_GRID = _octave_grid()
CLASSES: Mapping[str, type[TernaryCode | TernaryRowsCode | HalfCode | Int8Code]] = {
    "t": TernaryCode,
    "r": TernaryRowsCode,
    "h": HalfCode,
    "i": Int8Code,
}
