"""A linear classifier in stored form (int8 weights with a float16 scale and bias per class), and its fit.

Shape legend: Q rows to classify, N of them for fitting, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from training_core.nn.int8 import MOST_CODE, encode_rows

PENALTY = 1e-3
CONVERGED = 1e-5  # largest gradient entry of a converged fit
MOST_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Head:
    """A linear classifier in stored form: `codes` int8 (classes, d_model), `scales` and `biases` float16 (classes,).

    W = scale * code / 127, row by row.
    """

    codes_CD: Tensor
    scales_C: Tensor
    biases_C: Tensor

    @classmethod
    def of(cls, weights_CD: Tensor, biases_C: Tensor) -> Self:
        """Quantise weights and biases.

        Raises:
            ValueError: when they exceed the range of float16.
        """
        codes_CD, scales_C = encode_rows(weights_CD.double())
        if not bool(torch.isfinite(scales_C).all() and torch.isfinite(biases_C.to(torch.float16)).all()):
            raise ValueError("weights and biases of a head must be finite and at most 65504: raise the penalty")
        return cls(codes_CD, scales_C, biases_C.to(torch.float16))

    def probabilities(self, y_QD: Tensor) -> Tensor:
        """Return the class probabilities (prompts, classes) float64 of hidden states (prompts, d_model)."""
        return (y_QD.double() @ self.weights().T + self.biases_C.double()).softmax(1)

    def weights(self) -> Tensor:
        """Return the dequantised W (classes, d_model) float64."""
        # Not `decode_rows`, which gives float32: the head decides in float64.
        return self.codes_CD.double() * (self.scales_C.double() / MOST_CODE)[:, None]

    @property
    def num_bytes(self) -> int:
        """Size of the stored tensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors("").values())

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors to store in a bundle."""
        return {f"{prefix}codes": self.codes_CD, f"{prefix}scales": self.scales_C, f"{prefix}biases": self.biases_C}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> Self:
        """Load a head from tensors named by `tensors`."""
        return cls(*(tensors[f"{prefix}{name}"] for name in ("codes", "scales", "biases")))


def fit_head(y_ND: Tensor, labels_N: Tensor, num_classes: int, penalty: float = PENALTY) -> Head:
    """Fit a head for classes 0 .. num_classes - 1, each with the same total weight however many rows it has.

    L-BFGS in float64 from zero; the objective is strictly convex in the weights, and nothing is random.

    Raises:
        ValueError: when a class has no rows, the penalty is not positive, or the fit does not converge.
    """
    counts_C = torch.bincount(labels_N, minlength=num_classes).double()
    if len(counts_C) > num_classes or not bool((counts_C > 0).all()) or penalty <= 0:
        raise ValueError(
            f"every one of {num_classes} classes needs examples and the penalty must be positive, got "
            f"{counts_C.int().tolist()} examples and {penalty}: give questions for every expert, "
            "and text for the class without one"
        )
    mean_D = y_ND.double().mean(0)
    scale = float((y_ND.double() - mean_D).square().mean().sqrt())
    x_ND = (y_ND.double() - mean_D) / scale
    share_N = 1 / (num_classes * counts_C[labels_N])
    weights_CD = torch.zeros(num_classes, x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    biases_C = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights_CD, biases_C],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=CONVERGED / 10,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        losses_N = F.cross_entropy(x_ND @ weights_CD.T + biases_C, labels_N, reduction="none")
        return (losses_N * share_N).sum() + penalty / 2 * (weights_CD**2).sum()

    def step() -> Tensor:
        optimizer.zero_grad()
        total = loss()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(step)  # type: ignore[no-untyped-call]
        left = max(float(g.abs().max()) for g in torch.autograd.grad(loss(), [weights_CD, biases_C]))
    if not left < CONVERGED:
        raise ValueError(f"the fit must end with a gradient below {CONVERGED}, got {left:.2g}: raise the penalty")
    # Quantise the weights first: the biases then absorb the mean under the weights that are actually used.
    stored = Head.of(weights_CD.detach() / scale, torch.zeros(num_classes))
    return Head.of(stored.weights(), biases_C.detach() - stored.weights() @ mean_D)
