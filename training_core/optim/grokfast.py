"""Grokfast-EMA (Lee et al., 2024, arXiv:2405.20233, algorithm 2): amplifies the slow component of every gradient."""

from __future__ import annotations

import torch
from torch import Tensor


class GrokfastFilter:
    """mu_t = alpha mu_{t-1} + (1 - alpha) g_t  with mu_0 = g_0;   g'_t = g_t + lamb mu_t.

    The filter amplifies low frequencies: a constant gradient g becomes (1 + lamb) g, and so does the first gradient of
    any sequence. With lamb = 0 it is the identity and keeps no state.
    """

    def __init__(self, alpha: float, lamb: float) -> None:
        self.alpha, self.lamb = alpha, lamb
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self, gradients: dict[str, Tensor]) -> None:
        """Filter the gradients in place, by name."""
        if self.lamb == 0 or not gradients:
            return
        for name, gradient in gradients.items():
            if name not in self.averages:
                self.averages[name] = gradient.clone()
            else:
                self.averages[name].lerp_(gradient, 1 - self.alpha)
        names = list(gradients)
        torch._foreach_add_([gradients[n] for n in names], [self.averages[n] for n in names], alpha=self.lamb)
