"""Presets of phase 2: what the profiles set."""

from __future__ import annotations

from training_core.phases.p2_evomerge.evolution import EvolutionConfig


def nano() -> EvolutionConfig:
    """About 1 M parameters: minutes on 2 CPU cores."""
    return EvolutionConfig(generations=2)


def mini() -> EvolutionConfig:
    """About 5 M parameters: hours on 2 CPU cores."""
    return EvolutionConfig(generations=10)


def forge_25m() -> EvolutionConfig:
    """25.0 M parameters: one GPU."""
    return EvolutionConfig(generations=50)
