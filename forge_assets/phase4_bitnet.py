"""Phase 4, BitNet: ternary weights, trained through the straight-through estimator."""

from forge_assets.factory import PhaseRun, phase_asset
from training_core.data.batches import TrainingData
from training_core.loading import load_latents
from training_core.phases import Product
from training_core.quantization.training import TernaryConfig, settings_of, ternary_product, train_ternary


@phase_asset(
    phase=4,
    parents=("reasoning_model",),
    code=[
        "training_core.quantization",
        "training_core.cognate",
        "training_core.models",
        "training_core.optim",
        "training_core.training",
        "training_core.data.batches",
    ],
    description="The reasoning model with weights in {-1, 0, +1}, five to a byte, and latents for further training.",
)
def ternary_model(run: PhaseRun, config: TernaryConfig) -> Product:
    """Train the reasoning model in ternary form, taught by itself in full precision."""
    data = TrainingData.open(run.data["tokens"], run.data["task_bank"])
    parent = load_latents(run.parents["reasoning_model"])
    model, result = train_ternary(parent, config, data, run.reporter, run.checkpoint)
    return ternary_product(model, settings_of(config), data.tokenizer_json, metrics=result.metrics())
