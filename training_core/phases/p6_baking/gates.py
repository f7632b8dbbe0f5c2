"""Gates and claims of phase 6."""

from __future__ import annotations

from training_core.gates import ABOVE_ZERO, claim, gate, keeps_text, sandbox_holds, validity

GATES = {
    "baked_model": (
        *validity("baked_model"),
        keeps_text("baked_model", against="the curriculum model"),
        gate(
            "baked_model",
            "keeps_families",
            "worst_family_drop_high",
            at_most=0.034,
            evidence="Largest drop of expected accuracy in any task family, upper bound of the paired 95 % CI",
            against="the curriculum model",
        ),
        gate(
            "baked_model",
            "effect_present",
            "weakest_effect_low",
            at_least=0.25,
            evidence="Baking strength of the weakest retained prompt (0 if none), lower bound of the 95 % CI",
            against="the model without the prompt",
        ),
        sandbox_holds("baked_model"),
        claim(
            "baked_model",
            "as_good_as_prompted",
            "prompted_over_baked_high",
            at_most=0.014,
            evidence="Accuracy, prompted minus baked, worse of repairs and questions, upper bound, paired 95 % CI",
            against="the prompted model",
        ),
        claim(
            "baked_model",
            "drifts_less",
            "drift_difference_low",
            at_least=ABOVE_ZERO,
            evidence="Persona drift from first to last turn, prompted minus baked, lower bound of the paired 95 % CI",
            against="the prompted model",
        ),
        claim(
            "baked_model",
            "outlasts_the_prompt",
            "presence_advantage_low",
            at_least=ABOVE_ZERO,
            evidence="Persona effect at the last turn, baked minus prompted, lower bound of the paired 95 % CI",
            against="the prompted model",
        ),
        claim(
            "baked_model",
            "repairs_more",
            "repairs_gain_low",
            at_least=ABOVE_ZERO,
            evidence="Gain in resolve rate on test micro-repositories, no prompt, lower bound of the paired 95 % CI",
            against="the curriculum model",
        ),
    ),
}
