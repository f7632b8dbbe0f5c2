"""Result records shared by the phases that run programs or ask questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training_core.record import Estimate, Record, keyed, maybe


@dataclass(frozen=True, slots=True)
class SandboxResult(Record):
    """Result of probing the sandbox in which the phase ran."""

    sandbox_probes: float
    sandbox_breaches: float
    sandbox_probe_seconds: float


@dataclass(frozen=True, slots=True)
class LevelsResult(Record):
    """Accuracy by level on test questions, for the parent (`before`) and for the product.

    known_wordings, new_wordings: over all levels, of questions worded as training has them and as it never does.
    """

    level_accuracy_before: float
    level_accuracy: float
    level_accuracy_gain: Estimate
    edge_before: float
    edge: float
    edge_gain: float
    num_passed_levels: float
    worst_passed_level_drop_high: float
    known_wordings_accuracy: Estimate = maybe()
    known_wordings_accuracy_before: Estimate = maybe()
    new_wordings_accuracy: Estimate = maybe()
    new_wordings_accuracy_before: Estimate = maybe()
    accuracy_before: Mapping[str, Estimate] = keyed("level_{}_accuracy_before")
    accuracy: Mapping[str, Estimate] = keyed("level_{}_accuracy")
