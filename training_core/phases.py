"""What a phase makes and what is measured on it, independent of who runs the phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Product:
    """A finished model, ready to be written as a bundle (`training_core.bundle.write_bundle`).

    `tensors` is None for a compressed model, `payload` is None for a plain one. `metrics` holds what only the
    phase itself can measure (for instance a merge's gain over its best parent); the evaluation suite adds the
    rest. `exhibits` are what the phase shows to a person besides numbers: a name to a JSON document, which is
    kept beside the measurements (`training_core.bundle.Bundle.exhibits`).
    """

    kind: str
    model_config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] | None
    tokenizer_json: str
    payload: bytes | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    exhibits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the evaluation suite measured on a bundle as it lies on disk.

    `metrics` are flat scalars, `tasks` maps a task family to its scores, `counts` holds per-document counts
    so that two models can be compared on the same documents.
    """

    metrics: Mapping[str, float]
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, torch.Tensor] = field(default_factory=dict)
