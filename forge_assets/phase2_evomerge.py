"""Phase 2, EvoMerge: the specialists become one model by an evolution of merges."""

from forge_assets.factory import PhaseRun, phase_asset
from training_core.evaluation.held_out import open_suite
from training_core.loading import load_latents
from training_core.merging.cognates import merge_cognates
from training_core.merging.evolution import EvolutionConfig
from training_core.phases import Product

SPECIALISTS = ("cognate_reasoning", "cognate_memory", "cognate_speed")


@phase_asset(
    phase=2,
    parents=(*SPECIALISTS, "trunk"),
    code=["training_core.merging", "training_core.models"],
    description="The best merge that an evolution of linear, SLERP, TIES and DARE merges found on validation data.",
)
def merged_model(run: PhaseRun, config: EvolutionConfig) -> Product:
    """Evolve the merge; fitness is measured on the suite's validation documents, never on its test documents."""
    suite = open_suite(run.data["evaluation_suite"])
    parents = {name: load_latents(run.parents[name]) for name in SPECIALISTS}
    model, metrics = merge_cognates(
        load_latents(run.parents["trunk"]),
        parents,
        config,
        suite.validation,
        suite.config.batch_size,
        run.reporter,
        run.checkpoint,
    )
    tokenizer_json = run.parents["trunk"].tokenizer_json()
    return Product(
        "cognate", {"cognate": model.config.model_dump()}, model.state_dict(), tokenizer_json, metrics=metrics
    )
