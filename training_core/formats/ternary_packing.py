"""The packed format `model.ternary`: a safetensors file with five ternary weights per byte and the rest in float16.

    <name>.trits   uint8, ceil(n / 5) bytes: byte = sum_i 3^i (code_i + 1), i = 0..4, row-major order;
                   3^5 = 243 <= 256, so 1.6 bits a weight (log2 3 = 1.585 for equiprobable codes)
    <name>.scale   float16, shape () or (rows, 1)
    <name>         float16 (integer and boolean tensors keep their type)

The metadata entry "forge.ternary" holds the format version, the shapes, the caller's model configuration and
the SHA-256 of the whole file, computed with zeros in place of the digest's own 64 characters, so any changed bit is
detected. Equal models give equal bytes. The file decodes to exactly the effective weights of the training graph;
nothing is rounded here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from training_core.nn.cognate import Cognate
from training_core.nn.ternary import Ternary, freeze_ternary, ternarize, ternary_modules
from training_core.nn.ternary_cognate import TernarySettings
from training_core.store.bundle import Product, canonical_json

FORMAT_VERSION = 2  # 1: convolutions without the identity in their weights
TRITS_PER_BYTE = 5
MAX_DIMENSIONS, MAX_SIZE = 8, 1 << 31
_POWERS = (1, 3, 9, 27, 81)
_METADATA_KEY = "forge.ternary"
_NO_DIGEST = "0" * 64


class PackedModelError(ValueError):
    """Raised when a packed ternary model is truncated, altered or malformed, or does not fit the target model."""


def pack_trits(codes: Tensor) -> Tensor:
    """Pack ternary `codes`, any shape, into uint8 (ceil(n / 5),); the last byte is padded with zero trits.

    Raises:
        ValueError: when another value occurs.
    """
    flat = codes.reshape(-1).to(torch.int16)
    if flat.numel() and int(flat.abs().max()) > 1:
        raise ValueError(f"codes must be -1, 0 or +1, got {int(flat.abs().max())} in magnitude; ternarize first")
    trits = torch.zeros(math.ceil(flat.numel() / TRITS_PER_BYTE) * TRITS_PER_BYTE, dtype=torch.int16)
    trits[: flat.numel()] = flat + 1
    weights = torch.tensor(_POWERS, dtype=torch.int16)
    return (trits.view(-1, TRITS_PER_BYTE) * weights).sum(dim=1).to(torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """Unpack the `count` codes, int8, of `pack_trits`.

    Raises:
        PackedModelError: when the length does not fit `count`, a byte exceeds 242 or the padding is not zero.
    """
    if packed.dtype != torch.uint8 or packed.shape != (math.ceil(count / TRITS_PER_BYTE),):
        raise PackedModelError(
            f"{count} ternary weights must be {math.ceil(count / TRITS_PER_BYTE)} bytes, got "
            f"{tuple(packed.shape)} of {packed.dtype}; the file is malformed, pack the model again"
        )
    digits = (packed.to(torch.int16).unsqueeze(1) // torch.tensor(_POWERS, dtype=torch.int16)) % 3
    trits = digits.reshape(-1)
    if packed.numel() and (int(packed.max()) > 242 or bool(trits[count:].any())):
        raise PackedModelError("a byte of trits exceeds 242 or pads with other than zero; pack the model again")
    return (trits[:count] - 1).to(torch.int8)


def round_to_half_(model: nn.Module) -> None:
    """Round every tensor of the state dict that is not a ternary latent to float16 values, in place.

    After this `pack_ternary` is lossless. Buffers outside the state dict are left alone, because loading rebuilds them.

    Raises:
        ValueError: naming the tensor that is not finite or exceeds the largest float16 value; nothing is
            changed then.
    """
    plain = {name: tensor for name, tensor in _plain_tensors(model).items() if tensor.is_floating_point()}
    for name, tensor in plain.items():
        if not bool(torch.isfinite(tensor.detach().to(torch.float16)).all()):
            raise ValueError(
                f"{name} must be finite and within +-65504 to be stored as float16, got a magnitude of "
                f"{tensor.detach().abs().max().item()}; the model has diverged or this tensor needs rescaling"
            )
    with torch.no_grad():
        for tensor in plain.values():
            tensor.copy_(tensor.to(torch.float16))


def pack_ternary(model: nn.Module, config: Mapping[str, Any]) -> bytes:
    """Return the bytes of `model.ternary` for a model with ternary modules (`apply_ternary`), on any device.

    `config` is any JSON object, returned by `unpack_ternary`. A Parameter that several modules share is stored once.

    Raises:
        ValueError: when the model has no ternary module, a ternary latent is not float32, two modules ternarise one
            latent differently, or another tensor does not have float16 values (call `round_to_half_` first).
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, ternary in _ternary_tensors(model).items():
        shapes[name] = list(ternary.codes.shape)
        tensors[f"{name}.trits"] = pack_trits(ternary.codes.cpu())
        tensors[f"{name}.scale"] = ternary.scale.cpu().to(torch.float16)
    for name, tensor in _plain_tensors(model).items():
        value = tensor.detach().cpu().contiguous()
        stored = value.to(torch.float16) if value.is_floating_point() else value.clone()
        if not torch.equal(stored.to(value.dtype), value):
            raise ValueError(f"{name} does not have float16 values; call round_to_half_(model) before packing")
        if name in tensors:
            raise ValueError(f"{name} names both a tensor of the model and one of the file; rename it")
        tensors[name] = stored
    document = {
        "config": dict(config),
        "format": "forge.ternary",
        "sha256": _NO_DIGEST,
        "shapes": shapes,
        "version": FORMAT_VERSION,
    }
    try:
        metadata = canonical_json(document).decode()
    except TypeError as error:
        raise ValueError(f"config must be a JSON object ({error}); use lists and text keys only") from error
    if json.loads(metadata)["config"] != dict(config):
        raise ValueError("config must come back from JSON as it is; use lists and text keys only")
    data = safetensors.torch.save(tensors, metadata={_METADATA_KEY: metadata})
    at = _digest_position(data)
    return data[:at] + hashlib.sha256(data).hexdigest().encode() + data[at + 64 :]


