"""A file that holds an interrupted search: its models as safetensors, all else as JSON in the metadata.

One file, so that replacing it is one atomic step: a reader finds the old state or the new one, never a half.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training_core.phases.p2_evomerge.methods import StateDict

_FORMAT = 1


def fingerprint(config: BaseModel, models: Mapping[str, StateDict]) -> str:
    """SHA-256 over the configuration and the models' names and tensors: what identifies a search."""
    hasher = hashlib.sha256(config.model_dump_json().encode())
    for owner, model in models.items():
        for name in sorted(model):
            array = model[name].detach().cpu().contiguous()
            hasher.update(repr((owner, name, array.dtype, tuple(array.shape))).encode())
            hasher.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def write_checkpoint(path: Path, search: str, state: Mapping[str, Any], members: Sequence[StateDict]) -> None:
    """Write temporary file, fsync, rename over `path`, fsync the folder.

    Raises:
        OSError: as the file system raises it; the earlier checkpoint is then still in place.
    """
    tensors = {
        f"{index}/{name}": tensor.detach().cpu().contiguous()
        for index, member in enumerate(members)
        for name, tensor in member.items()
    }
    document = json.dumps({"format": _FORMAT, "search": search, "state": dict(state)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    save_file(tensors, temporary, metadata={"search": document})
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def read_checkpoint(path: Path, search: str) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """The state and the members' tensors (on the CPU) that `write_checkpoint` wrote for the same search.

    Raises:
        ValueError: when the file is damaged or was written by another search.
    """
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()["search"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written_by, state = (document["format"], document["search"]), dict(document["state"])
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable checkpoint of a merge search ({error}); delete it") from error
    if written_by != (_FORMAT, search):
        raise ValueError(
            f"{path} belongs to a search with another configuration, trunk or parents; delete it or name another file"
        )
    members: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        members.setdefault(int(index), {})[name] = tensor
    return state, [members[index] for index in sorted(members)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
