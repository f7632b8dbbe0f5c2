"""Choice of the device and the precision of a run."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def best_device() -> torch.device:
    """Return the CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Return a bfloat16 autocast context if requested, or if `auto` finds a GPU that supports it; else a null context.

    On a CPU `auto` keeps float32: small models gain nothing from bfloat16 there, and results stay reproducible across
    machines.
    """
    wanted = precision == "bfloat16"
    if precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()
