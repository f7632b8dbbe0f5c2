"""The gate table: which measured number of which asset must lie on which side of which threshold.

This is the only place where a threshold stands. It is under version control and no run's configuration can change it.
`forge_assets.gates` reads it.
"""

from collections.abc import Mapping

from training_core.gates import Gate

ABOVE_ZERO = 1e-4  # of a low end: beyond chance
MODELS = (
    "trunk",
    "cognate_reasoning",
    "cognate_memory",
    "cognate_speed",
    "merged_model",
    "reasoning_model",
    "ternary_model",
    "practised_model",
    "curriculum_model",
    "baked_model",
    "expert_model",
    "compressed_model",
)


def _validity(asset: str) -> tuple[Gate, ...]:
    return (
        Gate(asset, "finite", "non_finite_weights", "at_most", 0, "count of NaN or infinite weights"),
        _at_most(asset, "causal", "causality_violations", 0, "logits before a changed token that moved, in any bit"),
    )


def _learned(asset: str) -> Gate:
    return Gate(
        asset,
        "learned",
        "margin_below_baseline_low",
        "at_least",
        0.0,
        "bits per byte below the baseline on held-out documents, low end of the 95 % interval",
        against="the best n-gram baseline",
    )


def _thought_claim(name: str, metric: str, against: str) -> Gate:
    evidence = "bits per token gained on the hardest decile of held-out tokens, low end of the 95 % interval"
    return _promise("reasoning_model", name, metric, evidence, against)


def _keeps_text(asset: str, parent: str) -> Gate:
    return _at_most(
        asset,
        "keeps_text",
        "bits_per_byte_ratio_to_best_parent_high",
        1.02,
        "bits per byte on held-out documents, high end of the paired 95 % interval",
        parent,
    )


def _sandbox_holds(asset: str) -> Gate:
    return _at_most(
        asset, "sandbox_holds", "sandbox_breaches", 0, "abuses that succeeded against the sandbox where the phase ran"
    )


def _curriculum(asset: str, parent: str) -> tuple[Gate, ...]:
    """What phase 5 asks of both of its models."""
    return (
        _keeps_text(asset, parent),
        _at_most(
            asset,
            "keeps_levels",
            "worst_passed_level_drop_high",
            0.03,
            "fall of accuracy on fresh questions at the worst of the levels that were passed before (of the mean over "
            "all where none was), high end of the paired 95 % interval",
            parent,
        ),
        _sandbox_holds(asset),
    )


def _promise(asset: str, name: str, metric: str, evidence: str, against: str, threshold: float = ABOVE_ZERO) -> Gate:
    return Gate(asset, name, metric, "at_least", threshold, evidence, against=against, blocking=False)


def _at_most(asset: str, name: str, metric: str, threshold: float, evidence: str, against: str = "") -> Gate:
    return Gate(asset, name, metric, "at_most", threshold, evidence, against=against)


