"""Resume points: one safetensors file, replaced atomically, valid only for the configuration that wrote it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
    """Write tensors and a JSON-able `state` so that a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    arrays = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(arrays, temporary, metadata={"state": json.dumps(dict(state))})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, object]] | None:
    """The checkpoint, or None when there is none that `fingerprint` wrote (then training starts from the beginning)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if state.get("fingerprint") != fingerprint:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except SafetensorError:
        return None


def weights_digest(model: nn.Module) -> bytes:
    """SHA-256 of a model's state dict, names included."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Any]) -> bytes:
    """SHA-256 of named tensors in the order given; whatever else stands among them is left out."""
    hasher = hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            hasher.update(name.encode())
            hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hasher.digest()
