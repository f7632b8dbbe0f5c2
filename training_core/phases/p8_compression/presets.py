"""Presets of phase 8: one configuration for each size profile."""

from __future__ import annotations

from training_core.data.batches import MixConfig
from training_core.distill.distillation import DistillationConfig
from training_core.phases.p8_compression.config import CompressionConfig, StudentConfig, StudentExpertsConfig
from training_core.training.loop import TrainingConfig


def nano() -> CompressionConfig:
    """Return the configuration for about 1 M parameters, which runs in minutes on 2 CPU cores."""
    return CompressionConfig(
        student=StudentConfig(
            d_model=128, num_heads=4, d_ff=296, num_blocks=2, num_loops=1, window=128, conv_kernel=8, embedding_rank=0
        ),
        distillation=DistillationConfig(weight=0.0),
        training=TrainingConfig(
            muon_lr=0.02,
            adamw_lr=0.012,
            grokfast_lambda=0.0,
            steps=1450,
            batch_size=16,
            seq_len=128,
            decay_fraction=0.6,
        ),
        mix=MixConfig(text_share=0.9, arithmetic_share=0.05, logic_share=0.0, needle_share=0.05, one_hop_share=0.3),
        experts=StudentExpertsConfig(batch_size=16, lr=0.2),
    )


def mini() -> CompressionConfig:
    """Return the configuration for about 5 M parameters, which runs in hours on 2 CPU cores."""
    return CompressionConfig(
        student=StudentConfig(
            d_model=256, num_heads=4, d_ff=640, num_blocks=2, num_loops=1, window=128, embedding_rank=0
        ),
        distillation=DistillationConfig(weight=0.3),
        training=TrainingConfig(
            muon_lr=0.01, adamw_lr=0.002, grokfast_lambda=0.0, steps=900, batch_size=16, seq_len=512
        ),
    )


def forge_25m() -> CompressionConfig:
    """Return the configuration for 25.0 M parameters, which runs on one GPU."""
    return CompressionConfig(
        student=StudentConfig(
            d_model=256, num_heads=8, d_ff=608, num_blocks=2, num_loops=4, window=256, embedding_rank=64
        ),
        training=TrainingConfig(grokfast_lambda=0.0, steps=8000, batch_size=64, seq_len=1024),
    )
