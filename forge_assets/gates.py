"""The gate table in Dagster's terms: the check that gates each asset, and the thresholds of a profile.

The gates are defined by their phases (`training_core.gate_table`); `forge_assets.checks` turns them into asset checks.

This module must not import model code: the run coordinator imports it in the webserver and in the daemon.
"""

from collections.abc import Sequence

import dagster as dg

from training_core.gate_table import GATES, MODELS
from training_core.gates import Gate

__all__ = ["GATES", "MODELS", "gate_checks", "gates_for"]


def gate_checks(gates: Sequence[Gate] = GATES) -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    """Return the blocking check of every asset that has a blocking gate."""
    assets = dict.fromkeys(gate.asset for gate in gates if gate.blocking)
    return {dg.AssetKey(asset): [dg.AssetCheckKey(dg.AssetKey(asset), "gate")] for asset in assets}


def gates_for(asset: str, profile: str, gates: Sequence[Gate] = GATES) -> tuple[Gate, ...]:
    """Return the gates and claims of `asset` with the thresholds of `profile`.

    Raises:
        ValueError: when a threshold depends on the profile and has no value for this one.
    """
    return tuple(gate.at(profile) for gate in gates if gate.asset == asset)
