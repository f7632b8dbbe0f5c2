"""The code location `forge`: all assets with their checks, schedules, sensors and resources.

To add a model, add its `Phase` to `training_core.registry`; its gates come from the phase's `gates.py`.
"""

import dagster as dg

from forge_assets import data
from forge_assets.checks import asset_checks
from forge_assets.factory import phase_asset
from forge_assets.forge_report import report_asset
from forge_assets.gate_flips import flip_sensor
from forge_assets.reruns import rerun_sensor
from forge_assets.schedules import schedule_sensor
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking
from training_core.phase import CONTROLS as GROUP
from training_core.registry import CONTROLS, PHASES

_data = dg.load_assets_from_modules([data])
_models = [phase_asset(phase) for phase in PHASES.values()]
_controls = [phase_asset(phase, preset=lambda profile, asset: None) for phase in CONTROLS.values()]
_checks = asset_checks()


def _definitions() -> dg.Definitions:
    return defs


_report = report_asset(_definitions, after=["compressed_model", *CONTROLS])

defs = dg.Definitions(
    assets=[*_data, *_models, *_controls, _report],
    asset_checks=_checks,
    sensors=[
        schedule_sensor(
            [asset for asset in [*_data, *_models, *_controls, _report] if isinstance(asset, dg.AssetsDefinition)]
        ),
        rerun_sensor([asset for asset in [*_data, *_models] if isinstance(asset, dg.AssetsDefinition)]),
        flip_sensor([key for check in _checks for key in check.check_keys]),
    ],
    jobs=[dg.define_asset_job("all_models", selection=dg.AssetSelection.all() - dg.AssetSelection.groups(GROUP))],
    resources={"store": ModelStore(), "tracking": MlflowTracking(), "launcher": Launcher()},
    executor=dg.in_process_executor,  # an order of magnitude faster than one process per step for small models
)
