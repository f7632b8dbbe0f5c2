"""What experts on singular values cost: a training step, inference, decomposition, and bytes.

    python -m benchmarks.phase7_experts [--profiles nano mini forge_25m] [--rows 16] [--tokens 32] [--repeats 7]

Random ternary weights of the profiles' shapes. Everything is timed in turn in every repeat, after one that is not
counted; medians, and ratios to the plain model in the same run.

    train, experts     forward and backward pass with W' composed from p and a gradient in p alone
    train, all         the same of the model that phases train: every weight ternarised, a gradient in every latent
    infer, plain       a forward pass of the decoded model
    infer, one         with multipliers for all rows: W' is composed once
    infer, rows        with multipliers for each row: x V diag(S m) U^T
    infer, one by one  the same multipliers, W' composed for each row and the rows one after the other
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.cognate import Cognate, CognateConfig, count_parameters
from training_core.nn.svf import Expert, SVFModel, decompose
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phases.p7_experts.lora_baseline import adapter_bytes
from training_core.profiles import PROFILES, profile_of
from training_core.training.device import best_device


def random_model(profile: str) -> Cognate:
    """A ternary model of a profile's shape."""
    sizes = profile_of(profile)
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=sizes.tokenizer.vocab_size, **sizes.trunk.shape.model_dump()))
    make_ternary(model, TernarySettings())
    return model.to(best_device())


def learn_once(model: nn.Module, tokens_BT: Tensor) -> None:
    """A forward and a backward pass; the gradients are dropped."""
    logits_BSV = model(tokens_BT[:, :-1]).logits
    F.cross_entropy(logits_BSV.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.grad = None


@torch.no_grad()
def infer(svf: SVFModel, tokens_BT: Tensor, multipliers: dict[str, Tensor] | None) -> None:
    """One forward pass."""
    with svf.using(multipliers) as model:
        model(tokens_BT)


def one_by_one(svf: SVFModel, tokens_BT: Tensor, multipliers: dict[str, Tensor]) -> None:
    """Every row with its own W'."""
    for row in range(len(tokens_BT)):
        infer(svf, tokens_BT[row : row + 1], {name: m_BR[row] for name, m_BR in multipliers.items()})


def medians(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall-clock milliseconds of each."""
    found: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(repeats + 1):
        for name, call in timed.items():
            started = time.perf_counter()
            call()
            if best_device().type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                found[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in found.items()}


def measure(profile: str, rows: int, tokens: int, repeats: int) -> None:
    """Print one profile."""
    latents = random_model(profile)
    svf = SVFModel(latents)
    trained = svf.trainable()
    weights = {name: layer.weight for name, layer in svf.layers.items()}
    batch = torch.randint(1, latents.config.vocab_size, (rows, tokens + 1), device=best_device())
    per_row = {name: 0.5 + torch.rand(rows, len(its.s_R), device=its.s_R.device) for name, its in svf.singular.items()}
    one = {name: m_BR[0] for name, m_BR in per_row.items()}
    found = medians(
        {
            "train, all": lambda: learn_once(latents, batch),
            "train, experts": lambda: learn_once(trained, batch),
            "infer, plain": lambda: infer(svf, batch, None),
            "infer, one": lambda: infer(svf, batch, one),
            "infer, rows": lambda: infer(svf, batch, per_row),
            "infer, one by one": lambda: one_by_one(svf, batch, per_row),
            "decomposition": lambda: [decompose(weight_OI) for weight_OI in weights.values()],
        },
        repeats,
    )
    expert = Expert.of(one, svf.singular)
    adapters = sum(adapter_bytes(weight_OI) for weight_OI in weights.values())
    print(
        f"\n{profile}: {count_parameters(latents):,} parameters, {len(weights)} matrices scaled; an expert has "
        f"{expert.num_parameters:,} parameters in {expert.num_bytes:,} bytes, adapters of rank 1 on all of them have "
        f"{adapters:,} bytes ({adapters / expert.num_bytes:.2f} times as many)"
    )
    print(f"{'':20s} {'ms':>9s} {'/ train, all':>13s} {'/ infer, plain':>15s}")
    for name, value in found.items():
        print(f"{name:20s} {value:9.1f} {value / found['train, all']:13.2f} {value / found['infer, plain']:15.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", nargs="+", default=list(PROFILES), choices=PROFILES)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"{arguments.rows} x {arguments.tokens} tokens, {best_device()}, {torch.get_num_threads()} threads")
    for profile in arguments.profiles:
        measure(profile, arguments.rows, arguments.tokens, arguments.repeats)


if __name__ == "__main__":
    main()
