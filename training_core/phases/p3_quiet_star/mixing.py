"""The mixing head, which turns thoughts into a prediction, and the coherence score that weights them.

Shape legend: D model width, N thoughts of one position, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.layers import RMSNorm

SEMANTIC, SYNTACTIC, PREDICTIVE = 0.4, 0.3, 0.3


class MixingHead(nn.Module):
    """Adds a position's thoughts to its hidden state, by multi-head attention over the thoughts with a gate per head.

        a_n  = softmax_n(q(norm(y)) k(norm(t_n)) / sqrt(K) + c coherence_n)          per head
        y'   = y + W_o (g * norm(sum_n a_n v(norm(t_n)))),   g = sigmoid(W_g [norm(y); attended])

    W_o is initialised to zero, so that training starts exactly at the base model; without thoughts the head remains
    the identity. The gate is applied after the norm: applied before it, the norm would rescale what a closed gate
    had suppressed and force the thoughts on every position.

    **Differs from the paper** (Quiet-STaR, arXiv:2403.09629, section 4.3), whose head interpolates between the two
    predictions with a single weight: here several thoughts are weighted together.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        check_heads(d_model, num_heads)
        self.num_heads = num_heads
        self.base_norm, self.thought_norm, self.mixed_norm = (RMSNorm(d_model) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.gates = nn.Linear(2 * d_model, num_heads)
        self.coherence_weight = nn.Parameter(torch.ones(num_heads))
        self.output = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.output.weight)

    def forward(self, base_D: Tensor, thoughts_ND: Tensor, coherence_N: Tensor) -> Tensor:
        """Mix `thoughts_ND` (..., thoughts, d_model) into `base_D` (..., d_model); returns the shape of `base_D`."""
        if thoughts_ND.shape[-2] == 0:
            return base_D
        base = self.base_norm(base_D)
        thoughts = self.thought_norm(thoughts_ND)
        heads = (self.num_heads, base.shape[-1] // self.num_heads)
        query = self.query(base).unflatten(-1, heads)
        key = self.key(thoughts).unflatten(-1, heads)
        value = self.value(thoughts).unflatten(-1, heads)
        scores = torch.einsum("...hk,...nhk->...nh", query, key) * heads[1] ** -0.5
        weights = (scores + coherence_N[..., None] * self.coherence_weight).softmax(-2)
        attended = torch.einsum("...nh,...nhk->...hk", weights, value)
        gate = self.gates(torch.cat([base, attended.flatten(-2)], dim=-1)).sigmoid()
        normed = self.mixed_norm(attended.flatten(-2)).unflatten(-1, heads)
        mixed: Tensor = self.output((gate[..., None] * normed).flatten(-2))
        return base_D + mixed


def check_heads(d_model: int, num_heads: int) -> None:
    """Check that the model's width is divisible by the number of heads.

    Raises:
        ValueError: when it is not.
    """
    if d_model % num_heads:
        raise ValueError(f"mixing_heads = {num_heads} must divide d_model = {d_model}: choose a divisor")


def coherence(base_D: Tensor, thoughts_ND: Tensor, mean_log_prob_N: Tensor, predicted_NV: Tensor) -> Tensor:
    """Return the coherence of each thought, (..., thoughts) in [0, 1]; detached, and never used as a reward.

        0.4 semantic    (1 + cos(y, t_n)) / 2
        0.3 syntactic   exp(mean log-probability of the thought's own tokens), a geometric mean
        0.3 predictive  1 - entropy of the next-token prediction with this thought alone / ln V

    `mean_log_prob_N` is in nats per token; `predicted_NV` are logits (..., thoughts, vocab).
    """
    with torch.no_grad():
        cosine = F.cosine_similarity(base_D[..., None, :].float(), thoughts_ND.float(), dim=-1)
        semantic = (1 + cosine.clamp(-1, 1)) / 2
        syntactic = mean_log_prob_N.float().exp().clamp(0, 1)
        probabilities = predicted_NV.float().softmax(-1)
        entropy = torch.special.entr(probabilities).sum(-1) / math.log(predicted_NV.shape[-1])
        score: Tensor = SEMANTIC * semantic + SYNTACTIC * syntactic + PREDICTIVE * (1 - entropy).clamp(0, 1)
        return score
