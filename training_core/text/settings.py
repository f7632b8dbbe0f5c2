"""The numbers that generation takes, and their bounds. Loads no torch: they are checked before a model is loaded."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from training_core.config import Config, validated


class Sampling(Config):
    """Length, temperature, nucleus and seed of a generated text."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_tokens: int = Field(120, ge=1, description="Maximum number of tokens to generate")
    temperature: float = Field(0.7, ge=0, description="Sampling temperature; 0 decodes greedily")
    top_p: float = Field(0.95, gt=0, le=1, description="Probability mass for nucleus sampling")
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of the random numbers")


def sampling_settings(*, max_tokens: int, temperature: float, top_p: float, seed: int) -> Sampling:
    """Return the settings, checked.

    Raises:
        ConfigError: for a value out of its bounds or not finite.
    """
    return validated(Sampling, {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed})
