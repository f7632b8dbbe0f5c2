"""Resume points: one safetensors file, replaced atomically, valid only for the configuration that wrote it.

A resume point with another fingerprint is ignored, and training starts from the beginning. A damaged one is an error:
because writes are atomic and durable, damage means a failing disk or a foreign file, which the user must know about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training_core.store.atomic import replacing


class DamagedCheckpointError(ValueError):
    """Raised when a resume point or a cached result cannot be read; the message names the file and the repair."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"{path} is not a readable checkpoint ({reason}): delete it, and what it held is computed again"
        )


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
    """Write tensors and a JSON-serialisable `state`, so that a kill at any moment leaves the old file or the new one.

    Raises:
        OSError: from the file system; the earlier checkpoint is then still in place.
    """
    arrays = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"state": json.dumps(dict(state))})


def load_checkpoint(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Load a checkpoint; None if there is none with this `fingerprint` (training then starts from the beginning).

    Raises:
        DamagedCheckpointError: when the file exists and is not what `save_checkpoint` writes.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = dict(json.loads(file.metadata()["state"]))
            if state["fingerprint"] != fingerprint:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(path, error) from error


def weights_digest(model: nn.Module) -> bytes:
    """Return the SHA-256 of a model's state dict, names included."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of the names, dtypes, shapes and values of tensors, independent of their order.

    Entries of the mapping that are not tensors are ignored.
    """
    hasher = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            array = tensor.detach().cpu().contiguous()
            hasher.update(repr((name, str(array.dtype), tuple(array.shape))).encode())
            hasher.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.digest()
