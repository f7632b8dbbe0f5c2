"""One byte for each value of a row, and a float16 scale for the row: value = scale * code / 127.

The scale is the largest absolute value of the row, rounded to float16, so that codes reach from -127 to 127; a code is
off by half of scale / 127 at most, where rounding the scale did not shorten the row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training_core.nn.ternary import SMALLEST_HALF

MOST_CODE = 127


def encode_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, int8 (..., n), and scales, float16 (...), nearest to values (..., n); computed in the type of `values`."""
    scales = values.abs().amax(-1).to(torch.float16)
    unit = scales.to(values.dtype).clamp(min=SMALLEST_HALF)[..., None]  # a row of zeros has codes of zero
    codes = (values / unit * MOST_CODE).round().clamp(-MOST_CODE, MOST_CODE)
    return codes.to(torch.int8), scales


def decode_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """The values (..., n) that codes and scales stand for, float32."""
    return scales.float()[..., None] * codes.float() / MOST_CODE