def unpack_ternary(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor | Ternary]]:
    """Return the configuration and the tensors of a packed model.

    Ternary tensors are returned as `Ternary` (int8 codes in their shape, float32 scale), the others as float32
    with float16 values (or in their integer type).

    Raises:
        PackedModelError: for anything that `pack_ternary` did not write.
    """
    document = _verified_document(data)
    try:
        stored = safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise PackedModelError(f"not a safetensors file ({error}); pack the model again") from error
    tensors: dict[str, Tensor | Ternary] = {}
    for name, shape in document["shapes"].items():
        tensors[name] = _decode_ternary(
            name, shape, stored.pop(f"{name}.trits", None), stored.pop(f"{name}.scale", None)
        )
    for name, tensor in stored.items():
        tensors[name] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return document["config"], tensors


def load_packed(model: nn.Module, tensors: Mapping[str, Tensor | Ternary]) -> nn.Module:
    """Load `tensors` of `unpack_ternary` into `model`, which was built and converted by `apply_ternary` like the packed
    one, and freeze it; `model` is changed in place and returned.

    Raises:
        PackedModelError: when names or shapes differ; the model is unchanged then.
    """
    owners = {name: f"{name}.weight" for name, _ in ternary_modules(model)}
    stored_under: dict[int, str] = {}
    for name, module in ternary_modules(model):
        stored_under.setdefault(id(module.weight), owners[name])
    plain = _plain_tensors(model)
    expected = {key: tuple(tensor.shape) for key, tensor in plain.items()}
    expected |= {stored_under[id(module.weight)]: tuple(module.weight.shape) for _, module in ternary_modules(model)}
    given = {
        key: tuple(value.codes.shape if isinstance(value, Ternary) else value.shape) for key, value in tensors.items()
    }
    ternary_names = {key for key, value in tensors.items() if isinstance(value, Ternary)}
    if given != expected or ternary_names != set(stored_under.values()):
        different = sorted(key for key in given.keys() | expected.keys() if given.get(key) != expected.get(key))
        different += sorted(ternary_names ^ set(stored_under.values()))
        raise PackedModelError(
            f"the packed tensors are not those of this model: {', '.join(dict.fromkeys(different))} differ "
            "in presence, "
            "shape or kind; build the model from the packed configuration"
        )
    with torch.no_grad():
        for key, target in plain.items():
            value = tensors[key]
            assert isinstance(value, Tensor)
            target.copy_(value)
    values: dict[str, Ternary] = {}
    for name, module in ternary_modules(model):
        value = tensors[stored_under[id(module.weight)]]
        assert isinstance(value, Ternary)
        device = module.weight.device
        values[name] = Ternary(value.codes.to(device), value.scale.to(device))
    freeze_ternary(model, values)
    return model


