"""The neural long-term memory of Titans (Behrouz et al., 2025, arXiv:2501.00663, section 3.1, eqs. 11-16), L_M = 1.

The memory of each head is a matrix M. It is state, not a parameter: at every token it takes one step of gradient
descent with momentum and forgetting on the associative loss

    l(M; x_t) = |M k_t - v_t|^2 / 2                           # eq. 12; its gradient is (M k_t - v_t) k_t^T
    S_t = eta_t S_{t-1} - theta_t grad l(M_{t-1}; x_t)        # eq. 14
    M_t = (1 - alpha_t) M_{t-1} + S_t                         # eq. 13
    y_t = M_t q_t                                             # eq. 15

With A_ti = prod_{i<j<=t} (1 - alpha_j) and E_ti = prod_{i<j<=t} eta_j (lower triangular), unrolling eqs. 13 and 14 from
the start of a chunk gives M_t = beta_t M_0 + gamma_t S_0 + sum_i C_ti e_i k_i^T with C = A E diag(theta) and the errors
e_t = v_t - M_{t-1} k_t. These depend on each other only through the products of keys, so that those of a whole chunk
solve one triangular system (as DeltaNet's do: Yang et al., 2024, arXiv:2406.06484; here with momentum and forgetting).
No weight matrix is formed for a token, and the result does not depend on the length of the chunks.

Shape legend: B batch, S sequence, D model width, H heads, K head width, C chunk, R branches (reads at chosen
positions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.layers import FactorizedLinear, join_heads, split_heads

MAX_FORGETTING = 0.999

Gates = tuple[Tensor, Tensor, Tensor]  # momentum eta, rate theta, forgetting alpha, each (batch, heads, seq)
Read = Callable[[Tensor], Tensor]  # queries (batch, heads, positions, width) -> what the memory answers


@dataclass(slots=True)
class MemoryState:
    """The memory between tokens: M and S (batch, heads, width, width), values by keys.

    `error` (batch, heads, width) is that of the newest token, v_t - M_{t-1} k_t.
    """

    weight: Tensor
    momentum: Tensor
    error: Tensor | None = None

    def surprise(self) -> Tensor:
        """Norm of the momentary surprise grad l(M; x_t) (eq. 8) of the newest token over all heads, (batch, 1).

        Raises:
            ValueError: when nothing was written yet.
        """
        if self.error is None:
            raise ValueError("nothing has surprised a memory at position 0: feed a token first")
        return _gradient_norm(self.error[:, :, None])


@dataclass(slots=True)
class ChunkWrites:
    """The writes of one chunk: M and S before it, and its gradients as outer products of errors and keys.

    `key` and `error` are (B, H, C, K), `coefficients` is C of the module's formula, (B, H, C, C); `beta` and `gamma`
    are (B, H, C).
    """

    weight: Tensor
    momentum: Tensor
    key: Tensor
    error: Tensor
    coefficients: Tensor
    beta: Tensor
    gamma: Tensor

    def read(self, query: Tensor, rows_BR: Tensor | None = None) -> Tensor:
        """M_t q, eq. 15: `query` (B, H, C, K) read at its own token t, or (B, H, R, K) at the tokens `rows_BR`."""
        coefficients, beta, gamma = self.coefficients, self.beta[..., None], self.gamma[..., None]
        if rows_BR is not None:
            rows = rows_BR[:, None, :, None].expand(-1, beta.shape[1], -1, -1)
            coefficients = coefficients.gather(2, rows.expand(-1, -1, -1, coefficients.shape[-1]))
            beta, gamma = beta.gather(2, rows), gamma.gather(2, rows)
        local = ((query @ self.key.mT) * coefficients) @ self.error
        return beta * (query @ self.weight.mT) + gamma * (query @ self.momentum.mT) + local

    def surprise(self) -> Tensor:
        """Norm of the momentary surprise grad l(M; x_t) (eq. 8) over all heads, (batch, chunk)."""
        return _gradient_norm(self.error)


@dataclass(slots=True)
class MemoryRecord:
    """The writes of a whole sequence, chunk by chunk, and the state `after` it, from which streaming continues."""

    chunks: list[ChunkWrites]
    after: MemoryState

    def surprise(self) -> Tensor:
        """Return the momentary surprise of every token, (batch, seq)."""
        return torch.cat([chunk.surprise() for chunk in self.chunks], dim=1)


class NeuralMemory(nn.Module):
    """Test-time memory with an inner gradient step, momentum and forgetting, all gates dependent on the token.

    It projects the inputs that the block's attention has convolved for its own queries, keys and values: a key holds
    the words before it, without which a memory learns that something was said and not of whom.

    Queries and keys have unit length, and theta_t lies in [0, 1 - eta_t]: a step alone never moves M k_t beyond v_t,
    and with momentum the steps of a token that repeats still converge.

    **Differs from the paper**: the memory is linear (L_M = 1), which allows gradients at the newest weights rather than
    at those of the chunk's start (eq. 16); it starts at 0 instead of learned weights; the projections are factorised
    (rank `rank`); values are l2-normalised as keys are (the gate normalises the output anyway); the persistent prefix
    is not written.
    """

    def __init__(self, d_model: int, num_heads: int, rank: int, chunk: int) -> None:
        super().__init__()
        self.num_heads, self.chunk = num_heads, chunk
        self.query = FactorizedLinear(d_model, d_model, rank)
        self.key = FactorizedLinear(d_model, d_model, rank)
        self.value = FactorizedLinear(d_model, d_model, rank)
        self.gates = nn.Linear(d_model, 3 * num_heads)
        with torch.no_grad():  # momentum .02, rate .12, forgetting .0025 a token at the start
            self.gates.weight.mul_(0.1)
            self.gates.bias.copy_(torch.tensor([-4.0, -2.0, -6.0]).repeat_interleave(num_heads))

    def initial_state(self, like_BSD: Tensor) -> MemoryState:
        """Return the state at position 0, an empty memory, for inputs like `like_BSD`."""
        width = like_BSD.shape[-1] // self.num_heads
        zeros = like_BSD.new_zeros(like_BSD.shape[0], self.num_heads, width, width)
        return MemoryState(zeros, zeros)

    def forward(
        self, x_BSD: Tensor, convolved_BSE: Tensor, state: MemoryState | None = None
    ) -> tuple[Tensor, MemoryRecord]:
        """Write and read a whole sequence, from `state` or else an empty memory.

        `convolved_BSE` (batch, seq, 3 * d_model) holds the inputs of queries, keys and values; x gives the gates.
        Returns y (batch, seq, d_model) and the record.
        """
        state = state or self.initial_state(x_BSD)
        query, key, value, gates = self._project(x_BSD, convolved_BSE)
        weight, momentum = state.weight, state.momentum
        reads, chunks = [], []
        for first in range(0, x_BSD.shape[1], self.chunk):
            part = slice(first, first + self.chunk)
            chunk_gates = (gates[0][:, :, part], gates[1][:, :, part], gates[2][:, :, part])
            writes, weight, momentum = _write_chunk(key[:, :, part], value[:, :, part], chunk_gates, weight, momentum)
            reads.append(writes.read(query[:, :, part]))
            chunks.append(writes)
        after = MemoryState(weight, momentum, chunks[-1].error[:, :, -1])
        return join_heads(torch.cat(reads, dim=2)), MemoryRecord(chunks, after)

    def branch(self, convolved_BRE: Tensor, read: Read) -> Tensor:
        """Read without writing, from R independent branches: `read` evaluates the memory at the branch's position.
        Returns the reads (batch, branches, d_model)."""
        return join_heads(read(self._query(convolved_BRE)))

    def step(self, x_B1D: Tensor, convolved_B1E: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Write and read one token; equals the parallel forward at that position up to rounding."""
        query, key, value, (eta, theta, alpha) = self._project(x_B1D, convolved_B1E)
        error = value - key @ state.weight.mT  # eq. 12
        momentum = eta[..., None] * state.momentum + theta[..., None] * (error.mT @ key)  # eq. 14
        weight = (1 - alpha[..., None]) * state.weight + momentum  # eq. 13
        return join_heads(query @ weight.mT), MemoryState(weight, momentum, error[:, :, 0])

    def _query(self, convolved_BSE: Tensor) -> Tensor:
        return self._unit(self.query, convolved_BSE.chunk(3, dim=-1)[0])

    def _unit(self, projection: FactorizedLinear, x_BSD: Tensor) -> Tensor:
        # Contiguous, because torch multiplies views in another order where the weights need gradients
        return F.normalize(split_heads(projection(x_BSD.contiguous()), self.num_heads), dim=-1)

    def _project(self, x_BSD: Tensor, convolved_BSE: Tensor) -> tuple[Tensor, Tensor, Tensor, Gates]:
        _, shows, holds = convolved_BSE.chunk(3, dim=-1)
        eta, theta, alpha = self.gates(x_BSD).transpose(1, 2).sigmoid().chunk(3, dim=1)  # each (B, H, S)
        alpha = MAX_FORGETTING * alpha  # keeps log(1 - alpha) finite
        gates = (eta, (1 - eta) * theta, alpha)
        return self._query(convolved_BSE), self._unit(self.key, shows), self._unit(self.value, holds), gates


