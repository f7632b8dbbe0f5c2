"""Files replaced in one step, resume points that are damaged, and the digest of tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from training_core.store.atomic import replacing, write_atomically
from training_core.store.checkpoint import (
    DamagedCheckpointError,
    load_checkpoint,
    save_checkpoint,
    tensors_digest,
    weights_digest,
)


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    write_atomically(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            assert temporary.parent == path.parent  # a rename within one file system
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    write_atomically(path.with_name("other"), b"1")
    assert sorted(p.name for p in path.parent.iterdir()) == ["other", "state.json"]
    assert path.read_text() == "é"


def test_content_and_folder_are_flushed_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power can go at any moment: content on disk, then the name, then the folder that holds the name."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        events.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        events.append(f"rename to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_atomically(tmp_path / "a", b"x")
    assert events == [f"flush .a.{os.getpid()}.partial", "rename to a", f"flush {tmp_path.name}"]


def test_checkpoints_of_others_are_not_used_and_damaged_ones_are_errors(tmp_path: Path) -> None:
    path, tensors = tmp_path / "c.safetensors", {"w": torch.tensor([1.0, -0.0])}
    assert load_checkpoint(path, "a") is None
    save_checkpoint(path, tensors, {"fingerprint": "a", "step": 3})
    found = load_checkpoint(path, "a")
    assert found is not None
    assert torch.equal(found[0]["w"], tensors["w"])
    assert found[1]["step"] == 3
    assert load_checkpoint(path, "b") is None
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], whole.replace(b"fingerprint", b"fingerprant")):
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError, match=r"c\.safetensors is not a readable checkpoint .*: delete it"):
            load_checkpoint(path, "a")


def test_the_digest_tells_names_types_shapes_and_values_apart() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    digest = tensors_digest(base)
    assert tensors_digest(dict(reversed(base.items()))) == digest
    assert tensors_digest({**base, "note": "no tensor"}) == digest
    for other in (
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].view(3, 2), "b": base["b"]},
        {"a": base["a"].to(torch.int32), "b": base["b"]},  # the same bytes
        {"a": -base["a"], "b": base["b"]},  # -0.0
        {"a": base["a"]},
    ):
        assert tensors_digest(other) != digest
    layer = nn.Linear(2, 2)
    assert weights_digest(layer) == tensors_digest({"weight": layer.weight, "bias": layer.bias})
