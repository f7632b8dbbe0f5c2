"""Singular value fine-tuning (SVF): experts that scale the singular values of a model's matrices.

    W  = U diag(S) V^T
    W' = U diag(S m) V^T * sum(S) / sum(S m)          m (r,) > 0, one multiplier for each singular value

References
    [1] Sun, Cetin and Tang, "Transformer^2: Self-adaptive LLMs" (2025, arXiv:2501.06252), section 3.1.
    [2] The authors' code, SakanaAI/self-adaptive-llms, `compose_new_params`.

During training m = sigmoid(p), as in [2], and the optimizer updates p.

**Differs from the paper.** The factor sum(S) / sum(S m) is in [2] and not in [1]: W' has the nuclear norm of W, and a
constant m changes nothing. Experts are mixed by their multipliers, each first normalised to sum(S m) = sum(S), so that
"no expert" is m = 1. p is initialised to a constant without noise, so training starts from the unmodified model. As in
[2], only the matrices of the MLPs are scaled.

Shape legend: O rows and I columns of a weight, R = min(O, I) singular values, B rows of a batch, S positions,
K experts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.cognate import Cognate, effective_weight
from training_core.nn.int8 import decode_rows, encode_rows
from training_core.nn.ternary import inference_copy, quantize_activations

SCALED = ("mlp.gate", "mlp.up", "mlp.down")
P_START = 0.1  # from [2]; sigmoid(.1) = .525, which the factor normalises to 1
LEAST_MULTIPLIER = 1e-3  # extrapolating mixtures could otherwise reach m < 0, which flips a singular direction

Multipliers = Mapping[str, Tensor]  # by matrix: (r,) shared by all rows of a batch, or (rows, r)


@dataclass(frozen=True, slots=True)
class SVD:
    """The SVD of a weight (out, in): U (out, r), S (r,) in descending order, V (in, r); float32."""

    u_OR: Tensor
    s_R: Tensor
    v_IR: Tensor

    def normalised(self, m_R: Tensor) -> Tensor:
        """Return the multipliers (..., r) rescaled to sum(S m) = sum(S), which absorbs the factor of W'."""
        s_R = self.s_R.double()
        return (m_R.double() * (s_R.sum() / (m_R.double() @ s_R))[..., None]).to(m_R.dtype)

    def compose(self, m_R: Tensor) -> Tensor:
        """Return W' (out, in) for multipliers (r,)."""
        return (self.u_OR * (self.s_R * m_R)) @ self.v_IR.T * (self.s_R.sum() / (self.s_R * m_R).sum())


