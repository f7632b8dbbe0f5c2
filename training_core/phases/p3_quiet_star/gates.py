"""Gates and claims of phase 3."""

from __future__ import annotations

from training_core.evaluation.result import SuiteResult
from training_core.gates import LEAST_BITS, claim, gate, learned, validity
from training_core.phases.p3_quiet_star.result import ReasoningResult
from training_core.record import of

SUITE = of(SuiteResult)
RESULT = of(ReasoningResult)

GATES = {
    "reasoning_model": (
        *validity("reasoning_model"),
        learned("reasoning_model"),
        gate(
            "reasoning_model",
            "not_worse",
            SUITE.bits_per_byte_ratio_to_best_parent.high,
            at_most=1.01,
            evidence="Ratio of bits per byte on test documents with thoughts off, upper bound of the paired 95 % CI",
            against="the merged model",
        ),
        gate(
            "reasoning_model",
            "thoughts_causal",
            RESULT.thought_leaks,
            at_most=0,
            evidence="Thought tokens and logits that changed in any bit after a later token was changed",
        ),
        gate(
            "reasoning_model",
            "decodes",
            RESULT.undecodable_thoughts,
            at_most=0,
            evidence="Measured thoughts that do not decode to text",
        ),
        claim(
            "reasoning_model",
            "thoughts_help",
            RESULT.thought_gain_hard.low,
            smallest=LEAST_BITS,
            evidence="Bits per token gained on the hardest decile of test tokens, lower bound of the 95 % CI",
            against="the same model with thoughts off",
        ),
        claim(
            "reasoning_model",
            "content",
            RESULT.thought_over_shuffled_hard.low,
            smallest=LEAST_BITS,
            evidence="Bits per token gained on the hardest decile of test tokens, lower bound of the 95 % CI",
            against="the thoughts of another position",
        ),
        claim(
            "reasoning_model",
            "beyond_compute",
            RESULT.thought_over_pause_hard.low,
            smallest=LEAST_BITS,
            evidence="Bits per token gained on the hardest decile of test tokens, lower bound of the 95 % CI",
            against="equal compute without content",
        ),
        claim(
            "reasoning_model",
            "reward",
            RESULT.thought_over_random_reward_hard.low,
            smallest=LEAST_BITS,
            evidence="Bits per token gained on the hardest decile of test tokens, lower bound of the 95 % CI",
            against="training with a random reward",
        ),
    ),
}
