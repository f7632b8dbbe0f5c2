"""Phase 3, Quiet-STaR: thoughts before tokens, and the controls that would show if they carried nothing."""

from forge_assets.factory import PhaseRun, phase_asset
from training_core.data.batches import TrainingData
from training_core.data.tasks import read_tasks
from training_core.evaluation.held_out import open_suite
from training_core.loading import load_latents
from training_core.phases import Product
from training_core.reasoning.phase import make_reasoner
from training_core.reasoning.training import ReasoningConfig


@phase_asset(
    phase=3,
    parents=("merged_model",),
    code=[
        "training_core.reasoning",
        "training_core.baking",
        "training_core.sampling",
        "training_core.generation",
        "training_core.models",
        "training_core.optim",
        "training_core.training",
        "training_core.data.batches",
    ],
    description="The merged model, taught to think before hard tokens; with what its thoughts are worth.",
)
def reasoning_model(run: PhaseRun, config: ReasoningConfig) -> Product:
    """Bake chains of thought, train thoughts by REINFORCE beside two controls, and measure all of them."""
    return make_reasoner(
        load_latents(run.parents["merged_model"]),
        config,
        TrainingData.open(run.data["tokens"], run.data["task_bank"]),
        list(read_tasks(run.data["task_bank"], "train")),
        open_suite(run.data["evaluation_suite"]),
        run.reporter,
        run.checkpoint,
    )
