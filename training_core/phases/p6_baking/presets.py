"""Presets of phase 6: one configuration for each size profile."""

from __future__ import annotations

from training_core.phases.p6_baking.alternation import AlternationConfig
from training_core.phases.p6_baking.config import (
    CyclesConfig,
    LessonConfig,
    MeasurementConfig,
    PersonaConfig,
    StrengthConfig,
)
from training_core.training.loop import TrainingConfig


def nano() -> CyclesConfig:
    """Return the configuration for about 1 M parameters, which runs in minutes on 2 CPU cores."""
    return CyclesConfig(
        lessons=LessonConfig(
            tool_prompt="Use <fix>.",
            shown_repairs=300,
            repair_lines=2,
            repair_names=6,
            steps=16,
            batch_size=10,
            text_tokens=96,
            muon_lr=0.012,
            text_weight=8.0,
            rehearsed_tokens=64,
            rehearsal_weight=5.0,
            unprompted_tokens=24,
            repair_tokens=32,
        ),
        persona=PersonaConfig(proposals=8, scored_questions=64),
        strength=StrengthConfig(
            first=0.4, last=0.4, num_trajectories=32, held_out_trajectories=24, text_weight=12.0, staying_rows=16
        ),
        measurement=MeasurementConfig(
            scored_repairs=24,
            measured_repairs=32,
            questions_per_level=16,
            conversations=8,
            line_tokens=1,
            reply_tokens=3,
            style_texts=12,
            style_tokens=20,
        ),
        alternation=AlternationConfig(max_iterations=2, max_turn=1),
        training=TrainingConfig(
            muon_lr=0.003, adamw_lr=0.002, grokfast_lambda=0.0, steps=10, seq_len=48, decay_fraction=1.0
        ),
    )


def mini() -> CyclesConfig:
    """Return the configuration for about 5 M parameters, which runs in hours on 2 CPU cores.

    It is scaled from `nano` by width and context, and has not been run end to end yet.
    """
    return CyclesConfig(
        lessons=LessonConfig(steps=80, batch_size=16, text_tokens=256, shown_repairs=1500),
        strength=StrengthConfig(num_trajectories=96, held_out_trajectories=64, text_weight=8.0, staying_rows=24),
        measurement=MeasurementConfig(measured_repairs=200, questions_per_level=100, conversations=24),
        alternation=AlternationConfig(max_iterations=6, max_turn=3),
        training=TrainingConfig(
            muon_lr=0.003,
            adamw_lr=0.002,
            grokfast_lambda=0.0,
            steps=60,
            batch_size=16,
            seq_len=256,
            decay_fraction=1.0,
        ),
    )


def forge_25m() -> CyclesConfig:
    """Return the configuration for 25.0 M parameters, which runs on one GPU.

    It is scaled from `mini` by width and context, and has not been run yet.
    """
    return CyclesConfig(
        lessons=LessonConfig(steps=300, batch_size=32, text_tokens=512, shown_repairs=6000, repairs=256),
        persona=PersonaConfig(proposals=24, scored_questions=256, given_tokens=24, persona_tokens=32),
        strength=StrengthConfig(num_trajectories=256, held_out_trajectories=128, text_weight=4.0, staying_rows=32),
        measurement=MeasurementConfig(
            scored_repairs=128, measured_repairs=400, questions_per_level=200, conversations=48, reply_tokens=8
        ),
        alternation=AlternationConfig(max_iterations=12, max_turn=4),
        training=TrainingConfig(
            muon_lr=0.002,
            adamw_lr=0.001,
            grokfast_lambda=0.0,
            steps=200,
            batch_size=32,
            seq_len=512,
            decay_fraction=1.0,
        ),
    )
