"""Merging of state dicts by weighted mean, SLERP, TIES and DARE, as pure functions that return a new state dict.

    linear  sum_i w_i W_i / sum_i w_i                              Wortsman et al. 2022, arXiv:2203.05482
    slerp   (sin((1-t) theta) A + sin(t theta) B) / sin theta      Shoemake 1985
    ties    W_0 + lambda * disjoint mean of the trimmed tau_i      Yadav et al. 2023, arXiv:2306.01708
    dare    W_0 + lambda * mean of m_i tau_i / (1 - p)             Yu et al. 2023, arXiv:2311.03099

tau_i = W_i - W_0 is the *task vector* of model i with respect to the base (the trunk) W_0.

The models must share names, shapes and dtypes. Tensors that are not floating point (masks, counters) must be
equal in all models and are copied. Arithmetic runs in at least float32. Sums of whole weights are accumulated
in float64, so that merging equal models returns them bit for bit (float64 models: up to one rounding).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

StateDict = Mapping[str, torch.Tensor]

# Above this |cos| the angle is so close to 0 or pi that dividing by its sine is unstable.
PARALLEL_COSINE = 0.9995
# Elements per block: the float64 scratch space of one block fits in the CPU cache.
_BLOCK = 65_536


def linear(models: Sequence[StateDict], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Return the weighted mean `sum_i w_i W_i / sum_i w_i` of every tensor (model soup, arXiv:2203.05482).

    Raises:
        ValueError: when the models differ in structure, a weight is negative, or all weights are zero.
    """
    check_weights(models, weights)

    def mean(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return _combine(tensors, [w / math.fsum(weights) for w in weights])

    return _merge_tensors(models, mean)


def slerp(a: StateDict, b: StateDict, t: float) -> dict[str, torch.Tensor]:
    """Interpolate every flattened tensor spherically, from `a` (t = 0) to `b` (t = 1).

    theta is the angle between the flattened tensors A and B; the formula is applied to the unnormalised A and
    B. Interpolation is linear where the tensors are nearly (anti)parallel, |cos theta| > .9995, or where one
    of them is zero, so that the angle is undefined.

    Raises:
        ValueError: when the models differ in structure or t lies outside [0, 1].
    """
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"slerp interpolates: t must lie in [0, 1], got {t}")

    def rotate(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        cosine = _cosine(*tensors)
        if abs(cosine) > PARALLEL_COSINE or (cosine == 0.0 and any(not x.any() for x in tensors)):
            return _combine(tensors, (1.0 - t, t))
        theta = math.acos(cosine)
        return _combine(tensors, [math.sin(s * theta) / math.sin(theta) for s in (1.0 - t, t)])

    return _merge_tensors((a, b), rotate)


def task_vectors(base: StateDict, models: Sequence[StateDict]) -> list[dict[str, torch.Tensor]]:
    """Return tau_i = W_i - W_0 for every floating-point tensor of every model, in at least float32.

    Raises:
        ValueError: when the models differ in structure.
    """
    check_compatible([base, *models])
    names = sorted(name for name, tensor in base.items() if tensor.is_floating_point())
    return [{name: _difference(model[name], base[name]) for name in names} for model in models]


def ties(
    base: StateDict,
    models: Sequence[StateDict],
    weights: Sequence[float],
    density: float,
    scale: float = 1.0,
    trim: Literal["tensor", "model"] = "tensor",
) -> dict[str, torch.Tensor]:
    """Merge by TIES (arXiv:2306.01708, algorithm 1): trim, elect sign, disjoint mean.

    Trimming keeps the largest entries of each task vector by magnitude: exactly max(1, floor(density * n)) of n.
    Ties at the threshold go to the entries that come first (row-major; for `trim="model"` in alphabetical order
    of the tensors' names). The elected sign of an entry is that of sum_i w_i tau_i. The disjoint mean is
    sum_i w_i tau_i / sum_i w_i over the models whose trimmed entry is non-zero and has the elected sign.

    Args:
        density: share of each task vector's entries that is kept, in (0, 1].
        scale: lambda, the factor on the merged task vector.
        trim: rank entries within each tensor (`"tensor"`, as mergekit does) or over the whole flattened model
            (`"model"`, as the paper does).

    **Differs from the paper**: models can carry weights; `trim="tensor"` is the default; where the signed
    masses cancel exactly the elected sign is + (the paper's sign(0) elects neither).

    Raises:
        ValueError: when the models differ in structure, or a parameter is out of its range.
    """
    check_weights(models, weights)
    if not 0.0 < density <= 1.0:
        raise ValueError(f"ties keeps a share of the entries: density must lie in (0, 1], got {density}")
    if trim not in ("tensor", "model"):
        raise ValueError(f"trim must be 'tensor' or 'model', got {trim!r}")
    vectors = task_vectors(base, models)
    for vector in vectors:
        groups = [[name] for name in vector] if trim == "tensor" else [list(vector)]
        for names in groups:
            _trim(vector, names, density)
    return _add_merged(base, models, [_disjoint_mean([v[n] for v in vectors], weights) for n in vectors[0]], scale)


def dare(
    base: StateDict,
    models: Sequence[StateDict],
    weights: Sequence[float],
    drop_rate: float,
    generator: torch.Generator,
    elect: Literal["linear", "ties"] = "linear",
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Merge by DARE (arXiv:2311.03099, eq. 3-5): drop entries of the task vectors at random, rescale the rest, merge.

    tau'_i = m_i * tau_i / (1 - p) with m_i ~ Bernoulli(1 - p) for every entry, so that E[tau'_i] = tau_i. The
    sparse task vectors are merged by their weighted mean (`elect="linear"`) or by TIES' sign election and
    disjoint mean without trimming (`elect="ties"`). With `elect="linear"` the expectation is `linear`'s
    result at scale 1.

    Randomness: one uniform draw for each entry, models in order, tensors in alphabetical order. Draws are made on
    the generator's device, so the result does not depend on the models' device.

    **Differs from mergekit**, which rescales so that the L1 norm is kept, a random factor near 1 / (1 - p).

    Raises:
        ValueError: when the models differ in structure, or a parameter is out of its range.
    """
    check_weights(models, weights)
    if not 0.0 <= drop_rate < 1.0:
        raise ValueError(f"dare divides by 1 - drop_rate: drop_rate must lie in [0, 1), got {drop_rate}")
    if elect not in ("linear", "ties"):
        raise ValueError(f"elect must be 'linear' or 'ties', got {elect!r}")
    vectors = task_vectors(base, models)
    for vector in vectors:
        for delta in vector.values():
            uniform = torch.rand(delta.shape, generator=generator, device=generator.device)
            delta.mul_((uniform >= drop_rate).to(delta.device)).div_(1.0 - drop_rate)  # eq. 4
    if elect == "ties":
        merged = [_disjoint_mean([v[n] for v in vectors], weights) for n in vectors[0]]
    else:
        normalised = [w / math.fsum(weights) for w in weights]
        merged = [_combine([v[n] for v in vectors], normalised) for n in vectors[0]]
    return _add_merged(base, models, merged, scale)


def check_compatible(models: Sequence[StateDict]) -> None:
    """Require that all models have the same tensor names, shapes and dtypes, and equal non-floating-point values.

    Raises:
        ValueError: naming the first tensor that differs.
    """
    if not models or not models[0]:
        raise ValueError("a merge needs at least one model with at least one tensor")
    first = models[0]
    for index, model in enumerate(models[1:], start=1):
        if unmatched := sorted(first.keys() ^ model.keys()):
            raise ValueError(
                f"merged models must have the same tensors: {unmatched[0]!r} is in only one of models 0 and "
                f"{index}; branch every parent from one trunk"
            )
        for name, tensor in first.items():
            other = model[name]
            if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
                raise ValueError(
                    f"merged models must agree in shape and dtype: {name!r} is {tuple(tensor.shape)} "
                    f"{tensor.dtype} in model 0 and {tuple(other.shape)} {other.dtype} in model {index}; "
                    "branch every parent from one trunk"
                )
            if not tensor.is_floating_point() and not torch.equal(tensor, other):
                raise ValueError(
                    f"{name!r} ({tensor.dtype}) is not floating point and cannot be averaged, so it must be "
                    f"equal in all models; it differs between models 0 and {index}"
                )


def check_weights(models: Sequence[StateDict], weights: Sequence[float]) -> None:
    """Require one finite, non-negative weight for each model, with a positive sum.

    Raises:
        ValueError: naming the weights.
    """
    if len(weights) != len(models):
        raise ValueError(f"a merge needs one weight for each model: {len(models)} models, {len(weights)} weights")
    if not all(math.isfinite(w) and w >= 0.0 for w in weights) or not math.fsum(weights) > 0.0:
        raise ValueError(f"merge weights must be finite and non-negative with a positive sum, got {list(weights)}")


def _merge_tensors(
    models: Sequence[StateDict], merge: Callable[[str, Sequence[torch.Tensor]], torch.Tensor]
) -> dict[str, torch.Tensor]:
    check_compatible(models)
    return {
        name: merge(name, [model[name].detach() for model in models])
        if tensor.is_floating_point()
        else tensor.detach().clone()
        for name, tensor in models[0].items()
    }


def _add_merged(
    base: StateDict, models: Sequence[StateDict], merged: Sequence[torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """Return W_0 + scale * merged task vector; `merged` holds the floating-point tensors in alphabetical order."""
    names = sorted(name for name, tensor in base.items() if tensor.is_floating_point())
    deltas = dict(zip(names, merged, strict=True))
    return {
        name: (tensor.detach().to(deltas[name].dtype) + scale * deltas[name]).to(tensor.dtype)
        if name in deltas
        else tensor.detach().clone()
        for name, tensor in base.items()
    }


def _difference(model: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(base.dtype, torch.float32)
    return model.detach().to(dtype) - base.detach().to(dtype)


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, size, _BLOCK))


def _combine(tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """Return sum_i c_i X_i, accumulated in float64 and rounded once to the tensors' dtype."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = torch.empty_like(flat[0])
    for block in _blocks(result.numel()):
        total = flat[0][block].to(torch.float64, copy=True).mul_(coefficients[0])
        for tensor, coefficient in zip(flat[1:], coefficients[1:], strict=True):
            total.add_(tensor[block], alpha=coefficient)
        result[block] = total
    return result.reshape(tensors[0].shape)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return <A, B> / (|A| |B|) of the flattened tensors in float64, or 0 if one of them is zero."""
    a, b = a.reshape(-1), b.reshape(-1)
    sums = torch.zeros(3, dtype=torch.float64, device=a.device)
    for block in _blocks(a.numel()):
        x, y = a[block].double(), b[block].double()
        sums += torch.stack((x @ y, x @ x, y @ y))
    product, square_a, square_b = sums.tolist()
    norms = math.sqrt(square_a) * math.sqrt(square_b)
    return max(-1.0, min(1.0, product / norms)) if norms > 0.0 else 0.0


def _trim(vector: dict[str, torch.Tensor], names: Sequence[str], density: float) -> None:
    """Zero, in place, all but the largest entries of the named tensors, ranking all of them together."""
    magnitudes = torch.cat([vector[name].reshape(-1) for name in names]).abs()
    size = magnitudes.numel()
    if density >= 1.0 or size == 0:
        return
    kept = max(1, int(density * size))
    # Selection takes linear time; numpy's is several times faster than torch.kthvalue.
    threshold = float(np.partition(magnitudes.cpu().numpy(), size - kept)[size - kept])
    mask = magnitudes >= threshold
    if (surplus := int(mask.sum()) - kept) > 0:  # entries tied at the threshold: drop the last of them
        mask[(magnitudes == threshold).nonzero().reshape(-1)[-surplus:]] = False
    for name, part in zip(names, torch.split(mask, [vector[name].numel() for name in names]), strict=True):
        vector[name].mul_(part.reshape(vector[name].shape))


def _disjoint_mean(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Elect the sign, then average the entries that agree with it (TIES, algorithm 1)."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = torch.empty_like(flat[0])
    for block in _blocks(result.numel()):
        weighted = [tensor[block] * weight for tensor, weight in zip(flat, weights, strict=True)]
        mass = weighted[0].clone()
        for tensor in weighted[1:]:
            mass += tensor
        sign = torch.where(mass >= 0, 1.0, -1.0).to(mass.dtype)
        total, divisor = torch.zeros_like(mass), torch.zeros_like(mass)
        for tensor, weight in zip(weighted, weights, strict=True):
            agrees = (tensor * sign > 0).to(mass.dtype)
            total.addcmul_(tensor, agrees)
            divisor.add_(agrees, alpha=weight)
        result[block] = total.div_(torch.where(divisor == 0, 1.0, divisor))
    return result.reshape(tensors[0].shape)