def _decay(log_keep_BHC: Tensor) -> tuple[Tensor, Tensor]:
    """Products of `keep` over (i, t] as a lower-triangular (C, C) matrix, and over [0, t] as a vector (C)."""
    total = log_keep_BHC.cumsum(-1)
    between = total[..., :, None] - total[..., None, :]
    lower = torch.ones(between.shape[-2:], dtype=torch.bool, device=between.device).tril()
    return between.masked_fill(~lower, float("-inf")).exp(), total.exp()


def _gradient_norm(error_BHCK: Tensor) -> Tensor:
    """Frobenius norm of error key^T over all heads, keys being of unit length: (batch, tokens)."""
    return error_BHCK.square().sum((1, 3)).sqrt()


def _write_chunk(
    key: Tensor, value: Tensor, gates: Gates, weight: Tensor, momentum: Tensor
) -> tuple[ChunkWrites, Tensor, Tensor]:
    """Write one chunk in closed form: `key`, `value` (B, H, C, K), gates (B, H, C). Returns the writes, and M and S
    after the chunk."""
    eta, theta, alpha = gates
    keep_CC, beta = _decay(torch.log1p(-alpha))
    carry_CC, carry = _decay(eta.clamp_min(1e-30).log())
    gamma = (keep_CC @ carry[..., None]).squeeze(-1)
    momentum_coefficients = carry_CC * theta[..., None, :]
    coefficients = keep_CC @ momentum_coefficients
    # M_{t-1} k_t = known_t + sum_{i<t} before_ti e_i, where row t of the coefficients is that of token t - 1
    known = F.pad(beta, (1, -1), value=1.0)[..., None] * (key @ weight.mT)
    known = known + F.pad(gamma, (1, -1))[..., None] * (key @ momentum.mT)
    before = F.pad(coefficients, (0, 0, 1, -1)) * (key @ key.mT)
    full = torch.float64 if key.dtype == torch.float64 else torch.float32
    error = torch.linalg.solve_triangular(
        before.to(full), (value - known).to(full), upper=False, unitriangular=True
    ).to(key.dtype)
    writes = ChunkWrites(weight, momentum, key, error, coefficients, beta, gamma)
    last = (coefficients[..., -1, :, None] * error).mT @ key
    last_momentum = (momentum_coefficients[..., -1, :, None] * error).mT @ key
    new_weight = beta[..., -1, None, None] * weight + gamma[..., -1, None, None] * momentum + last
    return writes, new_weight, carry[..., -1, None, None] * momentum + last_momentum
