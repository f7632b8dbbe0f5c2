"""Gates and claims of phase 1."""

from __future__ import annotations

from training_core.gates import learned, learned_each_source, validity

GATES = {
    asset: (
        *validity(asset),
        learned(asset),
        *([learned_each_source(asset)] if asset == "trunk" else []),
    )
    for asset in ("trunk", "cognate_reasoning", "cognate_memory", "cognate_speed")
}
