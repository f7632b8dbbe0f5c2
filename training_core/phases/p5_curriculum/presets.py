"""Presets of phase 5: the configurations of both models for each size profile."""

from __future__ import annotations

from typing import NamedTuple

from training_core.phases.p5_curriculum.config import (
    CharacterConfig,
    ConsolidationConfig,
    CurriculumConfig,
    DecisionConfig,
    PracticeConfig,
    RulesConfig,
    SelfModelConfig,
    TextConfig,
)
from training_core.tasks.questions.assessment import AssessmentConfig
from training_core.training.loop import TrainingConfig


class CurriculumConfigs(NamedTuple):
    """One configuration for each of the two models of the phase."""

    practised_model: CurriculumConfig
    curriculum_model: CharacterConfig


def nano() -> CurriculumConfigs:
    """Return the configurations for about 1 M parameters, which run in minutes on 2 CPU cores."""
    return CurriculumConfigs(
        practised_model=CurriculumConfig(
            assessment=AssessmentConfig(first_questions=12, more_questions=12, most_questions=36),
            practice=PracticeConfig(focus_levels=4, questions_per_round=128, passes=4, max_tokens=48),
            text=TextConfig(rows=8, weight=8.0, teacher=True),
            consolidation=ConsolidationConfig(
                steps=5, lr_factor=0.2, num_dreams=64, memory_tokens=64, memory_weight=2.0
            ),
            training=TrainingConfig(
                muon_lr=0.008,
                momentum=0.8,
                grokfast_lambda=0.0,
                steps=30,
                batch_size=24,
                seq_len=128,
                decay_fraction=0.5,
            ),
            measured_questions=24,
        ),
        curriculum_model=CharacterConfig(
            rules=RulesConfig(held_out_situations=12),
            decisions=DecisionConfig(
                answer_tokens=32,
                council_questions=24,
                ooda_practice_questions=16,
                ooda_questions=24,
                questions_per_level=16,
            ),
            self_model=SelfModelConfig(samples=200, held_out=160, steps=150),
            training=TrainingConfig(muon_lr=0.0005, adamw_lr=0.0003, grokfast_lambda=0.0, steps=8, seq_len=64),
        ),
    )


def mini() -> CurriculumConfigs:
    """Return the configurations for about 5 M parameters, which run in hours on 2 CPU cores."""
    return CurriculumConfigs(
        practised_model=CurriculumConfig(
            practice=PracticeConfig(rounds=6, questions_per_round=240, max_tokens=40),
            text=TextConfig(weight=2.0),
            consolidation=ConsolidationConfig(steps=40, num_dreams=256),
            training=TrainingConfig(muon_lr=0.007, adamw_lr=0.003, steps=100, batch_size=16, decay_fraction=1.0),
            measured_questions=100,
        ),
        curriculum_model=CharacterConfig(
            decisions=DecisionConfig(council_questions=200, ooda_questions=200, questions_per_level=100),
            training=TrainingConfig(muon_lr=0.0005, adamw_lr=0.0003, grokfast_lambda=0.0, steps=60, seq_len=64),
        ),
    )


def forge_25m() -> CurriculumConfigs:
    """Return the configurations for 25.0 M parameters, which run on one GPU."""
    return CurriculumConfigs(
        practised_model=CurriculumConfig(
            practice=PracticeConfig(rounds=8, questions_per_round=480, max_tokens=64),
            text=TextConfig(rows=8, weight=2.0),
            consolidation=ConsolidationConfig(steps=100, num_dreams=512),
            training=TrainingConfig(
                muon_lr=0.005, adamw_lr=0.002, steps=400, batch_size=32, seq_len=512, decay_fraction=1.0
            ),
            measured_questions=200,
        ),
        curriculum_model=CharacterConfig(
            decisions=DecisionConfig(council_questions=400, ooda_questions=400, questions_per_level=200),
            training=TrainingConfig(muon_lr=0.0005, adamw_lr=0.0003, grokfast_lambda=0.0, steps=100, seq_len=64),
        ),
    )
