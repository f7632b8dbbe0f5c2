"""The metrics that phase 3 reports besides those of the evaluation suite.

They are in bits per token of test text unless stated otherwise; `_hard` means the hardest decile of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.record import Estimate, Record, keyed, maybe
from training_core.training.result import TrainingMetrics


@dataclass(frozen=True, slots=True)
class ChainBakingResult(Record):
    """The effect of chain-of-thought baking, measured on held-out trajectories."""

    baking_kl_before: float
    baking_kl_after: float
    baking_strength: float = maybe()


@dataclass(frozen=True, slots=True)
class ReasoningResult(Record):
    """The gain from thoughts, compared with that of the controls."""

    thought_gain: Estimate
    thought_gain_hard: Estimate
    thought_gain_shuffled_hard: Estimate
    thought_gain_pause_hard: Estimate
    thought_gain_random_reward_hard: Estimate
    thought_over_shuffled_hard: Estimate
    thought_over_pause_hard: Estimate
    thought_over_random_reward_hard: Estimate
    task_thought_gain: Estimate
    paraphrase_thought_gain: Estimate
    coherence_correlation: float
    greedy_divergence: float
    undecodable_thoughts: float
    thought_leaks: float
    mean_thought_tokens: float
    handed_on: float
    thoughts_enabled: float
    training: TrainingMetrics = maybe()
    baking: ChainBakingResult = maybe()
    bits_per_gflop_by_rule: Mapping[str, float] = keyed("thought_bits_per_gflop_{}")
    share_by_rule: Mapping[str, float] = keyed("thought_share_{}")
    gain_by_rule: Mapping[str, Estimate] = keyed("thought_gain_{}")
