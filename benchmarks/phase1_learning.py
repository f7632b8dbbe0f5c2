"""What each part of Cognate buys: models of equally many parameters, trained for equally many CPU-seconds.

    python -m benchmarks.phase1_learning [--seconds 120] [--seeds 1 2 3] [--only plain memory ...]

The data are the newest tokens and task bank of the forge home, made at profile `nano` (`forge run --select task_bank`).
A variant's feed-forward width makes up for the parameters that it has more or less. Its seconds are
turned into steps by timing all variants in turn before any is trained, so that a schedule ends where its time does;
`--equal tokens` gives all the steps of the plain decoder, which is always among them.
Each model is measured on validation data: bits per byte of each source, and written answers by family. One line of
JSON for each, then means and ranges over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from forge_resources import forge_home
from training_core.data.batches import TrainingData
from training_core.data.packing import TokenStream
from training_core.data.task_bank import WORLD_FAMILIES, read_tasks
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.generated_answers import answer_tasks
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.windows import choose_documents, cut_windows
from training_core.nn.cognate import Cognate, CognateConfig, count_parameters
from training_core.optim.mugrokfast import MuGrokfast
from training_core.phases.p1_cognate.train import train_trunk
from training_core.profiles import profile_of
from training_core.reporting import SilentReporter
from training_core.training.objective import next_token_objective

PLAIN: dict[str, Any] = {"memory_layers": [], "window": 128}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 32},
    "memory": {"memory_layers": [0], "use_memory": True},
    "memory unused": {"memory_layers": [0], "use_memory": False},
    "window, memory": {"window": 32, "memory_layers": [0], "use_memory": True},
    "recursion": {"latent_steps": 1, "num_supervision": 2},
    "recursion, halting": {"latent_steps": 1, "num_supervision": 2, "halt_threshold": 0.6},
}
TIMED_STEPS = 9
TEXT_TOKENS, ITEMS = 24_000, 200


def shapes(vocab_size: int) -> dict[str, CognateConfig]:
    """Return the variants with feed-forward widths that give each about the parameters of the plain decoder."""
    base = profile_of("nano").trunk.shape.model_dump() | PLAIN
    target = count_parameters(Cognate(CognateConfig(vocab_size=vocab_size, **base)))

    def fitted(changes: dict[str, Any]) -> CognateConfig:
        of_width = [CognateConfig(vocab_size=vocab_size, **base | changes | {"d_ff": d}) for d in range(200, 400, 4)]
        return min(of_width, key=lambda shape: abs(count_parameters(Cognate(shape)) - target))

    return {name: fitted(changes) for name, changes in VARIANTS.items()}


def seconds_a_step(variants: dict[str, CognateConfig]) -> dict[str, float]:
    """Return the median CPU-seconds of an optimizer step of each variant, timed in turn."""
    training = profile_of("nano").trunk.training
    models = {name: Cognate(shape).train() for name, shape in variants.items()}
    optimizers = {name: MuGrokfast(model, training) for name, model in models.items()}
    batch = torch.randint(0, next(iter(variants.values())).vocab_size, (training.batch_size, training.seq_len + 1))
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(TIMED_STEPS):
        for name, model in models.items():
            carry = None
            began = time.process_time()
            for _ in range(model.config.num_supervision):
                result = next_token_objective(model, batch, carry, torch.Generator())
                result.loss.backward()  # type: ignore[no-untyped-call]
                optimizers[name].step(0.1)
                carry = result.carry
            times[name].append(time.process_time() - began)
    return {name: statistics.median(of[2:]) for name, of in times.items()}


def measure(model: Cognate, tokens: Path, task_bank: Path) -> dict[str, float]:
    """Return bits per byte of each source and the share of right written answers of each family, on validation data."""
    stream = TokenStream.open(tokens, "validation")
    counts = measure_windows(model, cut_windows(stream, TEXT_TOKENS, 256), 16)
    places = torch.tensor(choose_documents(stream, TEXT_TOKENS))
    found = {}
    for source in stream.sources:
        where = (places >= source.first) & (places < source.end)
        bits = float(counts.nats[where].sum() / counts.num_bytes[where].sum()) / math.log(2)
        found[f"bits per byte, {source.name}"] = bits
    tokenizer = load_tokenizer((tokens / "tokenizer.json").read_text(encoding="utf-8"))
    tasks = list(read_tasks(task_bank, "validation"))
    for family in WORLD_FAMILIES:
        asked = [task for task in tasks if task.family == family][:ITEMS]
        for name, outcomes in answer_tasks(model, tokenizer, asked).items():
            found[name] = float(outcomes.mean())
    return found


def main() -> None:
    """Train and measure every variant in every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--equal", choices=("seconds", "tokens"), default="seconds", help="tokens: those of plain")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokens, task_bank = (
        max((forge_home() / "models" / name).iterdir(), key=lambda f: f.stat().st_mtime)
        for name in ("tokens", "task_bank")
    )
    data = TrainingData.open(tokens, task_bank)
    preset = profile_of("nano").trunk
    variants = {
        name: shape
        for name, shape in shapes(load_tokenizer(data.tokenizer_json).get_vocab_size()).items()
        if name in {"plain", *arguments.only}
    }
    step_s = seconds_a_step(variants)
    whole = preset.first.steps + preset.training.steps
    results: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for seed in arguments.seeds:
        for name, shape in variants.items():
            steps = max(10, round(arguments.seconds / step_s[name if arguments.equal == "seconds" else "plain"]))
            first = round(steps * preset.first.steps / whole)
            config = preset.model_copy(
                update={
                    "shape": preset.shape.model_validate(shape.model_dump(exclude={"vocab_size"})),
                    "first": preset.first.model_copy(update={"steps": first}),
                    "training": preset.training.model_copy(update={"steps": steps - first, "seed": seed}),
                }
            )
            began = time.process_time()
            model, _ = train_trunk(config, data, SilentReporter())
            seconds = time.process_time() - began
            with torch.no_grad():
                found = measure(model.eval(), tokens, task_bank)
            results[name].append(found)
            told = {"variant": name, "seed": seed, "parameters": count_parameters(model), "steps": steps}
            print(
                json.dumps(told | {"CPU-seconds": round(seconds, 1)} | {k: round(v, 4) for k, v in found.items()}),
                flush=True,
            )
    for measured in next(iter(results.values()))[0]:
        print(measured)
        for name, of in results.items():
            values = [found[measured] for found in of]
            print(f"  {name:20s} {statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    main()
