"""One rank of a process group: trains a small trunk, searches a merge, and says what it holds. Started by torchrun."""

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
    """The losses that a rank reports."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def metrics(self, step: int, values: object) -> None:
        """Keep the loss."""
        self.losses += [v for k, v in dict(values).items() if k.endswith("/loss")]  # type: ignore[call-overload]


def trunk(data: TrainingData, rows: int, checkpoint: Path | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights and losses of a trunk after a few steps, with batches of `rows` rows."""
    reporter = Counting()
    config = nested(TrunkConfig, **SHAPE, **(TRAINING | {"batch_size": rows}), steps=4, cycles=2, num_supervision=2)
    model, _ = train_trunk(config, data, reporter, checkpoint)
    return dict(model.state_dict()), reporter.losses


def search(checkpoint: Path | None = None) -> tuple[EvolutionResult, int]:
    """A search on a known landscape, and how often this rank measured."""
    models, parents = branched_models()
    fitness = quadratic(models, parents, (0.6, 0.5, 0.3))
    measured = 0

    def counted(state: dict[str, torch.Tensor], settings: str) -> float:
        nonlocal measured
        measured += 1
        return fitness(state, settings)

    return evolve(models, parents, counted, EvolutionConfig(generations=6), SilentReporter(), checkpoint), measured


def apart() -> str:
    """The weights' digest after a step of models that start from different weights on different distributed."""
    torch.manual_seed(distributed.rank())
    model = nn.Linear(3, 1)
    config = TrainingConfig(steps=1, batch_size=4, seq_len=2)
    train(model, squares, lambda g: torch.rand(4, 3, generator=g), config, SilentReporter(), rows_apart=True)
    return weights_digest(model).hex()


def squares(model: nn.Module, batch: torch.Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
    """The mean square of the outputs."""
    out = model(batch)
    return StepResult(out.square().mean(), out, None, {})


def refusals(data: TrainingData, out: Path) -> list[str]:
    """What is said of a batch with fewer rows than ranks, of ranks that would go on from different steps, of a search
    that only the first one finds, and of a phase that is made by one."""
    said = []
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
            said.append(str(error))
    return said


def main(tokens: Path, tasks: Path, out: Path) -> None:
    """Do everything once and write what this rank found."""
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
