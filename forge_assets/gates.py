"""The quality gates as Dagster knows them: the checks that close an asset, and its thresholds at a profile.

The gates stand with their phases (`training_core.gate_table`); `forge_assets.checks` makes Dagster's checks of them.

Importing this module loads no model code: the run coordinator does so in the webserver and in the daemon.
"""

from collections.abc import Sequence

import dagster as dg

from training_core.gate_table import GATES, MODELS
from training_core.gates import Gate

__all__ = ["GATES", "MODELS", "gate_checks", "gates_for"]


def gate_checks(gates: Sequence[Gate] = GATES) -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    """The check that closes the way to an asset's children, for every asset with a blocking gate."""
    assets = dict.fromkeys(gate.asset for gate in gates if gate.blocking)
    return {dg.AssetKey(asset): [dg.AssetCheckKey(dg.AssetKey(asset), "gate")] for asset in assets}


def gates_for(asset: str, profile: str, gates: Sequence[Gate] = GATES) -> tuple[Gate, ...]:
    """The gates and claims of `asset` with the thresholds of `profile`.

    Raises:
        ValueError: when a threshold depends on the profile and has no value for this one.
    """
    return tuple(gate.at(profile) for gate in gates if gate.asset == asset)
