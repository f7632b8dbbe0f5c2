"""The neural long-term memory of Titans (Behrouz et al., 2025, arXiv:2501.00663, section 3.1, eqs. 11-16).

The memory is a two-layer perceptron M(x) = W2 silu(W1 x) for each head. Its weights are state, not parameters: at
every token they take one step of gradient descent with momentum and forgetting on the associative loss

    l(M; x_t) = mean((M(k_t) - v_t)^2)                        # eq. 12 (mean over the head's width)
    S_t = eta_t S_{t-1} - theta_t grad l(M_chunk; x_t)        # eq. 14, 16: gradient at the weights of the chunk's start
    M_t = (1 - alpha_t) M_{t-1} + S_t                         # eq. 13
    y_t = M_t(q_t)                                            # eq. 15

Because the gradients of a chunk are all taken at the same weights, each is a pair of outer products, and every
M_t of the chunk is a known linear combination of them. `ChunkWrites` therefore evaluates M_t(q) exactly for every
token t of the chunk and any queries, with matrix products over the chunk, without forming any per-token weight matrix.

Shape legend: B batch, S sequence, D model width, H heads, K head width, E hidden width of the memory, C chunk,
R branches (reads at chosen positions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.layers import CausalConv, FactorizedLinear, join_heads, split_heads

MAX_FORGETTING = 0.999

GradientFactors = tuple[Tensor, Tensor, Tensor, Tensor]  # key, hidden, back, error as in `ChunkWrites`
Read = Callable[[Tensor], Tensor]  # queries (batch, heads, positions, width) -> what the memory answers


@dataclass(slots=True)
class MemoryState:
    """The memory's state between tokens while streaming. Weight tensors are (batch, heads, out, in)."""

    chunk1: Tensor  # W1 at the start of the chunk: where gradients are taken
    chunk2: Tensor
    weight1: Tensor  # W1 now
    weight2: Tensor
    momentum1: Tensor
    momentum2: Tensor
    tails: tuple[Tensor | None, Tensor | None, Tensor | None]
    position: int = 0
    gradient: GradientFactors | None = None  # of the newest token

    def surprise(self) -> Tensor:
        """Norm of the momentary surprise grad l(M; x_t) (eq. 8) of the newest token, (batch, 1).

        Raises:
            ValueError: when nothing was written yet.
        """
        if self.gradient is None:
            raise ValueError("nothing has surprised a memory at position 0: feed a token first")
        return _gradient_norm(*self.gradient)


@dataclass(slots=True)
class ChunkWrites:
    """The writes of one chunk of tokens: weights and momenta before it, and its gradients as outer products.

    With A_ti = prod_{i<j<=t} (1 - alpha_j) and E_ti = prod_{i<j<=t} eta_j (both lower triangular), unrolling eqs. 13
    and 14 gives M_t = beta_t M_0 + gamma_t S_0 + sum_i C_ti grad_i with C = -(A E) diag(theta). `key`, `hidden`,
    `back` and `error` are (B, H, C, width); `coefficients` is C, (B, H, C, C); `beta` and `gamma` are (B, H, C).
    """

    weights: tuple[Tensor, Tensor]
    momenta: tuple[Tensor, Tensor]
    key: Tensor
    hidden: Tensor
    back: Tensor
    error: Tensor
    coefficients: Tensor
    beta: Tensor
    gamma: Tensor

    def read(self, query: Tensor, rows_BR: Tensor | None = None) -> Tensor:
        """M_t(q), eq. 15: `query` (B, H, C, K) read at its own token t, or (B, H, R, K) at the tokens `rows_BR`."""
        coefficients, beta, gamma = self.coefficients, self.beta[..., None], self.gamma[..., None]
        if rows_BR is not None:
            rows = rows_BR[:, None, :, None].expand(-1, beta.shape[1], -1, -1)
            coefficients = coefficients.gather(2, rows.expand(-1, -1, -1, coefficients.shape[-1]))
            beta, gamma = beta.gather(2, rows), gamma.gather(2, rows)

        def layer(x: Tensor, weight: Tensor, momentum: Tensor, inputs: Tensor, grads: Tensor) -> Tensor:
            """M_t x_t for one layer whose gradient at token i is grads_i inputs_i^T."""
            local = ((x @ inputs.transpose(-1, -2)) * coefficients) @ grads
            return beta * (x @ weight.transpose(-1, -2)) + gamma * (x @ momentum.transpose(-1, -2)) + local

        hidden = F.silu(layer(query, self.weights[0], self.momenta[0], self.key, self.back))
        return layer(hidden, self.weights[1], self.momenta[1], self.hidden, self.error)

    def surprise(self) -> Tensor:
        """Norm of the momentary surprise grad l(M; x_t) (eq. 8) over both layers and all heads, (batch, chunk)."""
        return _gradient_norm(self.key, self.hidden, self.back, self.error)


@dataclass(slots=True)
class MemoryRecord:
    """The writes of a whole sequence, chunk by chunk; the queries before their convolution (batch, seq, d_model); and
    the state `after` it, from which streaming continues."""

    chunks: list[ChunkWrites]
    queries: Tensor
    after: MemoryState

    def surprise(self) -> Tensor:
        """Return the momentary surprise of every token, (batch, seq)."""
        return torch.cat([chunk.surprise() for chunk in self.chunks], dim=1)