def ternary_product(model: Cognate, settings: TernarySettings, tokenizer_json: str, **measured: Any) -> Product:
    """Return a straight-through model as the product of a phase: its latents for further training, and the packed file
    that decodes to exactly its effective weights. `measured` are the product's `metrics` and `exhibits`.

    Tensors that are not ternary are rounded to float16 in place, so the file is lossless.
    """
    round_to_half_(model)
    document = {"cognate": model.config.model_dump(), "ternary": settings.model_dump()}
    return Product(
        "ternary", document, model.state_dict(), tokenizer_json, payload=pack_ternary(model, document), **measured
    )


def _ternary_tensors(model: nn.Module) -> dict[str, Ternary]:
    """The codes and scale of each latent under its first name in the state dict."""
    result: dict[str, Ternary] = {}
    seen: dict[int, tuple[str, float, str]] = {}
    for name, module in ternary_modules(model):
        weight, setting = module.weight, (module.threshold, module.granularity)
        if weight.dtype != torch.float32:
            raise ValueError(
                f"{name}.weight must be a float32 latent, got {weight.dtype}; convert the model to float32"
            )
        if id(weight) in seen:
            if seen[id(weight)][1:] != setting:
                raise ValueError(f"{name} and {seen[id(weight)][0]} ternarise one latent differently; untie them")
            continue
        seen[id(weight)] = (name, *setting)
        result[f"{name}.weight"] = ternarize(weight.detach(), module.threshold, module.granularity)
    if not result:
        raise ValueError("the model has no ternary module to pack; call apply_ternary first")
    return result


def _plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of the state dict that are not ternary latents, each once under its first name."""
    seen = {id(module.weight) for _, module in ternary_modules(model)}
    result: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            result[name] = tensor
    return result


def _digest_position(data: bytes) -> int:
    """The position of the digest's 64 characters, -1 if there is none. Nothing after it in the metadata can match the
    marker: only the shapes and the version follow, whose values are numbers."""
    end = 8 + int.from_bytes(data[:8], "little")
    marker = b'\\"sha256\\":\\"'
    at = data.rfind(marker, 8, end)
    return at + len(marker) if at >= 0 and at + len(marker) + 64 <= end else -1


def _verified_document(data: bytes) -> dict[str, Any]:
    """The metadata of `data`, after verifying the digest and the types of all fields.

    Raises:
        PackedModelError: when the header cannot be read or the digest differs.
    """
    at = _digest_position(data) if len(data) >= 8 else -1
    if at < 0:
        raise PackedModelError("not a packed ternary model, or one cut short: its header has no digest")
    digest = hashlib.sha256(data[:at] + _NO_DIGEST.encode() + data[at + 64 :]).hexdigest()
    if digest.encode() != data[at : at + 64]:
        raise PackedModelError(
            "the packed model's SHA-256 does not match: the file was damaged or changed; copy it again"
        )
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        document = json.loads(header["__metadata__"][_METADATA_KEY])
        version, config, shapes = document["version"], document["config"], document["shapes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackedModelError(f"the packed model's header is malformed ({error}); pack the model again") from error
    if version != FORMAT_VERSION:
        raise PackedModelError(f"the packed model has format version {version!r}, this program reads {FORMAT_VERSION}")
    if not isinstance(config, dict) or not isinstance(shapes, dict):
        raise PackedModelError("the packed model's header must hold an object as config and as shapes")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in shape):
            raise PackedModelError(
                f"{name} must have a shape of up to {MAX_DIMENSIONS} non-negative integers, got {shape!r:.100}"
            )
    return {"config": config, "shapes": shapes}


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _decode_ternary(name: str, shape: list[int], trits: Tensor | None, scale: Tensor | None) -> Ternary:
    if trits is None or scale is None or scale.dtype != torch.float16:
        raise PackedModelError(f"{name} must have .trits and a float16 .scale; pack the model again")
    rows = (shape[0], *(1 for _ in shape[1:])) if shape else ()
    if tuple(scale.shape) not in ((), rows) or not bool(torch.isfinite(scale).all()):
        raise PackedModelError(
            f"{name}.scale must be one finite number, or one per row, got shape {tuple(scale.shape)}"
        )
    return Ternary(unpack_trits(trits, math.prod(shape)).reshape(shape), scale.to(torch.float32))
