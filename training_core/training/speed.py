"""How fast this machine trains: real optimizer steps at a model's shape."""

from __future__ import annotations

import statistics
import time

import torch

from training_core.nn.cognate import Cognate, CognateConfig, ShapeConfig
from training_core.optim.mugrokfast import MuGrokfast
from training_core.training.device import autocast, best_device
from training_core.training.loop import TrainingConfig
from training_core.training.objective import next_token_objective


def tokens_per_second(shape: ShapeConfig, vocab_size: int, training: TrainingConfig, budget_s: float) -> float:
    """Return the tokens per second of training steps on random tokens: the median of those with the largest batch.

    Batches grow from one sequence to `training.batch_size` while steps fit `budget_s` seconds and the device's memory.
    At least two steps are taken, however long they take; the first one of each size does not count.
    """
    device = best_device()
    torch.manual_seed(training.seed)
    model = Cognate(CognateConfig(vocab_size=vocab_size, **shape.model_dump())).to(device).train()
    optimizer = MuGrokfast(model, training)
    generator = torch.Generator().manual_seed(training.seed)

    def step(rows: int) -> float:
        batch = torch.randint(vocab_size, (rows, training.seq_len + 1), generator=generator).to(device)
        started = time.monotonic()
        with autocast(device, training.precision):
            result = next_token_objective(model, batch, None, generator)
        result.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)  # waits for the device
        return time.monotonic() - started

    rows, ends = 1, time.monotonic() + budget_s
    step(rows)
    taken = [step(rows)]
    while time.monotonic() + 2 * taken[-1] < ends:
        if rows < training.batch_size and time.monotonic() + 5 * taken[-1] < ends:
            larger = min(2 * rows, training.batch_size)
            try:
                step(larger)
            except torch.OutOfMemoryError:
                break
            rows, taken = larger, [step(larger)]
        else:
            taken.append(step(rows))
    return rows * training.seq_len / statistics.median(taken)
