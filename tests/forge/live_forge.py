"""A code location whose models are trained by the real loop, for the tests that kill processes.

    tokens -> evaluation_suite -> trunk -> left
    notes                               -> right

Each model is a small network that learns a fixed map; every step writes a checkpoint.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import tiny_forge
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from forge_assets.checks import asset_checks
from forge_assets.factory import DataRun, data_asset, phase_asset
from forge_assets.gates import gate_checks as checks_of
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking
from training_core.evaluation.suite import Measurement
from training_core.gates import Gate
from training_core.phase import Phase, PhaseContext
from training_core.reporting import Reporter
from training_core.store.bundle import Bundle, Product
from training_core.training.loop import StepResult, TrainingConfig, train

DIARY = "steps.txt"
HOLD = "hold"  # while this file is in the store, training blocks at the step that it names
MODELS = ("trunk", "left", "right")
GATES = tuple(Gate(name, "finite", "non_finite_weights", "at_most", 0, "count") for name in MODELS)


def gate_checks() -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    return checks_of(GATES)


class LiveConfig(TrainingConfig):
    steps: int = Field(20, ge=1, description="Batches.")
    checkpoint_interval_s: float = Field(0.0, ge=0, description="Seconds between resume points.")
    width: int = Field(8, ge=1, description="Width of the network: what a step costs.")
    step_s: float = Field(0.0, ge=0, description="Seconds a step takes beyond its arithmetic.")
    ballast: int = Field(0, ge=0, description="Numbers in a tensor that only the finished model has.")


def objective(model: nn.Module, batch: Tensor, _carry: Any, _generator: torch.Generator) -> StepResult:
    out = model(batch)
    return StepResult((out - batch.flip(-1)).square().mean(), out, None, {})


def hold(store: Path, step: int) -> None:
    file = store / HOLD
    while file.exists() and step >= int(file.read_text()):
        time.sleep(0.02)


def learn(run: PhaseContext, config: LiveConfig) -> Product:
    torch.manual_seed(config.seed)
    model = nn.Sequential(nn.Linear(config.width, config.width), nn.Tanh(), nn.Linear(config.width, config.width))
    store = run.checkpoint.parents[1]
    diary = store / DIARY  # lists every step that began; a step that is listed twice was lost to a kill
    begun: list[int] = []

    def before_step(step: int) -> None:
        begun.append(step)
        with diary.open("a") as file:
            file.write(f"{run.checkpoint.name} {step} {os.getpid()}\n")
        hold(store, step)

    def batches(generator: torch.Generator) -> Tensor:
        time.sleep(config.step_s)
        return torch.randn(config.batch_size, config.width, generator=generator)

    train(model, objective, batches, config, run.reporter, checkpoint=run.checkpoint, before_step=before_step)
    ballast = {"ballast": torch.zeros(config.ballast)} if config.ballast else {}
    return Product(
        kind="cognate",
        model_config={"width": config.width},
        tensors={**model.state_dict(), **ballast},
        tokenizer_json='{"tokens": 8}',
        metrics={"steps_resumed": float(begun[0] if begun else config.steps)},
    )


def measure(bundle: Bundle, suite: Path, parents: Mapping[str, Bundle], reporter: Reporter) -> Measurement:
    weights = bundle.tensors().values()
    return Measurement(
        metrics={"non_finite_weights": float(sum(int((~weight.isfinite()).sum()) for weight in weights))},
        tasks={},
        counts={"bytes": torch.arange(3)},
    )


class NotesConfig(BaseModel):
    model_config = ConfigDict(frozen=True)

    steps: int = Field(default=2, ge=1, description="In how many steps they are written.")


@data_asset(preset=lambda profile, asset: None)
def notes(run: DataRun, config: NotesConfig) -> Mapping[str, float | str]:
    """Data that is written step by step."""
    store = run.out.parents[2]
    for step in range(config.steps):
        with (store / DIARY).open("a") as file:
            file.write(f"notes {step} {os.getpid()}\n")
        hold(store, step)
    (run.out / "notes.txt").write_text("notes")
    return {}


PHASES: dict[str, Phase] = {}


def _model(name: str, parents: tuple[str, ...]) -> dg.AssetsDefinition:
    described = f"The model {name}."
    PHASES[name] = Phase(
        name,
        1,
        described,
        LiveConfig,
        learn,
        parents,
        tiny_forge.DATA,
        measure=measure,
        module=__name__,
    )
    return phase_asset(PHASES[name], preset=lambda profile, asset: None, checks=gate_checks())


defs = dg.Definitions(
    assets=[
        tiny_forge.tokens,
        tiny_forge.evaluation_suite,
        notes,
        _model("trunk", ()),
        _model("left", ("trunk",)),
        _model("right", ("trunk",)),
    ],
    asset_checks=asset_checks(GATES),
    resources={
        "store": ModelStore(),
        "tracking": MlflowTracking(enabled="FORGE_MLFLOW_URI" in os.environ),
        "launcher": Launcher(),
    },
    executor=dg.in_process_executor,
)
