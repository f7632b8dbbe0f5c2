"""Encoding of a compressed Cognate as `model.forge`, and decoding from the file alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from training_core.formats.container import Container, ContainerError, read_container, write_container
from training_core.formats.file_experts import PREFIX, FileExperts, read_experts
from training_core.formats.tensor_code import HalfCode, Int8Code, TensorCode, TernaryCode, TernaryRowsCode
from training_core.formats.ternary_packing import load_packed
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.stored import require_stored
from training_core.nn.svf import scaled_matrices
from training_core.nn.ternary import Granularity, Ternary, apply_ternary, ternarize, ternary_modules

NOT_STORED = ("latent", "halt_head.weight", "halt_head.bias")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model read from a file, with the file's tokenizer and its experts, if it has any."""

    model: Cognate
    tokenizer_json: str
    experts: FileExperts | None


def make_compressible(model: Cognate, threshold: float, granularity: Granularity) -> None:
    """Make every matrix of `model` ternary, in place, including the embedding but not the unused halting head."""

    def matrix(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear | nn.Embedding) and "halt_head" not in name

    apply_ternary(model, matrix, threshold=threshold, granularity=granularity, activation_bits=0)


def write_artifact(
    model: Cognate,
    tokenizer_json: str,
    threshold: float,
    granularity: Granularity,
    experts: FileExperts | None = None,
) -> bytes:
    """Return the bytes of the file: ternary codes entropy coded, norms and convolutions in 8 bits, the rest in 16.

    Raises:
        ValueError: when a tensor that the file omits is not at its initial value.
    """
    initial = _left_out(model.config)
    tensors: dict[str, TensorCode] = {}
    for name, module in ternary_modules(model):
        tensors[f"{name}.weight"] = _ternary_code(ternarize(module.weight.detach().cpu(), threshold, granularity))
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu()
        if name in NOT_STORED:
            if not torch.equal(value, initial[name]):
                raise ValueError(f"{name} was trained, but a compressed file leaves it out; keep halting and z off")
        elif name not in tensors and value.numel():
            array = value.float().numpy()
            in_8_bits = "norm" in name or ".conv." in name
            tensors[name] = Int8Code.from_values(array) if in_8_bits else HalfCode.from_values(array)
    config = {"cognate": _differences(model.config), "threshold": threshold, "granularity": granularity}
    if experts is not None:
        config["experts"] = list(experts.names)
        tensors |= experts.codes(list(scaled_matrices(model)))
    return write_container(config, tokenizer_json, tensors)


def read_artifact(data: bytes) -> Artifact:
    """Decode the model in `data`, ready to run.

    Raises:
        ContainerError: when `data` is damaged or does not hold a Cognate model.
    """
    container = read_container(data)
    try:
        config = CognateConfig.model_validate(container.config["cognate"])
        threshold, granularity = container.config["threshold"], container.config["granularity"]
        left_out = 2 * config.d_model + 1  # number of weights in `_left_out`
        require_stored(config, left_out + sum(math.prod(code.shape) for code in container.tensors.values()))
        model = Cognate(config)
        make_compressible(model, threshold, granularity)
        matrices = scaled_matrices(model)
        load_packed(model, _tensors(container, config))
        experts = read_experts(container, matrices)
    except (KeyError, TypeError, ValueError) as error:
        raise ContainerError(f"the container does not hold a Cognate model: {error}") from error
    return Artifact(model.eval(), container.tokenizer_json, experts)


def _tensors(container: Container, config: CognateConfig) -> dict[str, torch.Tensor | Ternary]:
    tensors: dict[str, torch.Tensor | Ternary] = dict(_left_out(config))
    if config.num_persistent == 0:
        for layer in range(config.num_layers):
            split = config.num_layers - config.num_core_layers
            owner = f"prelude.{layer}" if layer < split else f"core.{layer - split}"
            tensors[f"{owner}.attention.persistent"] = torch.zeros(0, config.d_model)
    for name, code in container.tensors.items():
        if name.startswith(PREFIX):
            continue
        if isinstance(code, TernaryCode):
            tensors[name] = Ternary(torch.from_numpy(code.codes.copy()), torch.tensor(code.scale))
        elif isinstance(code, TernaryRowsCode):
            scales = torch.from_numpy(code.scales().copy())
            tensors[name] = Ternary(torch.from_numpy(code.codes.copy()), scales[:, None])
        else:
            tensors[name] = torch.from_numpy(np.array(code.dequantize(), np.float32))
    return tensors


def _left_out(config: CognateConfig) -> dict[str, torch.Tensor]:
    """The tensors that a compressed file omits, at their deterministic initial values."""
    return {
        "latent": torch.zeros(config.d_model),
        "halt_head.weight": torch.zeros(1, config.d_model),
        "halt_head.bias": torch.full((1,), -2.0),
    }


def _differences(config: CognateConfig) -> dict[str, object]:
    """The fields that differ from the defaults; storing only these saves bytes."""
    defaults = CognateConfig()
    return {k: v for k, v in config.model_dump().items() if v != getattr(defaults, k)}


def _ternary_code(ternary: Ternary) -> TernaryCode | TernaryRowsCode:
    codes = ternary.codes.numpy()
    if ternary.scale.ndim == 0:
        return TernaryCode(codes, float(ternary.scale))
    return TernaryRowsCode.from_scales(codes, ternary.scale.numpy().reshape(-1))
