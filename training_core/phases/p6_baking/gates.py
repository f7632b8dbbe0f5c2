"""Gates and claims of phase 6."""

from __future__ import annotations

from training_core.gates import LEAST_ACCURACY, LEAST_EFFECT, claim, gate, keeps_text, learned, sandbox_holds, validity
from training_core.phases.p6_baking.result import LEAST_STRENGTH, BakedResult
from training_core.record import of

RESULT = of(BakedResult)

GATES = {
    "baked_model": (
        *validity("baked_model"),
        learned("baked_model"),
        keeps_text("baked_model", against="the curriculum model"),
        gate(
            "baked_model",
            "keeps_families",
            RESULT.worst_family_drop_high,
            at_most=0.034,
            evidence="Largest drop of expected accuracy in any task family, upper bound of the paired 95 % CI",
            against="the curriculum model",
        ),
        gate(
            "baked_model",
            "effect_present",
            RESULT.faint_prompts,
            at_most=0,
            evidence="Retained prompts with a baking strength whose lower bound of the 95 % CI is below 0.25",
            against="the model without the prompt",
        ),
        sandbox_holds("baked_model"),
        claim(
            "baked_model",
            "keeps_a_prompt",
            RESULT.weakest_effect_low,
            at_least=LEAST_STRENGTH,
            evidence="Baking strength of the weakest retained prompt (0 if none), lower bound of the 95 % CI",
            against="the model without the prompt",
        ),
        claim(
            "baked_model",
            "as_good_as_prompted",
            RESULT.prompted_over_baked_high,
            at_most=0.014,
            evidence="Accuracy, prompted minus baked, worse of repairs and questions, upper bound, paired 95 % CI",
            against="the prompted model",
        ),
        claim(
            "baked_model",
            "drifts_less",
            RESULT.persona.drift.drift_difference.low,
            smallest=LEAST_EFFECT,
            evidence="Persona drift from first to last turn, prompted minus baked, lower bound of the paired 95 % CI",
            against="the prompted model",
        ),
        claim(
            "baked_model",
            "outlasts_the_prompt",
            RESULT.persona.drift.presence_advantage.low,
            smallest=LEAST_EFFECT,
            evidence="Persona effect at the last turn, baked minus prompted, lower bound of the paired 95 % CI",
            against="the prompted model",
        ),
        claim(
            "baked_model",
            "repairs_more",
            RESULT.repairs.repairs_gain.low,
            smallest=LEAST_ACCURACY,
            evidence="Gain in resolve rate on test micro-repositories, no prompt, lower bound of the paired 95 % CI",
            against="the curriculum model",
        ),
    ),
}
