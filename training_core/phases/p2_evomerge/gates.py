"""Gates and claims of phase 2."""

from __future__ import annotations

from training_core.evaluation.result import SuiteResult
from training_core.gates import LEAST_ACCURACY, claim, gate, learned, validity
from training_core.phases.p2_evomerge.result import MergeResult
from training_core.record import each, of

SUITE = of(SuiteResult)
RESULT = of(MergeResult)

GATES = {
    "merged_model": (
        *validity("merged_model"),
        learned("merged_model"),
        gate(
            "merged_model",
            "not_worse",
            RESULT.bits_per_byte_over_best_parent,
            at_most=0,
            evidence="Bits per byte on the validation documents used for selection",
            against="the best parent",
        ),
        gate(
            "merged_model",
            "holds_out",
            SUITE.bits_per_byte_ratio_to_best_parent.high,
            at_most=1.02,
            evidence="Ratio of bits per byte on test documents, upper bound of the paired 95 % CI",
            against="the best parent",
        ),
        claim(
            "merged_model",
            "gains",
            SUITE.bits_per_byte_ratio_to_best_parent.high,
            at_most=0.995,
            evidence="Ratio of bits per byte on test documents, upper bound of the paired 95 % CI; a gain of less than "
            ".5 % is of no interest",
            against="the best parent",
        ),
        claim(
            "merged_model",
            "{}_specialises",
            each(RESULT.lead).low,
            smallest=LEAST_ACCURACY,
            evidence="Answers of the {} specialist to test questions of its own kind, paired; lower bound of 95 % CI",
            against="the better of the other two specialists",
        ),
        claim(
            "merged_model",
            "speed_specialises",
            RESULT.speed_latency_ratio,
            at_most=0.95,
            evidence="Milliseconds per token of the speed specialist, each measured with its model",
            against="the faster of the other two specialists",
        ),
    ),
}
