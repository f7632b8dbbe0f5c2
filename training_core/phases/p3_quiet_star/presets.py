"""Presets of phase 3: one configuration for each size profile."""

from __future__ import annotations

from training_core.phases.p3_quiet_star.config import ChainBakingConfig, ReasoningConfig
from training_core.phases.p3_quiet_star.objective import PolicyConfig
from training_core.training.loop import TrainingConfig


def nano() -> ReasoningConfig:
    """Return the configuration for about 1 M parameters, which runs in minutes on 2 CPU cores."""
    return ReasoningConfig(
        thoughts=PolicyConfig(min_length=2, max_length=4, positions_per_sequence=8, true_tokens=2),
        baking=ChainBakingConfig(steps=8, batch_size=4, examples=1, trajectories=8, max_tokens=16),
        training=TrainingConfig(
            muon_lr=0.005, adamw_lr=0.003, grokfast_lambda=0.0, steps=10, batch_size=4, seq_len=128, decay_fraction=1.0
        ),
        measured_windows=16,
    )


def mini() -> ReasoningConfig:
    """Return the configuration for about 5 M parameters, which runs in hours on 2 CPU cores."""
    return ReasoningConfig(
        thoughts=PolicyConfig(min_length=4, max_length=8),
        training=TrainingConfig(muon_lr=0.01, adamw_lr=0.002, steps=200, decay_fraction=1.0),
    )


def forge_25m() -> ReasoningConfig:
    """Return the configuration for 25.0 M parameters, which runs on one GPU."""
    return ReasoningConfig(
        thoughts=PolicyConfig(positions_per_sequence=64),
        baking=ChainBakingConfig(steps=200),
        training=TrainingConfig(
            muon_lr=0.01, adamw_lr=0.002, steps=500, batch_size=32, seq_len=1024, decay_fraction=1.0
        ),
    )
