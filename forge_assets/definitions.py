"""The code location `forge`: every asset, its gates, schedules, sensors and resources.

A further phase is one more module in `PHASES` and its rows in `forge_assets.gate_table`.
"""

import dagster as dg

from forge_assets import (
    data,
    phase1_cognate,
    phase2_evomerge,
    phase3_quiet_star,
    phase4_bitnet,
    phase5_curriculum,
    phase6_baking,
    phase7_experts,
    phase8_compression,
)
from forge_assets.checks import asset_checks
from forge_assets.forge_report import report_asset
from forge_assets.gate_flips import flip_sensor
from forge_assets.reruns import rerun_sensor
from forge_assets.schedules import phase_schedules
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking

PHASES = (
    phase1_cognate,
    phase2_evomerge,
    phase3_quiet_star,
    phase4_bitnet,
    phase5_curriculum,
    phase6_baking,
    phase7_experts,
    phase8_compression,
)

_data = dg.load_assets_from_modules([data])
_models = [asset for asset in dg.load_assets_from_modules(PHASES) if isinstance(asset, dg.AssetsDefinition)]
_checks = asset_checks()


def _definitions() -> dg.Definitions:
    return defs


_report = report_asset(_definitions, after=["compressed_model"])

defs = dg.Definitions(
    assets=[*_data, *_models, _report],
    asset_checks=_checks,
    schedules=phase_schedules(_models),
    sensors=[
        rerun_sensor([asset for asset in [*_data, *_models] if isinstance(asset, dg.AssetsDefinition)]),
        flip_sensor([key for check in _checks for key in check.check_keys]),
    ],
    jobs=[dg.define_asset_job("all_models", selection=dg.AssetSelection.all())],
    resources={"store": ModelStore(), "tracking": MlflowTracking()},
    executor=dg.in_process_executor,  # an order of magnitude faster than a process for each small step
)
