"""Gates and claims of phase 4."""

from __future__ import annotations

from training_core.evaluation.result import SuiteResult
from training_core.gates import claim, gate, learned, validity
from training_core.record import of

SUITE = of(SuiteResult)

GATES = {
    "ternary_model": (
        *validity("ternary_model"),
        learned("ternary_model"),
        gate(
            "ternary_model",
            "retains",
            SUITE.bits_per_byte_ratio_to_best_parent.high,
            at_most=1.1,
            evidence="Ratio of bits per byte on test documents, upper bound of the paired 95 % CI",
            against="the model before quantization",
        ),
        gate(
            "ternary_model",
            "smaller",
            SUITE.bytes_ratio,
            at_least=6,
            evidence="fp32 bytes of the parent over this model's bytes on disk",
        ),
        claim(
            "ternary_model",
            "paper_ratio",
            SUITE.bytes_ratio,
            at_least=8.2,
            evidence="fp32 bytes of the parent over this model's bytes on disk",
        ),
    ),
}
