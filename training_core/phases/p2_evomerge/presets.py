"""Presets of phase 2: one configuration for each size profile."""

from __future__ import annotations

from training_core.phases.p2_evomerge.evolution import EvolutionConfig


def nano() -> EvolutionConfig:
    """Return the configuration for about 1 M parameters, which runs in minutes on 2 CPU cores."""
    return EvolutionConfig(generations=2)


def mini() -> EvolutionConfig:
    """Return the configuration for about 5 M parameters, which runs in hours on 2 CPU cores."""
    return EvolutionConfig(generations=10)


def forge_25m() -> EvolutionConfig:
    """Return the configuration for 25.0 M parameters, which runs on one GPU."""
    return EvolutionConfig(generations=50)
