"""Encoding of experts and their router in a compressed file.

experts.codes      int8 (experts, singular values of all matrices)     multipliers, as `nn.svf.Expert`
experts.spreads    float16 (experts, matrices)
experts.head.*     the router, as `nn.linear_head.Head`: int8 codes, float16 scales and biases
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training_core.formats.container import Container, ContainerError
from training_core.formats.tensor_code import HalfCode, Int8Code, TensorCode
from training_core.nn.linear_head import Head
from training_core.nn.svf import Expert

PREFIX = "experts."


@dataclass(frozen=True, slots=True)
class FileExperts:
    """The experts of a file, by name, and their router, whose first class, before those of the experts, is "none"."""

    names: tuple[str, ...]
    experts: tuple[Expert, ...]
    head: Head

    def codes(self, matrices: Sequence[str]) -> dict[str, TensorCode]:
        """Return the tensors to store in a container."""
        codes = np.stack([np.concatenate([e.codes[name].numpy() for name in matrices]) for e in self.experts])
        spreads = np.array([[float(e.spreads[name]) for name in matrices] for e in self.experts], np.float32)
        return {
            f"{PREFIX}codes": Int8Code(codes, 1.0),
            f"{PREFIX}spreads": HalfCode.from_values(spreads),
            f"{PREFIX}head.codes": Int8Code(self.head.codes_CD.numpy(), 1.0),
            f"{PREFIX}head.scales": HalfCode.from_values(self.head.scales_C.float().numpy()),
            f"{PREFIX}head.biases": HalfCode.from_values(self.head.biases_C.float().numpy()),
        }


def read_experts(container: Container, matrices: Mapping[str, int]) -> FileExperts | None:
    """Read the experts of a file; None if it has none. `matrices` maps matrices, in order, to their numbers of singular
    values.

    Raises:
        ContainerError: when the experts do not fit this model.
    """
    if "experts" not in container.config:
        return None
    names = container.config["experts"]
    tensors = {
        name.removeprefix(PREFIX): torch.from_numpy(np.array(code.dequantize(), np.float32))
        for name, code in container.tensors.items()
        if name.startswith(PREFIX)
    }
    try:
        codes_KR, spreads_KM = tensors["codes"].to(torch.int8), tensors["spreads"].half()
        head = Head(tensors["head.codes"].to(torch.int8), tensors["head.scales"].half(), tensors["head.biases"].half())
    except KeyError as error:
        raise ContainerError(f"the file names experts but has no tensor {PREFIX}{error.args[0]}") from error
    shapes = [tuple(codes_KR.shape), tuple(spreads_KM.shape), tuple(head.scales_C.shape), tuple(head.biases_C.shape)]
    count = len(names) if isinstance(names, list) else 0
    expected = [(count, sum(matrices.values())), (count, len(matrices)), (count + 1,), (count + 1,)]
    if not count or shapes != expected or not all(isinstance(name, str) for name in names):
        raise ContainerError(f"the file's experts must have the shapes {expected} of {names!r:.100}, got {shapes}")
    experts = []
    for codes_R, spreads_M in zip(codes_KR, spreads_KM, strict=True):
        parts = codes_R.split(list(matrices.values()))
        experts.append(Expert(dict(zip(matrices, parts, strict=True)), dict(zip(matrices, spreads_M, strict=True))))
    return FileExperts(tuple(names), tuple(experts), head)
