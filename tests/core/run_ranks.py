"""One rank of a process group, started by torchrun: train a small trunk, search for a merge, and write the results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.core.small_data import SHAPE, TRAINING
from tests.nested import nested
from tests.oracles.merging_landscape import branched_models, quadratic
from training_core.data.batches import TrainingData
from training_core.nn.cognate import Carry
from training_core.phases.p1_cognate.config import TrunkConfig
from training_core.phases.p1_cognate.train import train_trunk
from training_core.phases.p2_evomerge.evolution import EvolutionConfig, EvolutionResult, evolve
from training_core.reporting import SilentReporter
from training_core.store.checkpoint import weights_digest
from training_core.training import distributed
from training_core.training.loop import StepResult, TrainingConfig, train
from training_core.worker import Job, find_phase, make

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Counting(SilentReporter):
    """A reporter that keeps the losses of a rank."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def metrics(self, step: int, values: object) -> None:
        """Keep the loss among the metrics of a step."""
        self.losses += [v for k, v in dict(values).items() if k.endswith("/loss")]  # type: ignore[call-overload]


def trunk(data: TrainingData, rows: int, checkpoint: Path | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the weights and losses of a trunk after four steps, with batches of `rows` rows."""
    reporter = Counting()
    config = nested(TrunkConfig, **SHAPE, **(TRAINING | {"batch_size": rows}), steps=4, cycles=2, num_supervision=2)
    model, _ = train_trunk(config, data, reporter, checkpoint)
    return dict(model.state_dict()), reporter.losses


def search(checkpoint: Path | None = None) -> tuple[EvolutionResult, int]:
    """Return the result of a search on a known landscape, and the number of fitness evaluations of this rank."""
    models, parents = branched_models()
    fitness = quadratic(models, parents, (0.6, 0.5, 0.3))
    measured = 0

    def counted(state: dict[str, torch.Tensor], settings: str) -> float:
        nonlocal measured
        measured += 1
        return fitness(state, settings)

    return evolve(models, parents, counted, EvolutionConfig(generations=6), SilentReporter(), checkpoint), measured


def apart() -> str:
    """Return the digest of the weights after a step from initial weights that differ between ranks."""
    torch.manual_seed(distributed.rank())
    model = nn.Linear(3, 1)
    config = TrainingConfig(steps=1, batch_size=4, seq_len=2)
    train(model, squares, lambda g: torch.rand(4, 3, generator=g), config, SilentReporter(), rows_apart=True)
    return weights_digest(model).hex()


def squares(model: nn.Module, batch: torch.Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
    """Return the mean square of the outputs as the loss."""
    out = model(batch)
    return StepResult(out.square().mean(), out, None, {})


def refusals(data: TrainingData, out: Path) -> list[str]:
    """Return the error messages for a batch with fewer rows than ranks, for ranks that would resume from different
    steps, for a search that only the first rank finds, and for a phase that only one process can make."""
    messages = []
    unshared = {"phase": "reasoning_model", "profile": "nano", "config": {}, "parents": {}, "data": {}}
    job = Job(**unshared, checkpoint=out, out=out / "none", code_version="")
    for refused in (
        lambda: trunk(data, 1),
        lambda: distributed.require_same(distributed.rank(), "the step", CPU),
        lambda: search(out / ("evolution" if distributed.is_first() else "nowhere")),
        lambda: make(find_phase(job), job, SilentReporter()),
    ):
        try:
            refused()
        except ValueError as error:
            messages.append(str(error))
    return messages


def main(tokens: Path, tasks: Path, out: Path) -> None:
    """Run everything once and write the results of this rank."""
    data = TrainingData.open(tokens, tasks)
    with distributed.joined(out):
        found: dict[str, object] = {"size": distributed.world_size()}
        for rows in (4, 5):
            weights, losses = trunk(data, rows, out / f"checkpoint{rows}")
            save_file(weights, out / f"weights{rows}-{distributed.rank()}.safetensors")
            found[f"losses{rows}"] = losses
        resumed, losses = trunk(data, 5, out / "checkpoint5")
        found["resumed"] = [all(torch.equal(resumed[n], weights[n]) for n in weights), losses]
        result, found["measured"] = search(out / "evolution")
        found["champion"] = [result.champion_bits_per_byte, result.lineage, result.evaluations]
        found["apart"] = apart()
        found["refused"] = refusals(data, out)
        (out / f"found-{distributed.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
