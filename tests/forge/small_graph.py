"""A code location with the real phases 1 and 2 on small data and with few steps.

Its data assets copy folders that the test made, below the folder named by the variable SMALL_DATA.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
from pydantic import BaseModel

from forge_assets.checks import asset_checks
from forge_assets.factory import DataRun, data_asset, phase_asset
from forge_assets.gates import gate_checks as checks_of
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking
from tests.nested import nested
from training_core.gates import Gate
from training_core.phase import DATA
from training_core.phases.p1_cognate.config import TrunkConfig, VariantConfig
from training_core.phases.p2_evomerge.evolution import EvolutionConfig
from training_core.registry import PHASES as GRAPH
from training_core.store.bundle import Bundle

SHAPE = {
    "d_model": 32, "num_layers": 3, "num_core_layers": 2, "num_heads": 2, "d_ff": 48, "window": 16, "max_seq_len": 64,
    "memory_layers": [0], "memory_rank": 8, "memory_chunk": 16,
}  # fmt: skip
TRAINING = {"batch_size": 4, "seq_len": 64, "steps": 5, "checkpoint_interval_s": 0.0}
CONFIGS: dict[str, BaseModel] = {
    "trunk": nested(TrunkConfig, **SHAPE, **TRAINING),
    "cognate_reasoning": nested(VariantConfig, **TRAINING, latent_steps=1, num_supervision=2),
    "cognate_memory": nested(VariantConfig, **TRAINING, needle_share=0.5),
    "cognate_speed": nested(VariantConfig, **TRAINING, text_share=1.0),
    "merged_model": EvolutionConfig(generations=2),
}
GATES = tuple(Gate(name, "finite", "non_finite_weights", "at_most", 0, "count") for name in CONFIGS)
PHASES = {name: GRAPH[name] for name in CONFIGS}


class CopyConfig(BaseModel):
    """Which copy it is."""

    number: int = 1


def gate_checks() -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    return checks_of(GATES)


def _preset(profile: str, asset: str) -> BaseModel | None:
    return CONFIGS.get(asset)


def _copied(name: str) -> dg.AssetsDefinition:
    def copy(run: DataRun, config: CopyConfig) -> Mapping[str, float | str]:
        shutil.copytree(Path(os.environ["SMALL_DATA"]) / name, run.out, dirs_exist_ok=True)
        return {}

    copy.__name__ = name
    return data_asset(preset=_preset)(copy)


ASSETS = [
    *(_copied(name) for name in DATA),
    *(phase_asset(phase, preset=_preset, checks=gate_checks()) for phase in PHASES.values()),
]
CHECKS = asset_checks(GATES)

defs = dg.Definitions(
    assets=ASSETS,
    asset_checks=CHECKS,
    resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False), "launcher": Launcher()},
    executor=dg.in_process_executor,
)


def materialize(
    instance: dg.DagsterInstance, *assets: str, launcher: Launcher | None = None, **config: object
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [*ASSETS, *CHECKS],
        selection=dg.AssetSelection.assets(*assets),
        instance=instance,
        resources={
            "store": ModelStore(),
            "tracking": MlflowTracking(enabled=False),
            "launcher": launcher or Launcher(),
        },
        run_config={"ops": {assets[0]: {"config": config}}} if config else None,
        raise_on_error=False,
    )


def newest(instance: dg.DagsterInstance, asset: str) -> tuple[Bundle, dict[str, dg.MetadataValue]]:
    """Return the latest version of `asset`, and the metadata of its materialization."""
    record = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert record is not None
    assert record.asset_materialization is not None
    metadata = dict(record.asset_materialization.metadata)
    return ModelStore().open_bundle(asset, str(metadata["digest"].value)), metadata
