"""Gates and claims of phase 1."""

from __future__ import annotations

from training_core.gates import gate, validity

GATES = {
    asset: (
        *validity(asset),
        gate(
            asset,
            "learned",
            "margin_below_baseline_low",
            at_least=0.0,
            evidence="Bits per byte below the baseline on test documents, lower bound of the 95 % CI",
            against="the best n-gram baseline",
        ),
    )
    for asset in ("trunk", "cognate_reasoning", "cognate_memory", "cognate_speed")
}
