"""Muon: orthogonalised momentum (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks").

    B  <- mu B + (1 - mu) G                        G the gradient, (out, in)
    N  =  mu B + (1 - mu) G                        Nesterov
    W  <- (1 - lr wd) W - lr sqrt(max(1, out / in)) NS(N)
    NS: X <- a X + (b X X^T + c (X X^T)^2) X, five times, from X = N / |N|_F

It computes the same as `torch.optim.Muon` **except for the precision**: that one iterates in bfloat16 on every device,
which a CPU without bfloat16 instructions emulates at a fraction of its speed. Here it is bfloat16 on accelerators and
float32 on CPUs. Matrices of the same shape are iterated as one batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5
_EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """The optimizer of matrices between hidden activations; its only state is a `momentum_buffer` for each."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients; parameters without one are left alone."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._nesterov(parameter, group["momentum"])
                    wide = update if update.shape[0] <= update.shape[1] else update.T
                    alike[tuple(wide.shape)].append((parameter, wide))
            for pairs in alike.values():
                updates = newton_schulz(torch.stack([wide for _, wide in pairs]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    rows, columns = parameter.shape
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    step = update if rows <= columns else update.T
                    parameter.add_(step, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def newton_schulz(matrices_NRC: Tensor) -> Tensor:
    """Orthogonalise matrices (n, rows, columns), rows <= columns, approximately: all singular values end near 1 (.7 to
    1.2)."""
    a, b, c = NS_COEFFICIENTS
    x_NRC = matrices_NRC.bfloat16() if matrices_NRC.is_cuda else matrices_NRC
    x_NRC = x_NRC / x_NRC.flatten(1).norm(dim=1).clamp(min=_EPSILON)[:, None, None]
    for _ in range(NS_STEPS):
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = torch.baddbmm(x_NRC, torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c), x_NRC, beta=a)
    return x_NRC.to(matrices_NRC.dtype)
