"""Naive float64 references written from the papers; they import nothing of the project.

memory_reads: Titans (arXiv:2501.00663), eqs. 12-16, one token at a time, gradients by autograd.
attention_rows: sliding-window attention with a visible prefix, one query at a time.
newton_schulz / muon_step: Muon (Jordan, 2024). grokfast: Grokfast-EMA (arXiv:2405.20233, algorithm 2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def memory_reads(query: Tensor, key: Tensor, value: Tensor, eta: Tensor, theta: Tensor, alpha: Tensor) -> Tensor:
    """Return the reads (S, K) of one head of an empty linear memory: q, k, v (S, K); gates (S,)."""
    weight = torch.zeros(value.shape[1], key.shape[1], dtype=key.dtype)
    momentum = torch.zeros_like(weight)
    reads = []
    for t in range(query.shape[0]):
        now = weight.detach().clone().requires_grad_(True)
        loss = ((now @ key[t] - value[t]) ** 2).sum() / 2  # eq. 12
        (gradient,) = torch.autograd.grad(loss, [now])
        momentum = eta[t] * momentum - theta[t] * gradient  # eq. 14
        weight = (1 - alpha[t]) * weight + momentum  # eq. 13
        reads.append(weight @ query[t])  # eq. 15
    return torch.stack(reads)


def attention_rows(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, window: int
) -> Tensor:
    """Return the outputs (S, K) of one head: q, k, v (S, K); prefix (P, K)."""
    rows = []
    for i in range(query.shape[0]):
        start = max(0, i - window + 1)
        keys = torch.cat([prefix_key, key[start : i + 1]])
        values = torch.cat([prefix_value, value[start : i + 1]])
        weights = torch.softmax(keys @ query[i] / query.shape[1] ** 0.5, dim=0)
        rows.append(weights @ values)
    return torch.stack(rows)


def newton_schulz(matrix: Tensor) -> Tensor:
    """Return the result of five quintic iterations towards the orthogonal factor, in the input's precision."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / matrix.norm()
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon_step(weight: Tensor, gradients: list[Tensor], lr: float, momentum: float) -> Tensor:
    """Return the weight after Nesterov-momentum Muon steps with the given gradients."""
    buffer = torch.zeros_like(weight)
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        update = (1 - momentum) * gradient + momentum * buffer
        weight = weight - lr * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5 * newton_schulz(update)
    return weight


def grokfast(gradients: list[Tensor], alpha: float, lamb: float) -> list[Tensor]:
    """Return the filtered gradients; the moving average starts at the first gradient."""
    average = gradients[0]
    out = []
    for index, gradient in enumerate(gradients):
        if index:
            average = alpha * average + (1 - alpha) * gradient
        out.append(gradient + lamb * average)
    return out
