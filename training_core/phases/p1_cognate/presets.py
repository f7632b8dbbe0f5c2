"""Presets of phase 1: one configuration of the trunk and its specialists for each size profile."""

from __future__ import annotations

from typing import NamedTuple

from training_core.data.batches import MixConfig
from training_core.nn.cognate import RecursionConfig, ShapeConfig
from training_core.phases.p1_cognate.config import FirstStageConfig, TrunkConfig, VariantConfig
from training_core.training.loop import TrainingConfig


class CognateConfigs(NamedTuple):
    """One configuration for each of the four models of the phase."""

    trunk: TrunkConfig
    cognate_reasoning: VariantConfig
    cognate_memory: VariantConfig
    cognate_speed: VariantConfig


def nano() -> CognateConfigs:
    """Return the configurations for about 1 M parameters, which train in minutes on 2 CPU cores."""
    return CognateConfigs(
        trunk=TrunkConfig(
            shape=ShapeConfig(num_core_layers=1, d_ff=296, max_seq_len=512, window=128, use_memory=False),
            first=FirstStageConfig(steps=450),
            training=TrainingConfig(
                muon_lr=0.015,
                adamw_lr=0.02,
                grokfast_lambda=0.0,
                steps=1150,
                batch_size=16,
                seq_len=128,
                decay_fraction=0.8,
            ),
            mix=MixConfig(text_share=0.9, arithmetic_share=0.05, logic_share=0.0, needle_share=0.05),
        ),
        cognate_reasoning=VariantConfig(
            recursion=RecursionConfig(use_memory=False),
            training=TrainingConfig(
                muon_lr=0.01, adamw_lr=0.003, grokfast_lambda=0.0, steps=180, seq_len=128, decay_fraction=1.0
            ),
            mix=MixConfig(
                text_share=0.1,
                arithmetic_share=0.0,
                logic_share=0.0,
                needle_share=0.0,
                two_hops_share=0.3,
                three_hops_share=0.3,
                four_hops_share=0.3,
            ),
        ),
        cognate_memory=VariantConfig(
            training=TrainingConfig(
                muon_lr=0.01,
                adamw_lr=0.003,
                grokfast_lambda=0.0,
                steps=80,
                batch_size=4,
                seq_len=512,
                decay_fraction=1.0,
            ),
            mix=MixConfig(
                text_share=0.7, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0, long_story_share=0.3
            ),
        ),
        cognate_speed=VariantConfig(
            recursion=RecursionConfig(use_memory=False),
            training=TrainingConfig(
                muon_lr=0.01, adamw_lr=0.003, grokfast_lambda=0.0, steps=50, seq_len=128, decay_fraction=1.0
            ),
            mix=MixConfig(text_share=1.0, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0),
        ),
    )


def mini() -> CognateConfigs:
    """Return the configurations for about 5 M parameters, which train in hours on 2 CPU cores."""
    return CognateConfigs(
        trunk=TrunkConfig(
            shape=ShapeConfig(
                d_model=256,
                num_layers=6,
                d_ff=640,
                window=128,
                max_seq_len=1024,
                num_persistent=8,
                memory_layers=[1, 3],
                memory_heads=4,
                memory_rank=64,
            ),
            training=TrainingConfig(steps=900, batch_size=16, seq_len=512),
        ),
        cognate_reasoning=VariantConfig(
            recursion=RecursionConfig(latent_steps=1, num_supervision=2, halt_threshold=0.6),
            training=TrainingConfig(
                muon_lr=0.01, adamw_lr=0.002, steps=60, batch_size=16, seq_len=512, decay_fraction=1.0
            ),
            mix=MixConfig(text_share=0.6, arithmetic_share=0.2, logic_share=0.15),
        ),
        cognate_memory=VariantConfig(
            training=TrainingConfig(muon_lr=0.01, adamw_lr=0.002, steps=80, seq_len=1024, decay_fraction=1.0),
            mix=MixConfig(text_share=0.7, arithmetic_share=0.0, logic_share=0.0, needle_share=0.3),
        ),
        cognate_speed=VariantConfig(
            training=TrainingConfig(
                muon_lr=0.01, adamw_lr=0.002, steps=80, batch_size=16, seq_len=512, decay_fraction=1.0
            ),
            mix=MixConfig(text_share=1.0, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0),
        ),
    )


def forge_25m() -> CognateConfigs:
    """Return the configurations for 25.0 M parameters, which train on one GPU."""
    return CognateConfigs(
        trunk=TrunkConfig(
            shape=ShapeConfig(
                d_model=512,
                num_layers=8,
                num_heads=8,
                d_ff=1024,
                window=256,
                max_seq_len=2048,
                num_persistent=16,
                memory_layers=[1, 4],
                memory_heads=8,
                memory_rank=64,
            ),
            training=TrainingConfig(steps=5000, batch_size=64, seq_len=1024),
        ),
        cognate_reasoning=VariantConfig(
            recursion=RecursionConfig(latent_steps=1, num_supervision=2, halt_threshold=0.6),
            training=TrainingConfig(
                muon_lr=0.01, adamw_lr=0.002, steps=500, batch_size=32, seq_len=1024, decay_fraction=1.0
            ),
            mix=MixConfig(text_share=0.6, arithmetic_share=0.2, logic_share=0.15),
        ),
        cognate_memory=VariantConfig(
            training=TrainingConfig(
                muon_lr=0.01, adamw_lr=0.002, steps=500, batch_size=16, seq_len=2048, decay_fraction=1.0
            ),
            mix=MixConfig(text_share=0.7, arithmetic_share=0.0, logic_share=0.0, needle_share=0.3),
        ),
        cognate_speed=VariantConfig(
            training=TrainingConfig(
                muon_lr=0.01, adamw_lr=0.002, steps=500, batch_size=32, seq_len=1024, decay_fraction=1.0
            ),
            mix=MixConfig(text_share=1.0, arithmetic_share=0.0, logic_share=0.0, needle_share=0.0),
        ),
    )
