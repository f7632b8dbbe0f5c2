"""The asset graph with its Dagster instance and model store, as the command line, the plan and the report use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from forge_assets.gates import GATES, gates_for
from forge_resources.model_store import ModelStore
from training_core.gates import Gate, for_each_part
from training_core.phase import CONTROLS


class UserError(ValueError):
    """An error that the user can fix; the message says how."""


@dataclass(frozen=True, slots=True)
class Forge:
    """The asset graph with its gate table, Dagster instance and model store."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    store: ModelStore
    gates: Sequence[Gate] = GATES

    def job(self) -> dg.JobDefinition:
        """Return the job of all assets and checks."""
        return self.definitions.resolve_implicit_global_asset_job_def()

    def assets(self) -> list[str]:
        """Return all assets in topological order."""
        graph = self.definitions.resolve_asset_graph()
        return [key.to_user_string() for level in graph.toposorted_asset_keys_by_level for key in sorted(level)]

    def controls(self) -> list[str]:
        """Return the assets that are controls, which are made only when asked for."""
        graph = self.definitions.resolve_asset_graph()
        return [name for name in self.assets() if graph.get(dg.AssetKey(name)).group_name == CONTROLS]

    def makes_model(self, asset: str) -> bool:
        """Return whether `asset` is a model of the chain or a control, not data."""
        return bool(self.checks_of(asset)) or asset in self.controls()

    def inputs_of(self, asset: str) -> list[str]:
        """Return the assets that `asset` is made from."""
        node = self.definitions.resolve_asset_graph().get(dg.AssetKey(asset))
        return sorted(key.to_user_string() for key in node.parent_keys)

    def checks_of(self, asset: str) -> list[dg.AssetCheckKey]:
        """Return the checks of `asset`, `gate` before `claims`; a data asset has none."""
        checks = self.definitions.resolve_asset_graph().asset_check_keys
        return sorted((c for c in checks if c.asset_key == dg.AssetKey(asset)), key=lambda c: c.name, reverse=True)

    def rows(self, asset: str, profile: str, metrics: Mapping[str, float]) -> tuple[Gate, ...]:
        """Return the gates and claims of `asset` at `profile`, with one for each part among its `metrics`."""
        return for_each_part(gates_for(asset, profile, self.gates), metrics)
