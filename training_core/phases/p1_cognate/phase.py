"""Phase 1: train the trunk from random weights, then branch three specialists from it."""

from __future__ import annotations

from functools import partial

from training_core.formats.loading import load_latents
from training_core.nn.cognate import Cognate
from training_core.phase import Phase, PhaseContext
from training_core.phases.p1_cognate.config import TrunkConfig, VariantConfig
from training_core.phases.p1_cognate.gates import GATES
from training_core.phases.p1_cognate.result import CognateResult
from training_core.phases.p1_cognate.train import Variant, specialise, train_trunk
from training_core.store.bundle import Product
from training_core.training.loop import TrainingResult


def make_trunk(context: PhaseContext, config: TrunkConfig) -> Product:
    """Train the trunk and return it with its training metrics."""
    model, result = train_trunk(config, context.training, context.reporter, context.checkpoint)
    return _product(context, model, result)


def make_specialist(variant: Variant, context: PhaseContext, config: VariantConfig) -> Product:
    """Load the trunk, train one specialist from it and return it with its training metrics."""
    parent = load_latents(context.parents["trunk"])
    model, result = specialise(parent, variant, config, context.training, context.reporter, context.checkpoint)
    return _product(context, model, result)


def _product(context: PhaseContext, model: Cognate, result: TrainingResult) -> Product:
    config = {"cognate": model.config.model_dump()}
    return Product("cognate", config, model.state_dict(), context.training.tokenizer_json, metrics=result.metrics())


def _specialist(variant: Variant, description: str) -> Phase:
    name = f"cognate_{variant}"
    compute = partial(make_specialist, variant)
    return Phase(
        name, 1, description, VariantConfig, compute, ("trunk",), gates=GATES[name], result=CognateResult, parallel=True
    )


PHASES = (
    Phase(
        "trunk",
        1,
        "The language model from which the three specialists branch: Titans-MAG blocks, TRM recursion, ACT halting.",
        TrunkConfig,
        make_trunk,
        gates=GATES["trunk"],
        result=CognateResult,
        parallel=True,
    ),
    _specialist(
        "reasoning", "Specialist with deeper recursion, trained on questions that take several steps and on arithmetic."
    ),
    _specialist("memory", "Specialist with a faster memory, trained on longer sequences and on facts to find in them."),
    _specialist("speed", "Specialist without recursion, trained on text only: the fastest at inference."),
)
