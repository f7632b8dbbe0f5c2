"""Naive float64 references for singular value experts; they import nothing of the project.

compose: SakanaAI/self-adaptive-llms, `utils.compose_new_params` with the mask sigmoid(p) of its default policy. The
    paper (arXiv:2501.06252, section 3.1) has W' = U diag(S z) V^T; the code multiplies that by sum(S) / sum(S z).
compose_paper: the paper's formula.
enumerate_sequences: every text that a policy over a few tokens can write, with its log-probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def compose_paper(u: Tensor, s: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """Return sum_i s_i z_i u_i v_i^T, one rank-1 term at a time."""
    total = torch.zeros(u.shape[0], v.shape[0], dtype=torch.float64)
    for i in range(len(s)):
        total = total + s[i] * z[i] * torch.outer(u[:, i], v[:, i])
    return total


def compose(u: Tensor, s: Tensor, v: Tensor, p: Tensor) -> Tensor:
    """Return W' for p (r,); it is differentiable in p."""
    m = 1 / (1 + torch.exp(-p))
    return compose_paper(u, s, v, m) * (s.sum() / (s * m).sum())


def enumerate_sequences(
    log_probs: Callable[[Sequence[int]], Tensor], end: int, most: int
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield every text that ends with `end` or has `most` tokens, with its differentiable log-probability.

    `log_probs(written)` returns the log-probabilities of the next token (vocab,).
    """

    def go(written: tuple[int, ...], so_far: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        following = log_probs(written)
        for token in range(len(following)):
            text, value = (*written, token), so_far + following[token]
            if token == end or len(text) == most:
                yield text, value
            else:
                yield from go(text, value)

    yield from go((), torch.zeros((), dtype=torch.float64))
