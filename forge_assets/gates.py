"""The quality gates as Dagster knows them: the checks that close an asset, and its thresholds at a profile.

The rows stand in `forge_assets.gate_table`; `forge_assets.checks` makes Dagster's checks of them.

Importing this module loads no model code: the run coordinator does so in the webserver and in the daemon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import dagster as dg

from forge_assets.gate_table import BY_PROFILE, GATES, MODELS
from training_core.gates import Gate

__all__ = ["BY_PROFILE", "GATES", "MODELS", "gate_checks", "gates_for"]


def gate_checks(gates: Sequence[Gate] = GATES) -> dict[dg.AssetKey, list[dg.AssetCheckKey]]:
    """The check that closes the way to an asset's children, for every asset with a blocking gate."""
    assets = dict.fromkeys(gate.asset for gate in gates if gate.blocking)
    return {dg.AssetKey(asset): [dg.AssetCheckKey(dg.AssetKey(asset), "gate")] for asset in assets}


def gates_for(
    asset: str,
    profile: str,
    gates: Sequence[Gate] = GATES,
    by_profile: Mapping[tuple[str, str], Mapping[str, float]] = BY_PROFILE,
) -> tuple[Gate, ...]:
    """The gates and claims of `asset` with the thresholds of `profile`.

    Raises:
        ValueError: when a threshold depends on the profile and has no value for this one.
    """

    def resolve(gate: Gate) -> Gate:
        thresholds = by_profile.get((gate.asset, gate.name))
        if thresholds is None:
            return gate
        if profile not in thresholds:
            raise ValueError(
                f"gate {gate.asset}.{gate.name} has no threshold for profile {profile!r}, only for "
                f"{', '.join(sorted(thresholds))}: add one to BY_PROFILE in forge_assets/gate_table.py"
            )
        return replace(gate, threshold=thresholds[profile])

    return tuple(resolve(gate) for gate in gates if gate.asset == asset)