def decompose(weight_OI: Tensor) -> SVD:
    """Compute the SVD of a weight in float64.

    The sign of each pair of singular vectors is fixed by making the largest entry of u positive, so that the same
    weight always gives the same decomposition.
    """
    u_OR, s_R, vh_RI = torch.linalg.svd(weight_OI.detach().double(), full_matrices=False)
    largest_R = u_OR.gather(0, u_OR.abs().argmax(0, keepdim=True))[0]
    signs_R = torch.where(largest_R < 0, -1.0, 1.0).to(u_OR)
    return SVD((u_OR * signs_R).float(), s_R.float(), (vh_RI.T * signs_R).float().contiguous())


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert in stored form: one byte for each singular value, and a spread of two bytes for each matrix.

    m = 1 + spread * code / 127. `codes` are int8 (r,), `spreads` float16 ().
    """

    codes: Mapping[str, Tensor]
    spreads: Mapping[str, Tensor]

    @classmethod
    def of(cls, multipliers: Multipliers, singular: Mapping[str, SVD]) -> Self:
        """Quantise multipliers (r,) of each matrix to an expert; their overall scale does not matter.

        Raises:
            ValueError: naming the matrix whose multipliers are not positive and finite.
        """
        codes: dict[str, Tensor] = {}
        spreads: dict[str, Tensor] = {}
        for name, m_R in multipliers.items():
            if not bool(torch.isfinite(m_R).all()) or not bool((m_R > 0).all()):
                raise ValueError(
                    f"multipliers must be positive and finite, got {float(m_R.min())} to {float(m_R.max())} for "
                    f"{name}: the expert has diverged, lower its learning rate"
                )
            svd = singular[name]
            deviation_R = svd.normalised(m_R.detach().to(svd.s_R.device)).cpu() - 1
            codes[name], spreads[name] = encode_rows(deviation_R)
        return cls(codes, spreads)

    def deviations(self) -> dict[str, Tensor]:
        """Return m - 1 for each matrix, (r,) float32."""
        return {name: decode_rows(code_R, self.spreads[name]) for name, code_R in self.codes.items()}

    def multipliers(self) -> dict[str, Tensor]:
        """Return m for each matrix, (r,) float32."""
        return mixture([self], torch.ones(1))

    @property
    def num_parameters(self) -> int:
        """Number of parameters, one for each singular value."""
        return sum(code.numel() for code in self.codes.values())

    @property
    def num_bytes(self) -> int:
        """Size of the stored tensors in bytes."""
        return sum(
            code.numel() + spread.element_size()
            for code, spread in zip(self.codes.values(), self.spreads.values(), strict=True)
        )

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors to store in a bundle."""
        codes = {f"{prefix}codes.{name}": code for name, code in self.codes.items()}
        return codes | {f"{prefix}spreads.{name}": spread for name, spread in self.spreads.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """Load an expert from tensors named by `tensors`."""
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        return cls(
            {name.removeprefix("codes."): t for name, t in own.items() if name.startswith("codes.")},
            {name.removeprefix("spreads."): t for name, t in own.items() if name.startswith("spreads.")},
        )


def scaled_matrices(model: Cognate) -> dict[str, int]:
    """Return the matrices that experts scale, in model order, with their numbers of singular values."""
    return {name: min(effective_weight(layer).shape) for name, layer in model.named_modules() if name.endswith(SCALED)}


def mixture(experts: Sequence[Expert], weights_K: Tensor) -> dict[str, Tensor]:
    """Return m = 1 + sum_k w_k (m_k - 1) for each matrix: weights (..., experts) -> (..., r).

    The unmodified model receives the weight 1 - sum_k w_k; for weights that sum to 1 this is sum_k w_k m_k of [1],
    section 3.2.
    """
    deviations = [expert.deviations() for expert in experts]
    names = deviations[0] if deviations else {}
    return {
        name: (1 + weights_K.float() @ torch.stack([d[name] for d in deviations])).clamp(min=LEAST_MULTIPLIER)
        for name in names
    }


class ScaledLinear(nn.Module):
    """A bias-free linear layer whose singular values can be scaled; without multipliers it equals the layer it replaces
    bit for bit.

    `multipliers` are (r,), or (rows, r) with one row for each row of the batch. If there is a `p` (r,), it is trained
    and the multipliers are sigmoid(p).
    """

    weight: Tensor

    def __init__(self, weight: Tensor, singular: SVD, activation_bits: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.singular, self.activation_bits = singular, activation_bits
        self.multipliers: Tensor | None = None
        self.p: nn.Parameter | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # The SVD and the multipliers are plain attributes, not buffers, so `.to()` has to move them here.
        svd = self.singular
        self.singular = SVD(fn(svd.u_OR), fn(svd.s_R), fn(svd.v_IR))
        self.multipliers = None if self.multipliers is None else fn(self.multipliers)
        return self

    def forward(self, x_BSI: Tensor) -> Tensor:
        """Map (batch, ..., in) to (batch, ..., out)."""
        x_BSI = quantize_activations(x_BSI) if self.activation_bits == 8 else x_BSI
        multipliers = self.multipliers if self.p is None else self.p.sigmoid()
        if multipliers is None:
            return F.linear(x_BSI, self.weight)
        if multipliers.ndim == 1:
            return F.linear(x_BSI, self.singular.compose(multipliers))
        # x V diag(S m) U^T for each row: applies every row's own W' without materialising it
        scaled_BR = self.singular.s_R * self.singular.normalised(multipliers)
        inner = (x_BSI @ self.singular.v_IR) * scaled_BR.view(len(scaled_BR), *(1,) * (x_BSI.ndim - 2), -1)
        return F.linear(inner, self.singular.u_OR)


class SVFModel:
    """An inference copy of a model whose matrices can be scaled, with their decompositions.

    `model` is an ordinary Cognate and is equivalent to the original until multipliers are set.
    """

    def __init__(self, model: Cognate, singular: Mapping[str, SVD] | None = None) -> None:
        """Decompose the model's matrices, or reuse the decompositions `singular`, by matrix.

        Raises:
            ValueError: when they do not match this model's matrices.
        """
        self.model = inference_copy(model)
        self.model.requires_grad_(False)
        self.layers: dict[str, ScaledLinear] = {}
        for name, layer in list(self.model.named_modules()):
            if name.endswith(SCALED):
                weight = effective_weight(layer).detach()
                svd = decompose(weight) if singular is None else _checked(name, weight, singular)
                self.layers[name] = ScaledLinear(weight, svd, getattr(layer, "activation_bits", 0))
                owner, _, attribute = name.rpartition(".")
                setattr(self.model.get_submodule(owner), attribute, self.layers[name])

    @property
    def singular(self) -> dict[str, SVD]:
        """The SVD of every scaled matrix, by name."""
        return {name: layer.singular for name, layer in self.layers.items()}

    @contextmanager
    def using(self, multipliers: Multipliers | None) -> Iterator[Cognate]:
        """Set multipliers for some of the matrices within the context, and restore the former ones on exit."""
        before = {name: layer.multipliers for name, layer in self.layers.items()}
        self.scale(multipliers)
        try:
            yield self.model
        finally:
            self.scale({name: m for name, m in before.items() if m is not None})

    def scale(self, multipliers: Multipliers | None) -> None:
        """Set the multipliers; matrices that are not named get none."""
        for name, layer in self.layers.items():
            m = None if multipliers is None else multipliers.get(name)
            layer.multipliers = None if m is None else m.to(layer.weight.device)

    def plain(self) -> Cognate:
        """Return a copy of the model without multipliers."""
        with self.using(None):
            return copy.deepcopy(self.model)

    def trainable(self) -> Cognate:
        """Return a copy of the model whose only trainable parameters are its matrices' p, all set to `P_START`."""
        copied = self.plain()
        for layer in copied.modules():
            if isinstance(layer, ScaledLinear):
                layer.p = nn.Parameter(torch.full_like(layer.singular.s_R, P_START))
        return copied

    def expert_of(self, trained: Cognate) -> Expert:
        """Return the expert, in stored form, that a model of `trainable` has learned.

        Raises:
            ValueError: as `Expert.of`.
        """
        learned = {name: layer.p for name, layer in trained.named_modules() if isinstance(layer, ScaledLinear)}
        return Expert.of({name: p.detach().sigmoid() for name, p in learned.items() if p is not None}, self.singular)


def _checked(name: str, weight: Tensor, singular: Mapping[str, SVD]) -> SVD:
    svd = singular.get(name)
    if svd is None or (len(svd.u_OR), len(svd.v_IR)) != tuple(weight.shape):
        raise ValueError(f"{name} has no decomposition of its shape {tuple(weight.shape)}: decompose the model again")
    return svd
