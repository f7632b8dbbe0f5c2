"""Gates and claims of phase 7."""

from __future__ import annotations

from training_core.gates import (
    LEAST_ACCURACY,
    LEAST_HYPERVOLUME,
    claim,
    gate,
    keeps_text,
    learned,
    sandbox_holds,
    validity,
)
from training_core.phases.p7_experts.result import ExpertResult, ExpertSuiteResult
from training_core.record import of

RESULT = of(ExpertResult)
STORED = of(ExpertSuiteResult)

GATES = {
    "expert_model": (
        *validity("expert_model"),
        learned("expert_model"),
        keeps_text("expert_model", against="the baked model"),
        gate(
            "expert_model",
            "routed_text",
            RESULT.answers.routed_bits_per_byte_ratio.high,
            at_most=1.02,
            evidence="Ratio of bits per byte on test documents with routed experts, upper bound of the paired 95 % CI",
            against="the baked model",
        ),
        gate(
            "expert_model",
            "no_family_worse",
            RESULT.answers.worst_family_drop_low,
            at_most=0,
            evidence="Largest accuracy drop in any task family, lower bound of simultaneous 95 % CIs (Bonferroni)",
            against="the baked model",
        ),
        gate(
            "expert_model",
            "fast_enough",
            RESULT.answers.latency_over_one_pass,
            at_most=6,
            evidence="Latency of two-pass answers over one-pass answers",
            against="the model without experts",
        ),
        gate(
            "expert_model",
            "reproduces",
            STORED.expert_reproduction_error,
            at_most=0.001,
            evidence="Largest logit difference between experts as measured and as decoded, stored and recomputed SVD",
        ),
        sandbox_holds("expert_model"),
        claim(
            "expert_model",
            "stable_number",
            RESULT.expert_number_stability,
            at_least=0.8,
            evidence="Share of bootstrap profiles with the same number of experts",
            against="resampled questions",
        ),
        claim(
            "expert_model",
            "single_helps",
            RESULT.answers.single_over_none.low,
            smallest=LEAST_ACCURACY,
            evidence="Macro-averaged accuracy gain of the best expert on validation, lower bound, paired 95 % CI",
            against="the model without experts",
        ),
        claim(
            "expert_model",
            "routing_helps",
            RESULT.answers.routed_over_single.low,
            smallest=LEAST_ACCURACY,
            evidence="Macro-averaged accuracy gain of routed experts, lower bound of the paired 95 % CI",
            against="the best single expert",
        ),
        claim(
            "expert_model",
            "search_beats_random",
            RESULT.search.hypervolume_over_random_low,
            smallest=LEAST_HYPERVOLUME,
            evidence="Hypervolume difference of the search's front, minimum over seeds",
            against="as many random compositions",
        ),
    ),
}
