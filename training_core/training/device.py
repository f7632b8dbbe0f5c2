"""Which device a phase runs on and in which precision."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def best_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where asked for, or where `auto` finds a GPU that has it; a null context otherwise.

    On a CPU `auto` stays in float32: small models gain nothing there and results stay reproducible between machines.
    """
    wanted = precision == "bfloat16"
    if precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()
