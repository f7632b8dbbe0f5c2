"""Row-wise absmax int8 quantisation with a float16 scale per row: value = scale * code / 127.

The scale is the largest absolute value of the row, rounded to float16, so codes range from -127 to 127. The error is at
most half of scale / 127, unless rounding reduced the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training_core.nn.ternary import SMALLEST_HALF

MOST_CODE = 127


def encode_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise values (..., n) to codes int8 (..., n) and scales float16 (...), computing in the dtype of `values`."""
    scales = values.abs().amax(-1).to(torch.float16)
    unit = scales.to(values.dtype).clamp(min=SMALLEST_HALF)[..., None]  # a row of zeros has codes of zero
    codes = (values / unit * MOST_CODE).round().clamp(-MOST_CODE, MOST_CODE)
    return codes.to(torch.int8), scales


def decode_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """Dequantise codes and scales to values (..., n), float32."""
    return scales.float()[..., None] * codes.float() / MOST_CODE
