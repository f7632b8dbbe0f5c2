"""The resume point of a merge search: the whole population in one file, so that it is replaced atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from training_core.phases.p2_evomerge.methods import StateDict
from training_core.store.checkpoint import load_checkpoint, save_checkpoint, tensors_digest


def fingerprint(config: BaseModel, models: Mapping[str, StateDict]) -> str:
    """Identify a search by the SHA-256 of its configuration and of the models' names and tensors."""
    hasher = hashlib.sha256(config.model_dump_json().encode())
    for owner, model in models.items():
        hasher.update(owner.encode() + tensors_digest(model))
    return hasher.hexdigest()


def write_checkpoint(path: Path, search: str, state: Mapping[str, Any], members: Sequence[StateDict]) -> None:
    """Replace the resume point at `path` atomically.

    Raises:
        OSError: when the file cannot be written; the previous checkpoint is then still in place.
    """
    tensors = {f"{index}/{name}": tensor for index, member in enumerate(members) for name, tensor in member.items()}
    save_checkpoint(path, tensors, {"fingerprint": search, **state})


def read_checkpoint(path: Path, search: str) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Return the state and the members' tensors (on the CPU) that `write_checkpoint` wrote for the same search.

    Raises:
        ValueError: when the file is damaged or was written by another search.
    """
    checkpoint = load_checkpoint(path, search)
    if checkpoint is None:
        raise ValueError(
            f"{path} belongs to a search with another configuration, trunk or parents; delete it or name another file"
        )
    tensors, state = checkpoint
    members: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        members.setdefault(int(index), {})[name] = tensor
    return state, [members[index] for index in sorted(members)]
