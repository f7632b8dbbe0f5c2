"""Naive float64 versions for experts on singular values; they import nothing of the product.

compose: SakanaAI/self-adaptive-llms, `utils.compose_new_params` with the mask sigmoid(p) of its default policy. The
    paper (arXiv:2501.06252, section 3.1) has W' = U diag(S z) V^T; the code multiplies that by sum(S) / sum(S z).
compose_paper: the paper's.
enumerate_sequences: every text that a policy over a few tokens can write, with its probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def compose_paper(u: Tensor, s: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """sum_i s_i z_i u_i v_i^T, one rank after the other."""
    total = torch.zeros(u.shape[0], v.shape[0], dtype=torch.float64)
    for i in range(len(s)):
        total = total + s[i] * z[i] * torch.outer(u[:, i], v[:, i])
    return total


def compose(u: Tensor, s: Tensor, v: Tensor, p: Tensor) -> Tensor:
    """W' for p (r,); gradients reach p."""
    m = 1 / (1 + torch.exp(-p))
    return compose_paper(u, s, v, m) * (s.sum() / (s * m).sum())


def enumerate_sequences(
    log_probs: Callable[[Sequence[int]], Tensor], end: int, most: int
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Every text of at most `most` tokens that ends with `end` or is `most` long, and its log-probability with the
    graph of `log_probs(written)`, which gives those of the next token (vocab,)."""

    def go(written: tuple[int, ...], so_far: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        following = log_probs(written)
        for token in range(len(following)):
            text, value = (*written, token), so_far + following[token]
            if token == end or len(text) == most:
                yield text, value
            else:
                yield from go(text, value)

    yield from go((), torch.zeros((), dtype=torch.float64))
