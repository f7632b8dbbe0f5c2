"""Gates and claims of phase 1."""

from __future__ import annotations

from training_core.evaluation.result import SuiteResult
from training_core.gates import gate, validity
from training_core.record import of

SUITE = of(SuiteResult)

GATES = {
    asset: (
        *validity(asset),
        gate(
            asset,
            "learned",
            SUITE.margin_below_counting.low,
            at_least=0.0,
            evidence="Bits per byte below the 4-gram model on test documents, lower bound of the 95 % CI",
            against="a 4-gram model of all the training text",
        ),
    )
    for asset in ("trunk", "cognate_reasoning", "cognate_memory", "cognate_speed")
}