GATES: tuple[Gate, ...] = (
    *(gate for asset in MODELS for gate in _validity(asset)),
    *(_learned(asset) for asset in ("trunk", "cognate_reasoning", "cognate_memory", "cognate_speed")),
    _at_most(
        "merged_model",
        "not_worse",
        "bits_per_byte_over_best_parent",
        0.0,
        "bits per byte on the validation documents that the merge was chosen by",
        "the best parent",
    ),
    _at_most(
        "merged_model",
        "holds_out",
        "bits_per_byte_ratio_to_best_parent_high",
        1.02,
        "bits per byte on held-out documents, high end of the paired 95 % interval",
        "the best parent",
    ),
    Gate(
        "merged_model",
        "gains",
        "bits_per_byte_ratio_to_best_parent_high",
        "at_most",
        1.0,
        "bits per byte on held-out documents that no selection has seen, high end of the paired 95 % interval",
        against="the best parent",
        blocking=False,
    ),
    _at_most(
        "reasoning_model",
        "not_worse",
        "bits_per_byte_ratio_to_best_parent_high",
        1.01,
        "bits per byte on held-out documents with thoughts off, high end of the paired 95 % interval",
        "the merged model",
    ),
    _at_most(
        "reasoning_model",
        "thoughts_causal",
        "thought_leaks",
        0,
        "thought tokens and logits with thoughts that moved, in any bit, when a later token did",
    ),
    Gate("reasoning_model", "decodes", "undecodable_thoughts", "at_most", 0, "measured thoughts that are not text"),
    _thought_claim("thoughts_help", "thought_gain_hard_low", "the same model with thoughts off"),
    _thought_claim("content", "thought_over_shuffled_hard_low", "the thoughts of another position"),
    _thought_claim("beyond_compute", "thought_over_pause_hard_low", "equal compute without content"),
    _thought_claim("reward", "thought_over_random_reward_hard_low", "training with a random reward"),
    _at_most(
        "ternary_model",
        "retains",
        "bits_per_byte_ratio_to_best_parent_high",
        1.10,
        "bits per byte on held-out documents, high end of the paired 95 % interval",
        "the model before quantization",
    ),
    Gate(
        "ternary_model",
        "smaller",
        "bytes_ratio",
        "at_least",
        6.0,
        "the parent's parameters at four bytes each, over this model's bytes on disk",
    ),
    Gate(
        "ternary_model",
        "paper_ratio",
        "bytes_ratio",
        "at_least",
        8.2,
        "the parent's parameters at four bytes each, over this model's bytes on disk",
        blocking=False,
    ),
    *_curriculum("practised_model", "the ternary model"),
    _promise(
        "practised_model",
        "learns",
        "level_accuracy_gain_low",
        "mean gain of accuracy over all levels on fresh questions, low end of the paired 95 % interval",
        "the ternary model",
    ),
    _promise(
        "practised_model",
        "moves_the_edge",
        "edge_gain",
        "levels by which the hardest level at 75 % rose, on fresh questions",
        "the ternary model",
        1,
    ),
    _promise(
        "practised_model",
        "dreams_protect",
        "dreams_over_none_low",
        "accuracy kept at earlier levels while the next one is learned, low end of the paired 95 % interval",
        "learning without any rehearsal",
    ),
    _promise(
        "practised_model",
        "dreams_beat_replay",
        "dreams_over_replay_low",
        "accuracy kept at earlier levels at equal tokens, low end of the paired 95 % interval",
        "plain replay",
    ),
    *_curriculum("curriculum_model", "the practised model"),
    _promise(
        "curriculum_model",
        "rules_baked",
        "preference_gain_low",
        "gain in preference accuracy on held-out scenario pairs without a prompt, low end of the paired 95 % interval",
        "the practised model",
    ),
    Gate(
        "curriculum_model",
        "no_regression_in_text",
        "next_token_accuracy_drop_to_best_parent_high",
        "at_most",
        0.01,
        "fall of next-token accuracy on held-out documents, high end of the paired 95 % interval",
        against="the practised model",
        blocking=False,
    ),
    Gate(
        "curriculum_model",
        "no_regression_in_levels",
        "level_accuracy_drop_high",
        "at_most",
        0.01,
        "fall of the mean accuracy over levels on fresh questions, high end of the paired 95 % interval",
        against="the practised model",
        blocking=False,
    ),
    _promise(
        "curriculum_model",
        "council_helps",
        "council_gain_over_self_consistency_low",
        "gain in accuracy at equal tokens, low end of the paired 95 % interval",
        "one prompt sampled as often",
    ),
    _promise(
        "curriculum_model",
        "loop_helps",
        "ooda_gain_over_direct_low",
        "gain in accuracy at equal tokens, low end of the paired 95 % interval",
        "direct answers",
    ),
    _promise(
        "curriculum_model",
        "knows_its_temperature",
        "temperature_over_chance_low",
        "accuracy over ten ranges above chance, low end of the 95 % interval",
        "chance",
    ),
    _keeps_text("baked_model", "the curriculum model"),
    _at_most(
        "baked_model",
        "keeps_families",
        "worst_family_drop_high",
        0.034,
        "fall of expected accuracy on test questions in the worst task family, high end of the paired 95 % interval",
        "the curriculum model",
    ),
    Gate(
        "baked_model",
        "effect_present",
        "weakest_effect_low",
        "at_least",
        0.25,
        "share of a prompt's effect (nats per token) that is there without the prompt, on fresh trajectories, of the "
        "weakest prompt kept; low end of the 95 % interval, 0 where none was kept",
        against="the model without the prompt",
    ),
    _sandbox_holds("baked_model"),
    Gate(
        "baked_model",
        "as_good_as_prompted",
        "prompted_over_baked_high",
        "at_most",
        0.014,
        "accuracy that the prompted model has over the baked one on test repairs and questions, the worse of the two, "
        "high end of the paired 95 % interval",
        against="the prompted model",
        blocking=False,
    ),
    _promise(
        "baked_model",
        "drifts_less",
        "drift_difference_low",
        "effect of the persona lost between the first turn and the last, less than with the prompt in the "
        "conversation, low end of the paired 95 % interval",
        "the prompted model",
    ),
    _promise(
        "baked_model",
        "outlasts_the_prompt",
        "presence_advantage_low",
        "share of the persona's effect that is there at the last turn, more than with the prompt in the conversation, "
        "low end of the paired 95 % interval",
        "the prompted model",
    ),
    _promise(
        "baked_model",
        "repairs_more",
        "repairs_gain_low",
        "gain in test micro-repositories resolved without a prompt, low end of the paired 95 % interval",
        "the curriculum model",
    ),
    _keeps_text("expert_model", "the baked model"),
    _at_most(
        "expert_model",
        "routed_text",
        "routed_bits_per_byte_ratio_high",
        1.02,
        "bits per byte on held-out documents with routed experts, high end of the paired 95 % interval",
        "the baked model",
    ),
    _at_most(
        "expert_model",
        "no_family_worse",
        "worst_family_drop_low",
        0.0,
        "fall of expected accuracy on test questions with routed experts in the worst task family, low end of paired "
        "intervals that hold together at 95 %: above 0 a family is worse beyond chance",
        "the baked model",
    ),
    _at_most(
        "expert_model",
        "fast_enough",
        "latency_over_one_pass",
        6.0,
        "seconds to answer a question in two passes over those of one pass",
        "the model without experts",
    ),
    _at_most(
        "expert_model",
        "reproduces",
        "expert_reproduction_error",
        1e-3,
        "largest difference of any logit between experts as they were measured and as they decode from the bundle, "
        "with the stored decomposition and with one that is worked out again",
    ),
    _sandbox_holds("expert_model"),
    _promise(
        "expert_model",
        "stable_number",
        "expert_number_stability",
        "share of resampled profiles that ask for as many experts",
        "resampled questions",
        threshold=0.8,
    ),
    _promise(
        "expert_model",
        "single_helps",
        "single_over_none_low",
        "expected accuracy on test questions of the expert that was best on validation, families weighted alike, low "
        "end of the paired 95 % interval",
        "the model without experts",
    ),
    _promise(
        "expert_model",
        "routing_helps",
        "routed_over_single_low",
        "expected accuracy on test questions of routed experts, families weighted alike, low end of the paired 95 % "
        "interval",
        "the best single expert",
    ),
    _promise(
        "expert_model",
        "search_beats_random",
        "hypervolume_over_random_low",
        "hypervolume of the search's front, the least over its seeds",
        "as many random compositions",
    ),
    Gate("compressed_model", "fits", "bytes_on_disk", "at_most", 64_000, "size of model.forge on disk"),
    Gate(
        "compressed_model",
        "retains",
        "retention_to_best_parent_low",
        "at_least",
        0.84,
        "share of the next-token accuracy that is kept, low end of the 95 % interval",
        against="the expert model",
    ),
    _promise(
        "compressed_model",
        "experts_survive",
        "file_experts_gain_low",
        "expected accuracy on test questions, families weighted alike, with the experts that the file carries, low end "
        "of the paired 95 % interval",
        "the file without its experts",
    ),
    Gate(
        "compressed_model",
        "seed_ratio",
        "bits_per_parameter",
        "at_most",
        0.128,
        "bits on disk for each parameter of the model that was trained",
        blocking=False,
    ),
)

# Thresholds in units that grow with the model. An asset and gate named here has no other threshold.
BY_PROFILE: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("compressed_model", "fits"): {"nano": 110_000, "mini": 520_000, "forge_25m": 400_000},
}
