"""Phase 5, curriculum: practice at the edge of what the model can do, then character, council and self-knowledge."""

from collections.abc import Callable
from dataclasses import replace

from pydantic import BaseModel

from forge_assets.factory import PhaseRun, phase_asset
from forge_resources.sandbox import open_sandbox, probe
from training_core.bundle import Bundle
from training_core.character.config import CharacterConfig
from training_core.character.phase import make_character
from training_core.curriculum.dreams import CurriculumConfig
from training_core.curriculum.phase import make_practised
from training_core.data.batches import TrainingData
from training_core.evaluation.held_out import open_suite
from training_core.loading import load_latents, ternary_settings
from training_core.phases import Product
from training_core.questions.bank import open_bank
from training_core.questions.tools import ToolBox

DATA = ("tokens", "task_bank", "question_bank", "evaluation_suite")
CODE = [
    "training_core.curriculum",
    "training_core.questions",
    "training_core.baking",
    "training_core.quantization",
    "training_core.models",
    "training_core.optim",
    "training_core.training",
    "training_core.sampling",
    "training_core.generation",
    "training_core.cognate",
    "training_core.sandbox",
    "training_core.data.batches",
    "forge_resources.sandbox",
]


@phase_asset(
    phase=5,
    parents=("ternary_model",),
    data=DATA,
    code=CODE,
    description="The ternary model after practice at the edge of what it can do, and dreams against forgetting.",
)
def practised_model(run: PhaseRun, config: CurriculumConfig) -> Product:
    """Assess; attempt, verify, hint and vary; learn from what was right; consolidate by dreams. Needs a sandbox."""
    return _in_sandbox(make_practised, run, run.parents["ternary_model"], config)


@phase_asset(
    phase=5,
    parents=("practised_model",),
    data=DATA,
    code=[*CODE, "training_core.character"],
    description="The practised model with four rules baked in; its council, its loop and what it knows of itself.",
)
def curriculum_model(run: PhaseRun, config: CharacterConfig) -> Product:
    """Bake the rules, convene the council, run the loop, predict the own temperature. Needs a sandbox."""
    return _in_sandbox(make_character, run, run.parents["practised_model"], config)


def _in_sandbox(make: Callable[..., Product], run: PhaseRun, parent: Bundle, config: BaseModel) -> Product:
    """Make a product with tools in a sandbox, and say whether that sandbox held here and now."""
    with open_sandbox("auto") as sandbox:
        conformance = probe(sandbox)
        product = make(
            load_latents(parent),
            ternary_settings(parent),
            config,
            TrainingData.open(run.data["tokens"], run.data["task_bank"]),
            open_bank(run.data["question_bank"]),
            ToolBox(sandbox),
            open_suite(run.data["evaluation_suite"]),
            run.reporter,
            run.checkpoint,
        )
    return replace(product, metrics={**product.metrics, **conformance.metrics()})
