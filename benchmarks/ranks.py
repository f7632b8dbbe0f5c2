"""Seconds per training step: one process, several data-parallel ranks, and torch's DistributedDataParallel, in one run.

    python benchmarks/ranks.py [--profile nano] [--processes 2] [--steps 20] [--rows 8]

Every arrangement trains the trunk of the profile on the same random tokens and uses all cores: one process with a
thread per core, or several processes that divide the cores. For the two parallel arrangements, the distance of the
weight updates from those of the single process is printed, relative to the norm of the latter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training_core.nn.cognate import Cognate, CognateConfig
from training_core.optim.mugrokfast import MuGrokfast
from training_core.profiles import profile_of
from training_core.reporting import SilentReporter
from training_core.training import distributed
from training_core.training.device import best_device
from training_core.training.loop import TrainingConfig, step_generator, train
from training_core.training.objective import next_token_objective

VOCABULARY = 1024
WARM_STEPS = 3


class Timed(SilentReporter):
    """A reporter that records the time at which each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def progress(self, done: int, total: int, label: str) -> None:
        """Record the time."""
        self.ends.append(time.perf_counter())


class Loss(nn.Module):
    """The objective as the forward pass of a module, which DistributedDataParallel requires."""

    def __init__(self, model: Cognate) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return next_token_objective(self.model, batch, None, torch.Generator()).loss


def configured(options: argparse.Namespace) -> TrainingConfig:
    """Return the trunk's training configuration of the profile, shortened and with a constant learning rate."""
    changed = {"steps": options.steps, "batch_size": options.rows, "warmup_fraction": 0.0, "decay_fraction": 0.0}
    return profile_of(options.profile).trunk.training.model_copy(update=changed)


def batches(config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """Return random tokens (rows, seq + 1)."""
    return torch.randint(VOCABULARY, (config.batch_size, config.seq_len + 1), generator=generator)


def ours(model: Cognate, config: TrainingConfig) -> list[float]:
    """Train with this project's loop and return the times at which its steps ended."""
    timed = Timed()
    train(model, next_token_objective, lambda g: batches(config, g), config, timed, rows_apart=True)
    return timed.ends


def peer(model: Cognate, config: TrainingConfig) -> list[float]:
    """Train with torch's DistributedDataParallel and return the times at which its steps ended."""
    model.to(best_device()).train()
    wrapped = nn.parallel.DistributedDataParallel(Loss(model), find_unused_parameters=False)
    optimizer = MuGrokfast(model, config)
    ends = []
    for step in range(config.steps):
        batch, _ = distributed.rows_of_this_rank(batches(config, step_generator(config.seed, step)))
        wrapped(batch.to(best_device())).backward()
        optimizer.step(1.0)
        ends.append(time.perf_counter())
    return ends


def work(options: argparse.Namespace) -> None:
    """Train in this process, alone or as one rank of several; the first rank writes the weight updates."""
    config = configured(options)
    shape = CognateConfig(vocab_size=VOCABULARY, **profile_of(options.profile).trunk.shape.model_dump())
    torch.manual_seed(config.seed)
    model = Cognate(shape)
    start = {n: t.clone() for n, t in model.state_dict().items()}
    with distributed.joined(options.out):
        ends = ours(model, config) if options.work == "ours" else peer(model, config)
        if distributed.is_first():
            gaps = [b - a for a, b in zip(ends[WARM_STEPS:], ends[WARM_STEPS + 1 :], strict=False)]
            save_file(
                {n: (t.cpu() - start[n].cpu()).contiguous() for n, t in model.state_dict().items()}
                | {"seconds": torch.tensor([statistics.median(gaps)], dtype=torch.float64)},
                options.out / "moved.safetensors",
            )


def run(options: argparse.Namespace, arrangement: str, processes: int) -> dict[str, Tensor]:
    """Run one arrangement in new processes; return the seconds per step and the weight updates."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        own = [str(Path(__file__)), f"--work={arrangement}", f"--out={folder}", f"--profile={options.profile}"]
        own += [f"--steps={options.steps}", f"--rows={options.rows}"]
        elastic = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // processes)), "GOMP_SPINCOUNT": "1000"}
        subprocess.run([sys.executable, *(elastic if processes > 1 else []), *own], env=environment, check=True)
        return load_file(Path(folder) / "moved.safetensors")


def main() -> None:
    """Time the arrangements and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="nano")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--work", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    alone = run(options, "ours", 1)
    base = float(alone.pop("seconds"))
    print(f"{options.profile}, {options.rows} rows, {len(os.sched_getaffinity(0))} cores")
    print(f"{'one process':<42}{base:8.4f} s a step   1.00 x")
    for name, arrangement in (("our sum of gradients", "ours"), ("DistributedDataParallel", "peer")):
        moved = run(options, arrangement, options.processes)
        seconds = float(moved.pop("seconds"))
        apart = sum(float((moved[n] - t).float().square().sum()) for n, t in alone.items()) ** 0.5
        length = sum(float(t.float().square().sum()) for t in alone.values()) ** 0.5
        label = f"{options.processes} processes, {name}"
        print(f"{label:<42}{seconds:8.4f} s a step   {base / seconds:4.2f} x   weights apart {apart / length:.1e}")


if __name__ == "__main__":
    main()
