"""Gates and claims of phase 5."""

from __future__ import annotations

from training_core.evaluation.result import SuiteResult
from training_core.gates import LEAST_ACCURACY, claim, gate, keeps_text, learned, sandbox_holds, validity
from training_core.phases.p5_curriculum.result import CharacterResult, PractisedResult
from training_core.record import of

SUITE = of(SuiteResult)
CHARACTER = of(CharacterResult)
PRACTISED = of(PractisedResult)

GATES = {
    "practised_model": (
        *validity("practised_model"),
        learned("practised_model"),
        keeps_text("practised_model", against="the ternary model"),
        gate(
            "practised_model",
            "keeps_levels",
            PRACTISED.levels.worst_passed_level_drop_high,
            at_most=0.03,
            evidence="Largest accuracy drop on a passed level (mean if none is passed), upper bound, paired 95 % CI",
            against="the ternary model",
        ),
        sandbox_holds("practised_model"),
        claim(
            "practised_model",
            "learns",
            PRACTISED.levels.level_accuracy_gain.low,
            smallest=LEAST_ACCURACY,
            evidence="Accuracy gain on test questions, mean over levels, lower bound of the paired 95 % CI",
            against="the ternary model",
        ),
        claim(
            "practised_model",
            "moves_the_edge",
            PRACTISED.levels.edge_gain,
            at_least=1,
            evidence="Increase of the hardest level with at least 75 % accuracy on test questions",
            against="the ternary model",
        ),
        claim(
            "practised_model",
            "dreams_protect",
            PRACTISED.dreams_over_none.low,
            smallest=LEAST_ACCURACY,
            evidence="Accuracy retained on earlier levels after learning the next, lower bound, paired 95 % CI",
            against="learning without any rehearsal",
        ),
        claim(
            "practised_model",
            "dreams_beat_replay",
            PRACTISED.dreams_over_replay.low,
            smallest=LEAST_ACCURACY,
            evidence="Accuracy retained on earlier levels at equal token budgets, lower bound of the paired 95 % CI",
            against="plain replay",
        ),
    ),
    "curriculum_model": (
        *validity("curriculum_model"),
        learned("curriculum_model"),
        keeps_text("curriculum_model", against="the practised model"),
        gate(
            "curriculum_model",
            "keeps_levels",
            CHARACTER.levels.worst_passed_level_drop_high,
            at_most=0.03,
            evidence="Largest accuracy drop on a passed level (mean if none is passed), upper bound, paired 95 % CI",
            against="the practised model",
        ),
        sandbox_holds("curriculum_model"),
        claim(
            "curriculum_model",
            "rules_baked",
            CHARACTER.preferences.preference_gain.low,
            smallest=LEAST_ACCURACY,
            evidence="Gain in preference accuracy on test scenario pairs, no prompt, lower bound, paired 95 % CI",
            against="the practised model",
        ),
        claim(
            "curriculum_model",
            "no_regression_in_text",
            SUITE.next_token_accuracy_drop_to_best_parent.high,
            at_most=0.01,
            evidence="Drop of next-token accuracy on test documents, upper bound of the paired 95 % CI",
            against="the practised model",
        ),
        claim(
            "curriculum_model",
            "no_regression_in_levels",
            CHARACTER.level_accuracy_drop_high,
            at_most=0.01,
            evidence="Drop of mean accuracy over levels on test questions, upper bound of the paired 95 % CI",
            against="the practised model",
        ),
        claim(
            "curriculum_model",
            "council_helps",
            CHARACTER.council.council_gain_over_self_consistency.low,
            smallest=LEAST_ACCURACY,
            evidence="Accuracy gain at equal token budgets, lower bound of the paired 95 % CI",
            against="self-consistency",
        ),
        claim(
            "curriculum_model",
            "loop_helps",
            CHARACTER.loop.ooda_gain_over_direct.low,
            smallest=LEAST_ACCURACY,
            evidence="Accuracy gain at equal token budgets, lower bound of the paired 95 % CI",
            against="direct answering",
        ),
        claim(
            "curriculum_model",
            "knows_its_temperature",
            CHARACTER.temperature.temperature_over_chance_low,
            smallest=LEAST_ACCURACY,
            evidence="Accuracy over ten temperature bins above chance, lower bound of the 95 % CI",
            against="chance",
        ),
    ),
}
