"""A code location with the tiny forge as the deployment runs it: with tracking on."""

import dagster as dg
import tiny_forge

from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking

gate_checks = tiny_forge.gate_checks
defs = dg.Definitions(
    assets=tiny_forge.ASSETS,
    asset_checks=tiny_forge.CHECKS,
    resources={"store": ModelStore(), "tracking": MlflowTracking(), "launcher": Launcher()},
    executor=dg.in_process_executor,
)
