"""Divergences between a student's and a teacher's next-token distributions, in nats, from full-vocabulary logits.

    forward_kl       KL(T || S) = sum_v T_v (log T_v - log S_v)                   mean-seeking; arXiv:2409.13697
    reverse_kl       KL(S || T)                                                   mode-seeking; arXiv:2306.08543
    jensen_shannon   beta KL(T || M) + (1 - beta) KL(S || M),
                     M = beta T + (1 - beta) S                                    arXiv:2306.13649, eq. 1

The generalised Jensen-Shannon divergence itself vanishes at beta = 0 and beta = 1. As in TRL's `generalized_jsd_loss`,
those two values stand for the limits of JSD / (beta (1 - beta)): KL(T || S) at 0 and KL(S || T) at 1.

Shape legend: N unmasked positions, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


def divergence(
    kind: Divergence,
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """Return the divergence in nats, averaged over the positions where `mask` is True; a scalar, differentiable in the
    student.

    Both logits are (..., vocab) and `mask` is boolean (...). Both logits are divided by `temperature`, and the mean is
    multiplied by its square to preserve the gradient's scale (Hinton et al., 2015, section 2.1). Half-precision logits
    are converted to float32.

    **Differs from** TRL, which does not multiply by the squared temperature; at temperature 1 they agree.

    Raises:
        ValueError: for mismatched shapes, an empty mask, a temperature that is not positive, or as `per_position`.
    """
    if student_logits.shape != teacher_logits.shape or mask.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)} and mask "
            f"{tuple(mask.shape)} must be (..., vocab), (..., vocab) and (...): align the teacher's positions first"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be boolean, not {mask.dtype}: compare it with 0 first")
    if not bool(mask.any()):
        raise ValueError("the mask selects no position, and a mean over none is undefined: give at least one")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0; 1 compares the distributions themselves")
    student, teacher = student_logits[mask] / temperature, teacher_logits[mask] / temperature
    return temperature**2 * per_position(kind, student, teacher, beta=beta).mean()


def per_position(kind: Divergence, student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 0.5) -> Tensor:
    """Return the divergence at every position in nats: logits (..., vocab) -> (...).

    Raises:
        ValueError: for an unknown kind, or a beta outside 0 .. 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta = {beta} must lie in 0 .. 1; 0.5 weighs teacher and student equally")
    log_s, log_t = _log_softmax(student_logits), _log_softmax(teacher_logits)
    if kind == "forward_kl" or (kind == "jensen_shannon" and beta == 0):
        return _kl(log_t, log_s)
    if kind == "reverse_kl" or (kind == "jensen_shannon" and beta == 1):
        return _kl(log_s, log_t)
    if kind == "jensen_shannon":
        log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
        return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)
    raise ValueError(f"unknown divergence {kind!r}: choose forward_kl, reverse_kl or jensen_shannon")


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(P || Q) of log-probabilities (..., vocab)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    full = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return full.log_softmax(-1)
