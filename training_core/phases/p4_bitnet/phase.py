"""Phase 4: quantise the reasoning model to ternary weights, with its full-precision form as the teacher."""

from __future__ import annotations

from training_core.formats.loading import load_latents
from training_core.formats.ternary_packing import ternary_product
from training_core.phase import Phase, PhaseContext
from training_core.phases.p4_bitnet.config import TernaryConfig
from training_core.phases.p4_bitnet.gates import GATES
from training_core.phases.p4_bitnet.result import TernaryResult
from training_core.phases.p4_bitnet.train import train_ternary
from training_core.store.bundle import Product


def make_ternary_model(context: PhaseContext, config: TernaryConfig) -> Product:
    """Train a ternary model whose latent weights start at the parent's, and return it packed."""
    parent = load_latents(context.parents["reasoning_model"])
    model, result = train_ternary(parent, config, context.training, context.reporter, context.checkpoint)
    return ternary_product(model, config.quantization, context.training.tokenizer_json, metrics=result.metrics())


PHASES = (
    Phase(
        "ternary_model",
        4,
        "The reasoning model with weights in {-1, 0, +1}, packed five to a byte, and latents for further training.",
        TernaryConfig,
        make_ternary_model,
        ("reasoning_model",),
        gates=GATES["ternary_model"],
        result=TernaryResult,
        kind="ternary",
    ),
)
