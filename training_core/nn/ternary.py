"""Ternary weights {-gamma, 0, +gamma} and 8-bit activations, trained through the straight-through estimator.

References
    [1] Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits" (2402.17764), eq. 1-3.
    [2] Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv 1308.3432).

A *latent* is the full-precision weight that the optimizer updates; its *effective weight* is the one used in the
forward pass. Modules keep the latent under the name `<module>.weight`, so state dicts do not change.

**Differs from the paper.** (1) gamma is rounded to a float16 value inside the training graph, so that a file
that stores it in two bytes decodes to exactly the weights that were trained. (2) The straight-through
estimator has the gradient of the usual `soft + (hard - soft).detach()`, but its value is exactly `hard`, where
the usual form has a rounding error next to outliers (|soft| > 2^12 |hard|). (3) The threshold is a
parameter (.5 is the paper's).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.straight_through import straight_through

ModelT = TypeVar("ModelT", bound=nn.Module)
Granularity = Literal["tensor", "row"]
SMALLEST_HALF = 2.0**-24  # the smallest positive float16 value
_ACTIVATION_FLOOR = 1e-5  # from the paper's released code: keeps 127 / max|x| finite for an all-zero token


@dataclass(frozen=True, slots=True)
class Ternary:
    """`codes` int8 in {-1, 0, +1}; `scale` holds float16 values, of shape () or (rows, 1, ...)."""

    codes: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """Return codes * scale in the dtype of `scale`: exact, because every product is -scale, 0 or +scale."""
        return self.codes.to(self.scale.dtype) * self.scale


def ternarize(weight: Tensor, threshold: float = 0.5, granularity: Granularity = "tensor") -> Ternary:
    """Return ternary codes and scale: gamma = mean|W| (eq. 3), code = sign(w) if |w| > threshold * gamma, else 0.

    With threshold .5 this is RoundClip(W / gamma, -1, 1) of eq. 1 and 2. A tie, |w| exactly threshold *
    gamma, gives 0 for either sign (round-half-to-even does the same at .5). gamma is the float16 rounding of
    the mean, at least 2^-24: an all-zero weight has codes 0. "row" takes one gamma per index of dimension 0.

    Differs from the paper: see the module's docstring; also no epsilon is added to gamma.

    Raises:
        ValueError: when `threshold` is negative, `weight` is empty or has non-finite values, "row" is asked
            of a vector, or gamma exceeds the largest float16 value.
    """
    if weight.numel() == 0 or (granularity == "row" and weight.dim() < 2):
        raise ValueError(
            "a ternary weight must have elements, and rows for granularity 'row', got shape "
            f"{tuple(weight.shape)} with granularity {granularity!r}; "
            "leave this tensor unquantised or use granularity 'tensor'"
        )
    _check_settings(threshold, granularity)
    ternary = _ternarize(weight, threshold, granularity)
    if not bool(torch.isfinite(ternary.scale).all()):
        raise ValueError(
            "mean|W| must be finite and at most 65504 to be stored as float16, got "
            f"{weight.abs().mean().item()}; "
            "the weight has diverged: restart from an earlier checkpoint with a smaller learning rate"
        )
    return ternary


def ternary_weight(weight: Tensor, threshold: float = 0.5, granularity: Granularity = "tensor") -> Tensor:
    """Return the effective weight gamma * codes of a latent, with the straight-through gradient [2].

    A latent that is NaN, infinite or beyond float16 makes the result NaN. It is not checked here, which would
    synchronise the GPU; the loss shows it.
    """
    codes, scale = _codes_and_scale(weight.detach(), threshold, granularity)
    return straight_through(weight, codes.mul_(scale))


def quantize_activations(x: Tensor) -> Tensor:
    """Quantise activations to 8 bits per token: clamp(round(127 x / max|x|), -128, 127) * max|x| / 127, with the
    straight-through gradient.

    Shapes: (..., features) to the same; the maximum is over the last dimension. [1] section 2, released code.
    """
    scale = 127.0 / x.detach().abs().amax(dim=-1, keepdim=True).clamp(min=_ACTIVATION_FLOOR)
    return straight_through(x, (x.detach() * scale).round().clamp(-128, 127) / scale)


class TernaryLinear(nn.Linear):
    """`nn.Linear` whose effective weight is ternary; `weight` is the latent. The bias stays unquantised.

    While `hardness` is below 1 the forward pass uses latent + hardness * (ternary - latent), still with the
    straight-through gradient; `set_hardness` lets training approach the ternary weights gradually.
    """

    hardness: float = 1.0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        threshold: float = 0.5,
        granularity: Granularity = "tensor",
        activation_bits: int = 8,
        device: torch.device | str | None = None,
    ) -> None:
        _check_settings(threshold, granularity, activation_bits)
        super().__init__(in_features, out_features, bias=bias, device=device)
        self.threshold, self.granularity, self.activation_bits = threshold, granularity, activation_bits

    def effective_weight(self) -> Tensor:
        """The ternary weight (out_features, in_features) that `forward` multiplies with."""
        return _partly_ternary(self)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        x = quantize_activations(input) if self.activation_bits == 8 else input
        return F.linear(x, self.effective_weight(), self.bias)


class TernaryEmbedding(nn.Embedding):
    """`nn.Embedding` whose effective table is ternary; `weight` is the latent.

    A head tied to the table must multiply with `effective_weight()`, not with `weight`.
    """

    hardness: float = 1.0

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        threshold: float = 0.5,
        granularity: Granularity = "tensor",
        device: torch.device | str | None = None,
    ) -> None:
        _check_settings(threshold, granularity)
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device)
        self.threshold, self.granularity = threshold, granularity

    def effective_weight(self) -> Tensor:
        """The ternary table (num_embeddings, embedding_dim)."""
        return _partly_ternary(self)

    def forward(self, input: Tensor) -> Tensor:
        """Map token ids (...) to vectors (..., embedding_dim)."""
        return F.embedding(input, self.effective_weight(), self.padding_idx)


class _Frozen(nn.Module):
    """Codes and scale as buffers, and the dequantised weight, which is not in the state dict because it follows from
    them."""

    codes: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, ternary: Ternary) -> None:
        super().__init__()
        self.register_buffer("codes", ternary.codes)
        self.register_buffer("scale", ternary.scale)
        self.register_buffer("weight", ternary.dequantize(), persistent=False)
        self.register_load_state_dict_post_hook(_refresh_weight)  # type: ignore[no-untyped-call]

    def effective_weight(self) -> Tensor:
        """The dequantised weight."""
        return self.weight


class FrozenTernaryLinear(_Frozen):
    """A `TernaryLinear` frozen for inference; its forward pass is bit-identical to that of the module it replaces."""

    def __init__(self, ternary: Ternary, bias: nn.Parameter | None, activation_bits: int) -> None:
        super().__init__(ternary)
        self.bias = bias
        self.activation_bits = activation_bits

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        x = quantize_activations(input) if self.activation_bits == 8 else input
        return F.linear(x, self.weight, self.bias)


class FrozenTernaryEmbedding(_Frozen):
    """A `TernaryEmbedding` frozen for inference."""

    def forward(self, input: Tensor) -> Tensor:
        """Map token ids (...) to vectors (..., embedding_dim)."""
        return F.embedding(input, self.weight)


def apply_ternary(
    model: nn.Module,
    select: Callable[[str, nn.Module], bool],
    *,
    threshold: float = 0.5,
    granularity: Granularity = "tensor",
    activation_bits: int = 8,
) -> list[str]:
    """Replace the selected `nn.Linear` and `nn.Embedding` modules of `model`, in place, by ternary ones.

    The Parameter objects stay the same, so optimizers and weight tying keep working. A module that is reachable
    under several names is replaced once and stays shared; it is selected if `select(name, module)` holds for any of
    its names.

    Returns:
        The name of each replaced module (the first one if it has several).

    Raises:
        ValueError: when nothing is selected; when a selected module is the model itself, is already ternary
            or is a subclass or configuration that has no exact ternary counterpart; when a Parameter is shared
            with a module that is not selected (which would use the latent).
    """
    _check_settings(threshold, granularity, activation_bits)
    selected: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear | nn.Embedding) and select(name, module):
            selected.setdefault(module, name)
    if not selected:
        raise ValueError("no nn.Linear or nn.Embedding of the model was selected to become ternary; widen `select`")
    latents = {id(module.weight): name for module, name in selected.items()}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if module not in selected and id(parameter) in latents:
                raise ValueError(
                    f"{name}.{key} is the same Parameter as {latents[id(parameter)]}.weight, which was "
                    f"selected while {name} was not; select both or untie them"
                )
    swaps: dict[nn.Module, nn.Module] = {
        module: _as_ternary(name, module, threshold, granularity, activation_bits) for module, name in selected.items()
    }
    _replace(model, swaps)
    return list(selected.values())


def ternary_modules(model: nn.Module) -> Iterator[tuple[str, TernaryLinear | TernaryEmbedding]]:
    """Yield each trainable ternary module of `model` once, with its first name."""
    for name, module in model.named_modules():
        if isinstance(module, TernaryLinear | TernaryEmbedding):
            yield name, module


def hardness(step: int, steps: int, fraction: float) -> float:
    """Return min(1, (step + 1) / (fraction * steps)): a linear ramp from almost 0 to fully ternary, then constant."""
    return min(1.0, (step + 1) / max(1.0, steps * fraction))


def set_hardness(model: nn.Module, hardness: float) -> None:
    """Set the hardness of every ternary module, from 0 (the forward pass uses latents) to 1 (fully ternary).

    Raises:
        ValueError: outside [0, 1].
    """
    if not 0.0 <= hardness <= 1.0:
        raise ValueError(f"hardness must lie in [0, 1], got {hardness}")
    for _, module in ternary_modules(model):
        module.hardness = hardness


def freeze_ternary(model: nn.Module, values: dict[str, Ternary] | None = None) -> list[str]:
    """Replace every ternary module of `model`, in place, by one that holds codes, scale and the dequantised weight.

    Codes are taken from the latents, or from `values` by module name. Freezing is the only exact way to store a
    ternary model: ternarising a dequantised weight again gives a different gamma, since mean|gamma * codes| < gamma.

    Returns:
        The names of the replaced modules.

    Raises:
        ValueError: when the model has no ternary module, or as `ternarize` raises.
    """
    swaps: dict[nn.Module, nn.Module] = {}
    names: list[str] = []
    shared: dict[tuple[int, float, str], Ternary] = {}
    for name, module in ternary_modules(model):
        key = (id(module.weight), module.threshold, module.granularity)
        if values is not None:
            shared[key] = values[name]
        elif key not in shared:
            shared[key] = ternarize(module.weight.detach(), module.threshold, module.granularity)
        frozen: _Frozen = FrozenTernaryEmbedding(shared[key])
        if isinstance(module, TernaryLinear):
            frozen = FrozenTernaryLinear(shared[key], module.bias, module.activation_bits)
        swaps[module] = frozen.train(module.training)
        names.append(name)
    if not swaps:
        raise ValueError("the model has no ternary module to freeze; call apply_ternary first")
    _replace(model, swaps)
    return names


def inference_copy(model: ModelT) -> ModelT:
    """Return an equivalent copy of `model` in evaluation mode, with ternary weights computed once instead of in every
    forward pass."""
    copied = copy.deepcopy(model)
    if next(ternary_modules(copied), None) is not None:
        freeze_ternary(copied)
    return copied.eval()


def _ternarize(weight: Tensor, threshold: float, granularity: str) -> Ternary:
    codes, scale = _codes_and_scale(weight, threshold, granularity)
    return Ternary(codes.to(torch.int8), scale)


def _codes_and_scale(weight: Tensor, threshold: float, granularity: str) -> tuple[Tensor, Tensor]:
    """Codes and scale in the dtype of `weight`; codes are a new tensor, which callers may overwrite."""
    magnitude = weight.abs()  # averaged in float64, so that devices and thread counts agree on the float16 value
    if granularity == "row":
        gamma = magnitude.mean(dim=tuple(range(1, weight.dim())), keepdim=True, dtype=torch.float64)  # eq. 3
    else:
        gamma = magnitude.mean(dtype=torch.float64)  # eq. 3
    scale = gamma.to(torch.float16).clamp(min=SMALLEST_HALF).to(weight.dtype)
    return weight.sign().mul_(magnitude > threshold * scale), scale  # eq. 1 and 2


def _partly_ternary(module: TernaryLinear | TernaryEmbedding) -> Tensor:
    hard = ternary_weight(module.weight, module.threshold, module.granularity)
    if module.hardness == 1.0:
        return hard
    return module.weight + module.hardness * (hard - module.weight).detach()


def _check_settings(threshold: float, granularity: str, activation_bits: int = 8) -> None:
    if not 0.0 <= threshold < float("inf"):
        raise ValueError(f"threshold must be a finite number of at least 0, got {threshold}; the paper's is 0.5")
    if granularity not in ("tensor", "row"):
        raise ValueError(f"granularity must be 'tensor' or 'row', got {granularity!r}")
    if activation_bits not in (0, 8):
        raise ValueError(f"activation_bits must be 8, or 0 for unquantised activations, got {activation_bits}")


def _as_ternary(
    name: str, module: nn.Module, threshold: float, granularity: Granularity, activation_bits: int
) -> TernaryLinear | TernaryEmbedding:
    """The ternary module with `module`'s own Parameters; the meta device avoids initialising new ones."""
    if not name:
        raise ValueError("the model is itself the selected module and cannot be swapped in place; wrap it in a parent")
    new: TernaryLinear | TernaryEmbedding
    if type(module) is nn.Linear:
        has_bias = module.bias is not None
        new = TernaryLinear(
            module.in_features,
            module.out_features,
            has_bias,
            threshold=threshold,
            granularity=granularity,
            activation_bits=activation_bits,
            device="meta",
        )
        if has_bias:
            new.bias = module.bias
    elif type(module) is nn.Embedding and module.max_norm is None and not module.sparse:
        if module.scale_grad_by_freq:
            raise ValueError(f"{name} uses scale_grad_by_freq, which a ternary embedding does not have; switch it off")
        new = TernaryEmbedding(
            module.num_embeddings,
            module.embedding_dim,
            module.padding_idx,
            threshold=threshold,
            granularity=granularity,
            device="meta",
        )
    else:
        raise ValueError(
            f"{name} must be a plain nn.Linear, or an nn.Embedding without max_norm and sparse gradients, "
            "to become "
            f"ternary, got {type(module).__name__}; leave it out of `select`"
        )
    new.weight = module.weight
    return new.train(module.training)


def _replace(model: nn.Module, swaps: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is not None and child in swaps:
                setattr(parent, key, swaps[child])


def _refresh_weight(module: nn.Module, incompatible_keys: object) -> None:
    assert isinstance(module, _Frozen)
    with torch.no_grad():
        module.weight.copy_(Ternary(module.codes, module.scale).dequantize())
