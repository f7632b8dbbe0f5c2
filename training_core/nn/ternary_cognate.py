"""Conversion of a Cognate model's hidden matrices to ternary weights, and its settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from training_core.nn.cognate import Cognate
from training_core.nn.ternary import Granularity, apply_ternary

KEPT_PRECISE = ("embedding", "halt_head", "gates")


class TernarySettings(BaseModel):
    """Quantisation of weights and activations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(
        0.5, ge=0, lt=10, description="A weight is 0 below threshold * mean |W|; .5 is BitNet b1.58"
    )
    granularity: Granularity = Field("tensor", description="One scale per tensor or one per row")
    activation_bits: int = Field(0, description="8 as in BitNet b1.58, or 0 for activations in full precision")


def make_ternary(model: Cognate, settings: TernarySettings) -> list[str]:
    """Make every hidden matrix of `model` ternary, in place, and return their names; embeddings, gates, heads, norms
    and convolutions keep full precision."""

    def hidden(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and not any(part in name for part in KEPT_PRECISE)

    return apply_ternary(
        model,
        hidden,
        threshold=settings.threshold,
        granularity=settings.granularity,
        activation_bits=settings.activation_bits,
    )
