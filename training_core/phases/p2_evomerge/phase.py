"""Phase 2: merge the specialists by evolutionary search, with fitness measured on validation documents."""

from __future__ import annotations

from training_core.formats.loading import load_latents
from training_core.phase import Phase, PhaseContext
from training_core.phases.p2_evomerge.evolution import EvolutionConfig
from training_core.phases.p2_evomerge.gates import GATES
from training_core.phases.p2_evomerge.merge_cognates import merge_cognates
from training_core.phases.p2_evomerge.result import MergeResult
from training_core.phases.p2_evomerge.specialties import SPECIALISTS, leads
from training_core.store.bundle import Product


def make_merged(context: PhaseContext, config: EvolutionConfig) -> Product:
    """Search for the best merge of the specialists; return it with the metrics of the search and of the specialists."""
    model, metrics = merge_cognates(
        load_latents(context.parents["trunk"]),
        {name: load_latents(context.parents[name]) for name in SPECIALISTS},
        config,
        context.selection.text,
        context.batch_size,
        context.reporter,
        context.checkpoint,
    )
    context.fix(model)  # what the parents answered are test questions
    metrics |= leads(context.parents)
    shape = {"cognate": model.config.model_dump()}
    return Product("cognate", shape, model.state_dict(), context.parents["trunk"].tokenizer_json(), metrics=metrics)


PHASES = (
    Phase(
        "merged_model",
        2,
        "The best merge on validation data, found by evolutionary search over linear, SLERP, TIES and DARE merges.",
        EvolutionConfig,
        make_merged,
        (*SPECIALISTS, "trunk"),
        gates=GATES["merged_model"],
        result=MergeResult,
        parallel=True,
    ),
)
