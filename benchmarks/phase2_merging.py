"""Median time of merging three models of 25M parameters: this project against mergekit, in one run.

    python benchmarks/phase2_merging.py [--repeats 3] [--threads 1]

Both merge the same tensors, and the difference of their results is printed with the times. Two differences are
expected: if several entries of a task vector tie at TIES' magnitude threshold, mergekit keeps an arbitrary one and
this project the first; and mergekit sums SLERP's cosine in float32. mergekit is a development dependency
(`pip install -e '.[dev]'`).
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch

from training_core.phases.p2_evomerge.methods import StateDict, linear, slerp, ties

Merge = Callable[[], dict[str, torch.Tensor]]
DENSITY = 0.5
WEIGHTS = (0.5, 0.3, 0.2)


def random_models(count: int) -> list[dict[str, torch.Tensor]]:
    """Return a trunk and `count` branches: 8 layers, d_model 512, d_ff 1024, vocabulary 8192, 25.2M parameters each."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (8192, 512)}
    for layer in range(8):
        shapes |= {f"{layer}.{name}": (512, 512) for name in ("query", "key", "value", "output")}
        shapes |= {f"{layer}.up": (1024, 512), f"{layer}.gate": (1024, 512), f"{layer}.down": (512, 1024)}
        shapes |= {f"{layer}.norm": (512,)}
    trunk = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    branches = [
        {name: x + 0.1 * torch.randn(x.shape, generator=generator) for name, x in trunk.items()} for _ in range(count)
    ]
    return [trunk, *branches]


def median_seconds(merge: Merge, repeats: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the median wall time of `repeats` calls in seconds, and the last result."""
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = merge()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def differences(a: StateDict, b: StateDict) -> tuple[float, int]:
    """Return the largest absolute difference of two entries, and the number of differences above 1e-4."""
    gaps = torch.cat([(a[name] - b[name]).abs().reshape(-1) for name in a])
    return float(gaps.max()), int((gaps > 1e-4).sum())


def main() -> None:
    """Time each pair of implementations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mergekit's dependencies warn on import
        from mergekit.merge_methods import merge_state_dicts
    torch.set_num_threads(arguments.threads)
    trunk, *branches = random_models(3)
    numbered = dict(enumerate([trunk, *branches]))
    weights = {"weight": dict(enumerate(WEIGHTS, start=1)), "density": DENSITY}
    pairs: dict[str, tuple[Merge, Merge]] = {
        "ties": (
            lambda: ties(trunk, branches, WEIGHTS, DENSITY),
            lambda: merge_state_dicts(numbered, "ties", base=0, parameters=weights),
        ),
        "slerp": (
            lambda: slerp(trunk, branches[0], 0.3),
            lambda: merge_state_dicts(dict(list(numbered.items())[:2]), "slerp", base=0, parameters={"t": 0.3}),
        ),
        "linear": (
            lambda: linear(branches, WEIGHTS),
            lambda: merge_state_dicts(branches, "linear", parameters={"weight": list(WEIGHTS)}),
        ),
    }
    num_parameters = sum(x.numel() for x in trunk.values())
    print(
        f"{num_parameters / 1e6:.1f}M parameters, {len(branches)} models, {arguments.threads} thread(s), "
        f"median of {arguments.repeats}, torch {torch.__version__}"
    )
    print("method     ours s  mergekit s  mergekit/ours  largest gap  gaps > 1e-4")
    for name, (ours, theirs) in pairs.items():
        our_time, our_result = median_seconds(ours, arguments.repeats)
        their_time, their_result = median_seconds(theirs, arguments.repeats)
        largest, count = differences(our_result, their_result)
        ratio = their_time / our_time
        print(f"{name:8} {our_time:8.3f} {their_time:11.3f} {ratio:14.2f} {largest:12.1e} {count:12d}")


if __name__ == "__main__":
    main()
