"""What the phases have in common whose models write programs: parent, data, and a sandbox that was probed first."""

from collections.abc import Callable
from dataclasses import replace

from pydantic import BaseModel

from forge_assets.factory import PhaseRun
from forge_resources.sandbox import open_sandbox, probe
from training_core.bundle import Bundle
from training_core.data.batches import TrainingData
from training_core.evaluation.held_out import open_suite
from training_core.loading import load_latents, ternary_settings
from training_core.phases import Product
from training_core.questions.bank import open_bank
from training_core.questions.tools import ToolBox

SANDBOXED_DATA = ("tokens", "task_bank", "question_bank", "evaluation_suite")
SANDBOXED_CODE = [
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


def in_sandbox(make: Callable[..., Product], run: PhaseRun, parent: Bundle, config: BaseModel) -> Product:
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
