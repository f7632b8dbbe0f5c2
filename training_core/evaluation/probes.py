"""Validity probes (bit-exact causality, agreement of streaming and parallel forms, finite weights) and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from training_core.nn.cognate import Cognate


@torch.no_grad()
def causality_violations(model: Cognate, tokens_BS: Tensor, positions: Iterable[int]) -> int:
    """Count the logits before j that change in any bit when token j changes, summed over the `positions` j."""
    model.eval()
    original = model(tokens_BS).logits
    violations = 0
    for position in positions:
        changed = tokens_BS.clone()
        changed[:, position] = (changed[:, position] + 1) % model.config.vocab_size
        violations += int((model(changed).logits[:, :position] != original[:, :position]).sum())
    return violations


@torch.no_grad()
def streaming_error(model: Cognate, tokens_BS: Tensor) -> float:
    """Return the largest difference in log-probability between the streaming and the parallel form."""
    model.eval()
    parallel = model(tokens_BS).logits.double().log_softmax(-1)
    state = model.stream(tokens_BS.shape[0])
    worst = 0.0
    for position in range(tokens_BS.shape[1]):
        streamed = model.step(tokens_BS[:, position], state).double().log_softmax(-1)
        worst = max(worst, float((streamed - parallel[:, position]).abs().max()))
    return worst


@torch.no_grad()
def latency_ms_per_token(model: Cognate, tokens_S: Tensor) -> float:
    """Return the median wall-clock milliseconds of one streaming step at batch size 1, after 4 warm-up steps."""
    model.eval()
    state = model.stream(1)
    times = []
    for token in tokens_S:
        started = time.perf_counter()
        model.step(token[None], state)
        if token.is_cuda:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[4:])


def non_finite_weights(tensors: Iterable[Tensor]) -> int:
    """Return the number of weights that are NaN or infinite."""
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors if t.is_floating_point())
