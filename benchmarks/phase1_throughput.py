"""Throughput of phase 1: a training step and a streaming step, with and without memory and recursion.

    python -m benchmarks.phase1_throughput [--profile nano] [--repeats 7]

The models are timed in turn within one run. Reported are medians, and ratios to a plain decoder of the same shape.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from training_core.evaluation.probes import latency_ms_per_token
from training_core.nn.cognate import Cognate, CognateConfig, count_parameters
from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig
from training_core.profiles import profile_of
from training_core.training.device import autocast, best_device
from training_core.training.objective import next_token_objective

VARIANTS: dict[str, dict[str, Any]] = {
    "plain decoder": {"memory_layers": []},
    "with memory": {"use_memory": True},
    "with memory, n = 1": {"use_memory": True, "latent_steps": 1},
    "with memory, T = 2, n = 2": {"use_memory": True, "cycles": 2, "latent_steps": 2},
}


def training_seconds(model: Cognate, rows: int, length: int) -> float:
    """Return the wall-clock seconds of one optimizer step on `rows` random sequences."""
    device = best_device()
    optimizer = MuGrokfast(model, OptimizerConfig())
    batch = torch.randint(0, model.config.vocab_size, (rows, length + 1), device=device)
    started = time.perf_counter()
    with autocast(device, "auto"):
        result = next_token_objective(model, batch, None, torch.Generator())
    result.loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step(1.0)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Time every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="nano")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    sizes = profile_of(arguments.profile)
    shape = sizes.trunk.shape.model_dump()
    rows, length = sizes.trunk.training.batch_size, sizes.trunk.training.seq_len
    vocab = sizes.tokenizer.vocab_size
    models = {
        name: Cognate(CognateConfig(vocab_size=vocab, **shape | changes)).to(best_device())
        for name, changes in VARIANTS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(arguments.repeats + 2):
        for name, model in models.items():
            seconds = training_seconds(model, rows, length)
            if repeat >= 2:  # the first two rounds are warm-up
                times[name].append(seconds)
    tokens = torch.randint(0, vocab, (48,), device=best_device())
    reference = statistics.median(times["plain decoder"])
    print(f"{arguments.profile}: {rows} x {length} tokens, {best_device()}, {torch.get_num_threads()} threads")
    print(f"{'model':28s} {'params':>10s} {'train tok/s':>12s} {'step / plain':>13s} {'stream ms/token':>16s}")
    for name, model in models.items():
        median = statistics.median(times[name])
        print(
            f"{name:28s} {count_parameters(model):10,d} {rows * length / median:12,.0f} {median / reference:13.2f} "
            f"{latency_ms_per_token(model, tokens):16.2f}"
        )


if __name__ == "__main__":
    main()
