"""Phase 1, Cognate: the trunk, and three specialists that branch from it."""

import dagster as dg

from forge_assets.factory import PhaseRun, phase_asset
from training_core.cognate.training import TrunkConfig, Variant, VariantConfig, specialise, train_trunk
from training_core.data.batches import TrainingData
from training_core.loading import load_latents
from training_core.models.cognate import Cognate
from training_core.phases import Product
from training_core.training.loop import TrainingResult

CODE = [
    "training_core.cognate",
    "training_core.models",
    "training_core.optim",
    "training_core.training",
    "training_core.data.batches",
]


@phase_asset(
    phase=1,
    code=CODE,
    description="The language model that the three specialists share: Titans-MAG blocks, TRM recursion, ACT halting.",
)
def trunk(run: PhaseRun, config: TrunkConfig) -> Product:
    """Train the trunk from random weights."""
    data = TrainingData.open(run.data["tokens"], run.data["task_bank"])
    model, result = train_trunk(config, data, run.reporter, run.checkpoint)
    return _product(model, result, data)


def _specialist(variant: Variant, description: str) -> dg.AssetsDefinition:
    def branch(run: PhaseRun, config: VariantConfig) -> Product:
        data = TrainingData.open(run.data["tokens"], run.data["task_bank"])
        parent = load_latents(run.parents["trunk"])
        model, result = specialise(parent, variant, config, data, run.reporter, run.checkpoint)
        return _product(model, result, data)

    branch.__name__ = f"cognate_{variant}"
    return phase_asset(phase=1, parents=("trunk",), code=CODE, description=description)(branch)


def _product(model: Cognate, result: TrainingResult, data: TrainingData) -> Product:
    config = {"cognate": model.config.model_dump()}
    return Product("cognate", config, model.state_dict(), data.tokenizer_json, metrics=result.metrics())


cognate_reasoning = _specialist("reasoning", "Specialist with deeper recursion, trained on more arithmetic and logic.")
cognate_memory = _specialist("memory", "Specialist with a faster memory, trained on longer sequences and needle tasks.")
cognate_speed = _specialist("speed", "Specialist without recursion, trained on text alone: the quickest answer.")
