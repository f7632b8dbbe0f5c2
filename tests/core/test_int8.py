"""Rows as bytes: by hand, and never further off than half a step."""

from __future__ import annotations

import torch

from training_core.nn.int8 import decode_rows, encode_rows
from training_core.nn.linear_head import Head


def test_rows_by_hand() -> None:
    codes, scales = encode_rows(torch.tensor([[2.0, -1.0, 0.01], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[127, -64, 1], [0, 0, 0]]  # -63.5 to even; .01 / 2 * 127 = .635
    assert (codes.dtype, scales.dtype, scales.tolist()) == (torch.int8, torch.float16, [2.0, 0.0])
    torch.testing.assert_close(
        decode_rows(codes, scales), torch.tensor([[2.0, -128 / 127, 2 / 127], [0.0, 0.0, 0.0]]), rtol=1e-7, atol=0
    )


def test_values_come_back_within_half_a_step() -> None:
    """A float16 scale is off by 2^-11 of itself, which the largest value, clamped to 127, may lose as well."""
    values = torch.randn(50, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10.0
    codes, scales = encode_rows(values)
    error = (decode_rows(codes, scales) - values).abs()
    assert bool((error <= scales.double()[:, None] * (0.5 / 127 + 2.0**-11 + 1e-6)).all())
    assert bool((codes.abs().amax(1) >= 126).all())


def test_a_row_below_the_normal_numbers_of_float16_keeps_its_values() -> None:
    """Scales below 2^-14 are multiples of 2^-24: 3 * 2^-24 is one of them."""
    tiny = torch.tensor([[3.0, -1.5, 0.0]], dtype=torch.float64) * 2.0**-24
    stored = Head.of(tiny, torch.zeros(1)).weights()
    assert float((stored - tiny).abs().max()) <= 3 * 2.0**-24 * 0.5 / 127 * 1.0001
