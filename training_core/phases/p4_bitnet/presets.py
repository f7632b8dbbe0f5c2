"""Presets of phase 4: one configuration for each size profile."""

from __future__ import annotations

from training_core.data.batches import MixConfig
from training_core.distill.distillation import DistillationConfig
from training_core.phases.p4_bitnet.config import TernaryConfig
from training_core.training.loop import TrainingConfig


def nano() -> TernaryConfig:
    """Return the configuration for about 1 M parameters, which trains in minutes on 2 CPU cores."""
    return TernaryConfig(
        distillation=DistillationConfig(weight=0.3),
        training=TrainingConfig(
            muon_lr=0.01, adamw_lr=0.003, grokfast_lambda=0.0, steps=200, batch_size=16, seq_len=128
        ),
        mix=MixConfig(text_share=0.9, arithmetic_share=0.05, logic_share=0.0, needle_share=0.05),
    )


def mini() -> TernaryConfig:
    """Return the configuration for about 5 M parameters, which trains in hours on 2 CPU cores."""
    return TernaryConfig(
        training=TrainingConfig(muon_lr=0.01, adamw_lr=0.002, steps=150, batch_size=16, seq_len=512, decay_fraction=1.0)
    )


def forge_25m() -> TernaryConfig:
    """Return the configuration for 25.0 M parameters, which trains on one GPU."""
    return TernaryConfig(
        training=TrainingConfig(
            muon_lr=0.01, adamw_lr=0.002, steps=1500, batch_size=32, seq_len=1024, decay_fraction=1.0
        )
    )
