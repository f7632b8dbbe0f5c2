"""The cost of singular value experts (SVF): training step, inference, decomposition (SVD), and bytes.

    python -m benchmarks.phase7_experts [--profiles nano mini forge_25m] [--rows 16] [--tokens 32] [--repeats 7]

The models have random ternary weights and the profiles' shapes. Everything is timed in turn within every repeat, after
one warm-up round. Reported are medians, and ratios to the plain model in the same run.

    train, experts     forward and backward pass with W' composed from p, gradients only for p
    train, all         the same for ordinary training: every weight is ternarised, gradients for every latent weight
    infer, plain       forward pass of the decoded model
    infer, one         one set of multipliers for the batch: W' is composed once
    infer, rows        multipliers per row: x V diag(S m) U^T
    infer, one by one  the same multipliers, but W' is composed for each row and the rows run one after the other
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
    """Return a random ternary model of a profile's shape."""
    sizes = profile_of(profile)
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=sizes.tokenizer.vocab_size, **sizes.trunk.shape.model_dump()))
    make_ternary(model, TernarySettings())
    return model.to(best_device())


def learn_once(model: nn.Module, tokens_BT: Tensor) -> None:
    """Run a forward and a backward pass and discard the gradients."""
    logits_BSV = model(tokens_BT[:, :-1]).logits
    F.cross_entropy(logits_BSV.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.grad = None


@torch.no_grad()
def infer(svf: SVFModel, tokens_BT: Tensor, multipliers: dict[str, Tensor] | None) -> None:
    """Run one forward pass with `multipliers`, or with the plain weights if None."""
    with svf.using(multipliers) as model:
        model(tokens_BT)


def one_by_one(svf: SVFModel, tokens_BT: Tensor, multipliers: dict[str, Tensor]) -> None:
    """Run a forward pass for each row, with its own W'."""
    for row in range(len(tokens_BT)):
        infer(svf, tokens_BT[row : row + 1], {name: m_BR[row] for name, m_BR in multipliers.items()})


def medians(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median wall-clock milliseconds of each call, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(repeats + 1):
        for name, call in timed.items():
            started = time.perf_counter()
            call()
            if best_device().type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(profile: str, rows: int, tokens: int, repeats: int) -> None:
    """Measure one profile and print its table."""
    latents = random_model(profile)
    svf = SVFModel(latents)
    trained = svf.trainable()
    weights = {name: layer.weight for name, layer in svf.layers.items()}
    batch = torch.randint(1, latents.config.vocab_size, (rows, tokens + 1), device=best_device())
    per_row = {name: 0.5 + torch.rand(rows, len(svd.s_R), device=svd.s_R.device) for name, svd in svf.singular.items()}
    one = {name: m_BR[0] for name, m_BR in per_row.items()}
    milliseconds = medians(
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
        f"\n{profile}: {count_parameters(latents):,} parameters, {len(weights)} adapted matrices; an expert has "
        f"{expert.num_parameters:,} parameters in {expert.num_bytes:,} bytes, rank-1 LoRA adapters on the same "
        f"matrices take {adapters:,} bytes ({adapters / expert.num_bytes:.2f} times as many)"
    )
    print(f"{'':20s} {'ms':>9s} {'/ train, all':>13s} {'/ infer, plain':>15s}")
    train_ms, infer_ms = milliseconds["train, all"], milliseconds["infer, plain"]
    for name, value in milliseconds.items():
        print(f"{name:20s} {value:9.1f} {value / train_ms:13.2f} {value / infer_ms:15.2f}")


def main() -> None:
    """Print a table for each profile."""
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
