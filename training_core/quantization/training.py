"""Phase 4: quantisation-aware training of ternary weights, and the packed file that decodes to exactly these
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training_core.cognate.objective import next_token_objective
from training_core.data.batches import MixConfig, TrainingData
from training_core.models.cognate import Cognate
from training_core.phases import Product
from training_core.quantization.packing import pack_ternary, round_to_half_
from training_core.quantization.ternary import Granularity, apply_ternary, hardness, set_hardness
from training_core.training.distillation import distil
from training_core.training.loop import TrainingConfig, TrainingResult, train
from training_core.training.reporting import Reporter

KEPT_PRECISE = ("embedding", "halt_head", "gates")


class TernarySettings(BaseModel):
    """How weights and activations are quantised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(
        0.5, ge=0, lt=10, description="A weight is 0 below threshold * mean |W|; .5 is BitNet b1.58"
    )
    granularity: Granularity = Field("tensor", description="One scale for each tensor, or for each row")
    activation_bits: int = Field(0, description="8 as in BitNet b1.58, or 0 for activations in full precision")


class TernaryConfig(TernarySettings, TrainingConfig, MixConfig):
    """Quantisation, training length and data of phase 4."""

    hardening_fraction: float = Field(
        0.5, ge=0, le=1, description="Share of the steps over which weights go from full precision to ternary"
    )
    distillation_weight: float = Field(
        0.5, ge=0, le=1, description="Weight of the full-precision parent's distribution"
    )
    temperature: float = Field(1.0, gt=0, description="Distillation temperature")


def make_ternary(model: Cognate, settings: TernarySettings) -> list[str]:
    """Make every hidden matrix of `model` ternary, in place; embeddings, gates, heads, norms and convolutions stay
    precise."""

    def hidden(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and not any(part in name for part in KEPT_PRECISE)

    return apply_ternary(
        model,
        hidden,
        threshold=settings.threshold,
        granularity=settings.granularity,
        activation_bits=settings.activation_bits,
    )


def train_ternary(
    parent: Cognate,
    config: TernaryConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> tuple[Cognate, TrainingResult]:
    """Train `parent`'s weights as latents of a ternary model; the parent itself is the distillation teacher."""
    model = Cognate(parent.config)
    model.load_state_dict(parent.state_dict())
    make_ternary(model, settings_of(config))

    def batches(generator: torch.Generator) -> Tensor:
        return data.batch(config, config.batch_size, config.seq_len + 1, generator)

    result = train(
        model,
        distil(next_token_objective, parent, config.distillation_weight, config.temperature),
        batches,
        config,
        reporter,
        checkpoint=checkpoint,
        label="ternary",
        optimizer_steps_per_batch=parent.config.num_supervision,
        identity=f"{config.shares()}/{settings_of(config)}/{config.hardening_fraction}",
        before_step=lambda step: set_hardness(model, hardness(step, config.steps, config.hardening_fraction)),
    )
    set_hardness(model, 1.0)
    return model, result


def settings_of(config: TernaryConfig) -> TernarySettings:
    """The quantisation part of the phase's configuration."""
    return TernarySettings.model_validate({f: getattr(config, f) for f in TernarySettings.model_fields})


def ternary_product(model: Cognate, settings: TernarySettings, tokenizer_json: str, **measured: Any) -> Product:
    """A straight-through model as the product of a phase: its latents for further training, and the packed file that
    decodes to exactly its effective weights. `measured` are `metrics` and `exhibits` of the product.

    What is not ternary is rounded to float16 in place, so that the file loses nothing.
    """
    round_to_half_(model)
    document = {"cognate": model.config.model_dump(), "ternary": settings.model_dump()}
    return Product(
        "ternary", document, model.state_dict(), tokenizer_json, payload=pack_ternary(model, document), **measured
    )