class NeuralMemory(nn.Module):
    """Test-time memory with an inner gradient step, momentum and forgetting, all gates dependent on the token.

    **Differs from the paper**: the projections are factorised (rank `rank`); SiLU follows the convolution; values
    are l2-normalised as keys are (the gate normalises the output anyway); theta_t lies in
    [0, max_lr (1 - eta_t) K / (2 C)], so that a chunk of C equal tokens, whose gradients momentum multiplies by
    1 / (1 - eta), takes one descent step of size max_lr: with theta up to 1 a text that repeats itself makes the inner
    descent diverge within a few chunks; the persistent prefix is not written to the memory, because its effect on the
    initial state is constant and the initial weights are learned anyway.
    """

    def __init__(self, d_model: int, num_heads: int, rank: int, expansion: int, chunk: int, max_lr: float) -> None:
        super().__init__()
        self.num_heads, self.chunk, self.max_lr = num_heads, chunk, max_lr
        width = d_model // num_heads
        hidden = expansion * width
        self.query = FactorizedLinear(d_model, d_model, rank)
        self.key = FactorizedLinear(d_model, d_model, rank)
        self.value = FactorizedLinear(d_model, d_model, rank)
        self.query_conv, self.key_conv, self.value_conv = (CausalConv(d_model) for _ in range(3))
        self.gates = nn.Linear(d_model, 3 * num_heads)
        with torch.no_grad():  # momentum .5, half the maximal rate, forgetting .02 a token at the start
            self.gates.weight.mul_(0.1)
            self.gates.bias.copy_(torch.tensor([0.0, 0.0, -4.0]).repeat_interleave(num_heads))
        self.initial1 = nn.Parameter(torch.randn(num_heads, hidden, width) * width**-0.5)
        self.initial2 = nn.Parameter(torch.randn(num_heads, width, hidden) * hidden**-0.5)

    def initial_state(self, batch: int) -> MemoryState:
        """Return the state at position 0: the learned initial weights, without momentum."""
        weight1 = self.initial1[None].expand(batch, -1, -1, -1)
        weight2 = self.initial2[None].expand(batch, -1, -1, -1)
        zeros1, zeros2 = torch.zeros_like(weight1), torch.zeros_like(weight2)
        return MemoryState(weight1, weight2, weight1, weight2, zeros1, zeros2, (None, None, None))

    def forward(self, x_BSD: Tensor, state: MemoryState | None = None) -> tuple[Tensor, MemoryRecord]:
        """Write and read a whole sequence, from `state` or else the initial one; returns y (batch, seq, d_model) and
        the record. A sequence that goes on within a chunk first completes that chunk."""
        state = state or self.initial_state(x_BSD.shape[0])
        queries = self.query(x_BSD)
        query, key, value, gates, tails = self._project(x_BSD, queries, state.tails)
        weights = (state.weight1, state.weight2)
        momenta = (state.momentum1, state.momentum2)
        at = (state.chunk1, state.chunk2)
        reads, chunks = [], []
        length, start = x_BSD.shape[1], 0
        while start < length:
            end = min(length, start + self.chunk - (state.position + start) % self.chunk)
            part = slice(start, end)
            chunk_gates = (gates[0][:, :, part], gates[1][:, :, part], gates[2][:, :, part])
            writes, after, momenta_after = _write_chunk(
                key[:, :, part], value[:, :, part], chunk_gates, weights, momenta, at
            )
            reads.append(writes.read(query[:, :, part]))
            chunks.append(writes)
            weights, momenta, start = after, momenta_after, end
            if (state.position + end) % self.chunk == 0:
                at = weights
        newest = chunks[-1]
        gradient = tuple(part[:, :, -1:] for part in (newest.key, newest.hidden, newest.back, newest.error))
        position = state.position + length
        following = MemoryState(*at, *weights, *momenta, tails, position, cast("GradientFactors", gradient))
        return join_heads(torch.cat(reads, dim=2)), MemoryRecord(chunks, queries, following)

    def branch(self, x_BRD: Tensor, tail_BRTD: Tensor, read: Read) -> tuple[Tensor, Tensor]:
        """Read without writing, from R independent branches. `tail_BRTD` holds the queries before the convolution of
        the last positions of each branch, `read` evaluates the memory at the branch's position. Returns the reads
        (batch, branches, d_model) and the next tail."""
        query, tail = self.query_conv.last(self.query(x_BRD), tail_BRTD)
        query = F.normalize(split_heads(F.silu(query), self.num_heads), dim=-1)
        return join_heads(read(query)), tail

    def step(self, x_B1D: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Write and read one token; equals the parallel forward at that position up to rounding."""
        query, key, value, (eta, theta, alpha), tails = self._project(x_B1D, self.query(x_B1D), state.tails)
        hidden, slope = _silu_with_slope(key @ state.chunk1.transpose(-1, -2))
        error = (2.0 / value.shape[-1]) * (hidden @ state.chunk2.transpose(-1, -2) - value)  # eq. 12
        back = (error @ state.chunk2) * slope
        eta, theta, alpha = eta[..., None], theta[..., None], alpha[..., None]
        momentum1 = eta * state.momentum1 - theta * back.transpose(-1, -2) @ key  # eq. 14
        momentum2 = eta * state.momentum2 - theta * error.transpose(-1, -2) @ hidden
        weight1 = (1 - alpha) * state.weight1 + momentum1  # eq. 13
        weight2 = (1 - alpha) * state.weight2 + momentum2
        read = read_state(query, weight1, weight2)
        at_end = (state.position + 1) % self.chunk == 0
        chunk1, chunk2 = (weight1, weight2) if at_end else (state.chunk1, state.chunk2)
        gradient = (key, hidden, back, error)
        following = MemoryState(
            chunk1, chunk2, weight1, weight2, momentum1, momentum2, tails, state.position + 1, gradient
        )
        return join_heads(read), following

    def _project(
        self, x_BSD: Tensor, queries_BSD: Tensor, tails: tuple[Tensor | None, Tensor | None, Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        query, tail_q = self.query_conv(queries_BSD, tails[0])
        key, tail_k = self.key_conv(self.key(x_BSD), tails[1])
        value, tail_v = self.value_conv(self.value(x_BSD), tails[2])
        query, key, value = (split_heads(F.silu(t), self.num_heads) for t in (query, key, value))
        query, key, value = (F.normalize(t, dim=-1) for t in (query, key, value))
        eta, theta, alpha = self.gates(x_BSD).transpose(1, 2).sigmoid().chunk(3, dim=1)  # each (B, H, S)
        alpha = MAX_FORGETTING * alpha  # keeps log(1 - alpha) finite
        theta = theta * (1 - eta) * (self.max_lr * query.shape[-1] / (2 * self.chunk))
        return query, key, value, (eta, theta, alpha), (tail_q, tail_k, tail_v)


def _silu_with_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    sigmoid = z.sigmoid()
    return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))


def _decay(log_keep_BHC: Tensor) -> tuple[Tensor, Tensor]:
    """Products of `keep` over (i, t] as a lower-triangular (C, C) matrix, and over [0, t] as a vector (C)."""
    total = log_keep_BHC.cumsum(-1)
    between = total[..., :, None] - total[..., None, :]
    lower = torch.ones(between.shape[-2:], dtype=torch.bool, device=between.device).tril()
    return between.masked_fill(~lower, float("-inf")).exp(), total.exp()


def _gradient_norm(key: Tensor, hidden: Tensor, back: Tensor, error: Tensor) -> Tensor:
    """Frobenius norm of back key^T and error hidden^T together, over all heads: (batch, tokens)."""

    def squared(x: Tensor) -> Tensor:
        return x.square().sum(-1)

    return (squared(back) * squared(key) + squared(error) * squared(hidden)).sum(1).sqrt()


def read_state(query: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    """M(q) of a streaming state, eq. 15: (batch, heads, positions, width)."""
    return F.silu(query @ weight1.transpose(-1, -2)) @ weight2.transpose(-1, -2)


def _write_chunk(
    key: Tensor,
    value: Tensor,
    gates: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    momenta: tuple[Tensor, Tensor],
    at: tuple[Tensor, Tensor],
) -> tuple[ChunkWrites, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One chunk, or the rest of one, in closed form.

    `key`, `value` are (B, H, C, K), the gates (B, H, C); gradients are taken `at` the weights of the chunk's start,
    which `weights` are too unless some of the chunk was written before. Returns the writes, and the weights and
    momenta after the chunk.
    """
    weight1, weight2 = at
    eta, theta, alpha = gates
    hidden, slope = _silu_with_slope(key @ weight1.transpose(-1, -2))
    error = (2.0 / value.shape[-1]) * (hidden @ weight2.transpose(-1, -2) - value)  # d loss / d prediction
    back = (error @ weight2) * slope  # d loss / d (W1 k)
    keep_CC, beta = _decay(torch.log1p(-alpha))
    carry_CC, carry = _decay(eta.clamp_min(1e-30).log())
    gamma = (keep_CC @ carry[..., None]).squeeze(-1)
    momentum_coefficients = -carry_CC * theta[..., None, :]
    coefficients = keep_CC @ momentum_coefficients
    writes = ChunkWrites(weights, momenta, key, hidden, back, error, coefficients, beta, gamma)

    def advance(weight: Tensor, momentum: Tensor, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        last = (coefficients[..., -1, :, None] * grads).transpose(-1, -2) @ inputs
        last_momentum = (momentum_coefficients[..., -1, :, None] * grads).transpose(-1, -2) @ inputs
        new_weight = beta[..., -1, None, None] * weight + gamma[..., -1, None, None] * momentum + last
        return new_weight, carry[..., -1, None, None] * momentum + last_momentum

    weight1, momentum1 = advance(weights[0], momenta[0], key, back)
    weight2, momentum2 = advance(weights[1], momenta[1], hidden, error)
    return writes, (weight1, weight2), (momentum1, momentum2)
