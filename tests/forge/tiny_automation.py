"""A code location with the tiny forge, a third branch, a report and the sensors.

trunk -> left -> left_child            -> forge_report
      -> right -> right_child
      -> middle -> middle_child
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dagster as dg
import tiny_forge

from forge_assets.checks import asset_checks
from forge_assets.factory import phase_asset
from forge_assets.forge_report import report_asset
from forge_assets.gate_flips import flip_sensor
from forge_assets.gates import gate_checks as checks_of
from forge_assets.reruns import rerun_sensor
from forge_assets.schedules import schedule_sensor
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking
from training_core.gates import Gate

GATES = (
    *tiny_forge.GATES,
    *(Gate(name, "small", "mean_square", "at_most", 1.0, "mean of squares") for name in ("middle", "middle_child")),
    Gate("left_child", "modest", "mean_square", "at_most", 0.1, "mean of squares", blocking=False),
)


def gate_checks() -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    return checks_of(GATES)


def _model(name: str, parent: str) -> dg.AssetsDefinition:
    made = replace(tiny_forge.PHASES["left"], name=name, description=name, parents=(parent,))
    return phase_asset(made, preset=tiny_forge.no_preset, checks=gate_checks())


middle = _model("middle", "trunk")
middle_child = _model("middle_child", "middle")
PHASES = [*tiny_forge.ASSETS, middle, middle_child]
CHECKS = asset_checks(GATES)
forge_report = report_asset(lambda: defs, after=["left_child"], gates=GATES)
ASSETS = [*PHASES, forge_report]

defs = dg.Definitions(
    assets=ASSETS,
    asset_checks=CHECKS,
    sensors=[
        schedule_sensor(ASSETS, checks=gate_checks()),
        rerun_sensor(PHASES, checks=gate_checks()),
        flip_sensor([key for check in CHECKS for key in check.check_keys]),
    ],
    jobs=[dg.define_asset_job("everything", selection=dg.AssetSelection.all())],
    resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False), "launcher": Launcher()},
    executor=dg.in_process_executor,
)


def everything() -> dg.JobDefinition:
    """Return the job of all assets; a module-level function, so that other processes can rebuild the job."""
    return defs.resolve_job_def("everything")


def materialize(
    instance: dg.DagsterInstance, *selection: str, config: Mapping[str, Mapping[str, Any]] | None = None
) -> dg.ExecuteInProcessResult:
    """Materialize assets of this forge with their checks."""
    return dg.materialize(
        [*ASSETS, *CHECKS],
        selection=dg.AssetSelection.assets(*selection),
        instance=instance,
        resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False), "launcher": Launcher()},
        run_config={"ops": {name: {"config": dict(values)} for name, values in (config or {}).items()}},
        raise_on_error=False,
    )
