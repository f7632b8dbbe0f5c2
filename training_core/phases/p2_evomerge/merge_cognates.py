"""The merge search on Cognate models; fitness is bits per byte on validation documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.windows import Windows
from training_core.nn.cognate import Cognate, RecursionConfig
from training_core.phases.p2_evomerge.evolution import EvolutionConfig, EvolutionResult, evolve
from training_core.phases.p2_evomerge.methods import StateDict
from training_core.reporting import Figure, Reporter
from training_core.training.device import best_device


def merge_cognates(
    trunk: Cognate,
    parents: Mapping[str, Cognate],
    config: EvolutionConfig,
    validation: Windows,
    batch_size: int,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> tuple[Cognate, dict[str, float]]:
    """Return the merge of `parents` with the lowest bits per byte on `validation`, and the metrics of the search.

    A merged model runs with the recursion, memory and halting settings of its fittest participant. Because the
    parents are candidates themselves, `bits_per_byte_over_best_parent` is at most 0.
    """
    # One model per set of settings; each candidate's weights are loaded into the one it runs with.
    shells = {name: Cognate(parent.config).to(best_device()) for name, parent in parents.items()}

    def bits_per_byte(state: StateDict, settings: str) -> float:
        model = shells[settings]
        model.load_state_dict(dict(state))
        return measure_windows(model, validation, batch_size).bits_per_byte()

    result = evolve(
        _weights(trunk),
        {name: _weights(parent) for name, parent in parents.items()},
        bits_per_byte,
        config,
        reporter,
        None if checkpoint is None else checkpoint / "evolution.safetensors",
    )
    reporter.figure("evolution", _figure(result))
    settings = parents[result.champion_settings].config
    changed = {field: getattr(settings, field) for field in RecursionConfig.model_fields}
    champion = Cognate(trunk.config.model_copy(update=changed))
    champion.load_state_dict(result.champion)
    best_parent = min(result.parents_bits_per_byte.values())
    metrics = {
        "validation_bits_per_byte": result.champion_bits_per_byte,
        "validation_bits_per_byte_best_parent": best_parent,
        "bits_per_byte_over_best_parent": result.champion_bits_per_byte - best_parent,
        "merge_evaluations": result.evaluations,
        "merge_generations": len(result.history) - 1,
    }
    return champion.eval(), metrics


def _weights(model: Cognate) -> StateDict:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _figure(result: EvolutionResult) -> Figure:
    generations = list(range(len(result.history)))
    series = {
        "best": (generations, [g.best for g in result.history]),
        "mean": (generations, [g.mean for g in result.history]),
        "best parent": (generations, [min(result.parents_bits_per_byte.values())] * len(generations)),
    }
    return Figure("Evolution: bits per byte on validation documents", "generation", "bits per byte", series)
