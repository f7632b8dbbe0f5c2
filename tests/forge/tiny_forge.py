"""A forge small enough for tests, built by the real factory, gate table and schedules.

    tokens -> evaluation_suite            (data)
    trunk -> left -> left_child           (models: one tensor each)
          -> right -> right_child

A model "trains" by adding a constant to its tensor at each step; its metrics are simple statistics of that tensor.
The module is a code location: it has `defs`, and the gate table that the run coordinator reads.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file

from forge_assets.checks import asset_checks
from forge_assets.factory import DataRun, data_asset, phase_asset
from forge_assets.gates import gate_checks as checks_of
from forge_assets.schedules import schedule_sensor
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking
from training_core.evaluation.suite import Measurement
from training_core.gates import Gate
from training_core.phase import Phase, PhaseContext
from training_core.reporting import Figure, Reporter
from training_core.store.bundle import Bundle, Product

MODELS = ("trunk", "left", "right", "left_child", "right_child")
GATES = (
    *(Gate(name, "finite", "non_finite_weights", "at_most", 0, "count") for name in MODELS),
    *(Gate(name, "small", "mean_square", "at_most", 1.0, "mean of squares") for name in MODELS),
    Gate("right", "smaller", "mean_square", "at_most", 0.25, "mean of squares", blocking=False),
)


def gate_checks() -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    return checks_of(GATES)


class TokensConfig(BaseModel):
    model_config = ConfigDict(frozen=True)

    count: int = Field(default=8, ge=1, description="How many tokens.")


class StepsConfig(BaseModel):
    model_config = ConfigDict(frozen=True)

    value: float = Field(default=0.5, gt=0, le=100, description="Size of the weights.")
    steps: int = Field(default=1, ge=1, description="How many steps.")
    crash_at: int = Field(default=-1, description="Step at which the first attempt crashes.")
    step_s: float = Field(default=0.0, ge=0, description="Seconds a step takes.")
    figure: bool = Field(default=False, description="Whether to report a figure.")
    widths: tuple[int, ...] = Field(default=(2, 3), description="Shape of the tensor.")


def measure(bundle: Bundle, suite: Path, parents: Mapping[str, Bundle], reporter: Reporter) -> Measurement:
    weight = bundle.tensors()["weight"].double()
    expected = float((suite / "suite.txt").read_text())
    return Measurement(
        metrics={
            "params": float(weight.numel()),
            "non_finite_weights": float((~weight.isfinite()).sum()),
            "mean_square": float(weight.square().mean()),
            "suite": expected,
            "parents_sum": float(sum(p.tensors()["weight"].sum() for p in parents.values())),
        },
        tasks={"copy": {"accuracy": 0.25}},
        counts={"bytes": torch.arange(3)},
    )


def train(run: PhaseContext, config: StepsConfig) -> Product:
    """Walk `steps` steps to a tensor full of `value`; the state after each step is in the checkpoint."""
    state = run.checkpoint / "state.safetensors"
    crashed = run.checkpoint / "crashed"
    first, total = 0, torch.zeros(config.widths)
    if state.exists():
        loaded = load_file(state)
        first, total = int(loaded["step"]), loaded["total"]
    for step in range(first, config.steps):
        if step == config.crash_at and not crashed.exists():
            crashed.touch()
            raise RuntimeError(f"the accelerator fell over at step {step}")
        total = total + config.value / config.steps
        save_file({"step": torch.tensor(step + 1), "total": total}, state)
        run.reporter.metrics(step, {"loss": config.value - float(total.mean())})
        run.reporter.progress(step + 1, config.steps, "training")
        if config.step_s:
            time.sleep(config.step_s)
    if config.figure:
        run.reporter.figure("walk", Figure("walk", "step", "value", {"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}))
    return Product(
        kind="cognate",
        model_config={"widths": list(config.widths)},
        tensors={"weight": total},
        tokenizer_json='{"tokens": 8}',
        metrics={"steps_resumed": float(first)},
    )


def no_preset(profile: str, asset: str) -> BaseModel | None:
    return StepsConfig(value=0.75) if asset == "right" else None


DATA = ("tokens", "evaluation_suite")


@data_asset(preset=no_preset)
def tokens(run: DataRun, config: TokensConfig) -> Mapping[str, float | str]:
    """Write some tokens."""
    (run.out / "shard").mkdir()
    (run.out / "shard" / "tokens.bin").write_bytes(bytes(range(config.count)))
    return {"num_tokens": config.count}


@data_asset(inputs=("tokens",), preset=no_preset)
def evaluation_suite(run: DataRun, config: TokensConfig) -> Mapping[str, float | str]:
    """Write what models are measured on."""
    read = (run.inputs["tokens"] / "shard" / "tokens.bin").read_bytes()
    (run.out / "suite.txt").write_text(str(sum(read)))
    return {}


PHASES: dict[str, Phase] = {}


def _model(name: str, parents: tuple[str, ...]) -> dg.AssetsDefinition:
    described = f"The model {name}."
    PHASES[name] = Phase(name, 1, described, StepsConfig, train, parents, DATA, measure=measure, module=__name__)
    return phase_asset(PHASES[name], preset=no_preset, checks=gate_checks())


trunk = _model("trunk", ())
left = _model("left", ("trunk",))
right = _model("right", ("trunk",))
left_child = _model("left_child", ("left",))
right_child = _model("right_child", ("right",))
ASSETS = [tokens, evaluation_suite, trunk, left, right, left_child, right_child]
CHECKS = asset_checks(GATES)

defs = dg.Definitions(
    assets=ASSETS,
    asset_checks=CHECKS,
    sensors=[schedule_sensor(ASSETS, checks=gate_checks())],
    jobs=[dg.define_asset_job("only_left_child", selection=dg.AssetSelection.assets("left_child"))],
    resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False), "launcher": Launcher()},
    executor=dg.in_process_executor,
)
