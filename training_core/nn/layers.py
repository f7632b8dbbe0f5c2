"""Layers shared by every block: SwiGLU, factorised projections, rotary positions, causal depthwise convolution.

Shape legend: B batch, S sequence, D model width, F feed-forward width, H heads, K head width, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10_000.0


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms over the last axis, with keepdim; in-place operations avoid temporaries of the size of x."""
    inverse: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return inverse


class _RMSNormFunction(torch.autograd.Function):
    """x / rms(x) * gain with a closed-form gradient: a third of the memory traffic of the composed operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, gain, inverse)
        out: Tensor = x * inverse * gain
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, inverse = ctx.saved_tensors
        (grad,) = grad_outputs
        unit = x * inverse
        grad_gain = (grad * unit).flatten(0, -2).sum(0)
        scaled = grad * gain
        along = (scaled * unit).mean(-1, keepdim=True)
        return (scaled - unit * along) * inverse, grad_gain, None


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis with a learned gain (Zhang & Sennrich, 2019, eq. 4).

    Computed in float32 under autocast; the result has the input's dtype.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (..., width)."""
        full = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        if not torch.is_grad_enabled():
            return (full * _inverse_rms(full, self.eps) * self.weight).to(x.dtype)
        out: Tensor = _RMSNormFunction.apply(full, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x) (Shazeer, 2020, eq. 6), without biases."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Map (batch, seq, d_model) to the same shape."""
        out: Tensor = self.down(F.silu(self.gate(x_BSD)) * self.up(x_BSD))
        return out


class FactorizedLinear(nn.Module):
    """x -> W_up W_down x with an inner rank: d_in * rank + rank * d_out weights instead of d_in * d_out."""

    def __init__(self, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, rank, bias=False)
        self.up = nn.Linear(rank, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        out: Tensor = self.up(self.down(x))
        return out


class CausalConv(nn.Module):
    """Depthwise convolutions over time that see the current and the `kernel - 1` previous positions.

    With `copies` > 1 each channel has as many kernels; the output (..., copies * width) holds one copy after the other.
    Initialised to the identity plus normal noise of deviation `std`.
    """

    def __init__(self, width: int, kernel: int, std: float, copies: int = 1) -> None:
        super().__init__()
        self.kernel, self.copies = kernel, copies
        weight = torch.randn(copies * width, 1, kernel) * std
        weight[:, :, -1] += 1.0
        self.weight = nn.Parameter(weight)

    def forward(self, x_BSD: Tensor, tail_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve (batch, seq, width). `tail_BTD` holds the `kernel - 1` inputs before `x`, zeros at the start.

        Returns the output and the tail for the next call.
        """
        if tail_BTD is None:
            tail_BTD = x_BSD.new_zeros(x_BSD.shape[0], self.kernel - 1, x_BSD.shape[2])
        padded = torch.cat([tail_BTD, x_BSD], dim=1)
        channels = padded.transpose(1, 2).repeat(1, self.copies, 1)
        out = F.conv1d(channels, self.weight.to(x_BSD.dtype), groups=channels.shape[1])
        return out.transpose(1, 2), padded[:, padded.shape[1] - self.kernel + 1 :]

    def last(self, x_D: Tensor, tail_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve one position of many independent sequences: (..., width) after its tail (..., kernel - 1, width).

        Returns the output (..., copies * width) and the next tail.
        """
        padded = torch.cat([tail_TD, x_D.unsqueeze(-2)], dim=-2)
        channels = torch.cat([padded] * self.copies, dim=-1)
        return (channels * self.weight.to(x_D.dtype)[:, 0].T).sum(-2), padded[..., 1:, :]


def rotary_table(positions: Tensor, head_width: int) -> Tensor:
    """Return e^(i angle) of integer `positions` (...), complex (..., 1, head_width / 2) (Su et al., 2021, eq. 15)."""
    pairs = torch.arange(0, head_width, 2, dtype=torch.float64, device=positions.device)
    angle = positions.double()[..., None, None] * ROTARY_BASE ** (-pairs / head_width)
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x_BSHK: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (x_2i, x_2i+1) of every head by the position's angles, as complex numbers."""
    full = x_BSHK.double() if x_BSHK.dtype == torch.float64 else x_BSHK.float()
    pairs = torch.view_as_complex(full.view(*full.shape[:-1], -1, 2))
    rotated = torch.view_as_real(pairs * table.to(pairs.dtype)).flatten(-2)
    return rotated.to(x_BSHK.dtype)


def split_heads(x_BSD: Tensor, num_heads: int) -> Tensor:
    """Reshape (batch, seq, heads * width) to (batch, heads, seq, width)."""
    batch, seq, width = x_BSD.shape
    return x_BSD.view(batch, seq, num_heads, width // num_heads).transpose(1, 2)


def join_heads(x_BHSK: Tensor) -> Tensor:
    """Reshape (batch, heads, seq, width) to (batch, seq, heads * width)."""
    batch, heads, seq, width = x_BHSK.shape
    return x_BHSK.transpose(1, 2).reshape(batch, seq, heads * width)
