"""Presets of phase 7: one configuration for each size profile."""

from __future__ import annotations

from training_core.phases.p7_experts.config import ExpertsConfig, QuestionsConfig
from training_core.phases.p7_experts.few_shot import FewShotConfig
from training_core.phases.p7_experts.search import SearchConfig
from training_core.svf.supervised import ExpertLearningConfig


def nano() -> ExpertsConfig:
    """Return the configuration for about 1 M parameters, which runs in minutes on 2 CPU cores."""
    return ExpertsConfig(
        questions=QuestionsConfig(
            hardest_level=2, profile_questions=40, chosen_questions=200, measured_questions=120, router_questions=200
        ),
        learning=ExpertLearningConfig(
            supervised_batch=16,
            reward_steps=8,
            reward_batch=16,
            reward_attempts=2,
            reward_baseline="group",
            reward_max_tokens=24,
        ),
        few_shot=FewShotConfig(population=16, rounds=4),
        search=SearchConfig(population=8, generations=3, questions=48, windows=2, latency_repeats=3),
    )


def mini() -> ExpertsConfig:
    """Return the configuration for about 5 M parameters, which runs in hours on 2 CPU cores."""
    return ExpertsConfig(
        questions=QuestionsConfig(hardest_level=6),
        learning=ExpertLearningConfig(reward_attempts=4, reward_baseline="group"),
        search=SearchConfig(seeds=1, questions=32, windows=2, latency_bound=3.0),
    )


def forge_25m() -> ExpertsConfig:
    """Return the configuration for 25.0 M parameters, which runs on one GPU.

    It is scaled from `mini` and has not been run yet.
    """
    return ExpertsConfig(
        questions=QuestionsConfig(chosen_questions=100, measured_questions=200, router_questions=200),
        learning=ExpertLearningConfig(
            supervised_steps=200, reward_steps=60, reward_attempts=4, reward_baseline="group"
        ),
        search=SearchConfig(seeds=3, questions=64, windows=4, window_tokens=256, latency_bound=3.0),
    )
