"""When a trained candidate is not kept, and which levels count as in reach: the rule and all of its limits.

Both are judged on validation data. The limits decide what a phase hands on, so they are part of what makes a model
stale; the thresholds by which the result is judged stand in the `gates.py` of the phases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from training_core.evaluation.intervals import rate
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.windows import Windows
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy

REACH = 0.1  # accuracy on validation questions from which a level is in reach


@dataclass(frozen=True, slots=True)
class HarmLimits:
    """What a candidate may lose and still be kept.

    text_ratio: bits per byte on validation text, over the parent's. accuracy_drop: the drop of accuracy that may not
    be exceeded; each phase says of what.
    """

    text_ratio: float = math.inf
    accuracy_drop: float = math.inf

    def exceeded(self, text_ratio: float, accuracy_drop: float = 0.0) -> bool:
        """Whether a candidate is not kept."""
        return text_ratio > self.text_ratio or accuracy_drop > self.accuracy_drop


THOUGHTS = HarmLimits(text_ratio=1.01)  # phase 3, with thoughts off
PRACTICE = HarmLimits(text_ratio=1.015)  # phase 5: each arm of the consolidation
RULES = HarmLimits(text_ratio=1.01, accuracy_drop=0.03)  # phase 5: predicted for the worst passed level, upper bound
BAKES = HarmLimits(text_ratio=1.01, accuracy_drop=0.03)  # phase 6: of any task family, upper bound
EXPERTS = HarmLimits(text_ratio=1.01, accuracy_drop=0.01)  # phase 7: text in the search, any task family


def text_ratio(model: Cognate, parent: Cognate, windows: Windows, batch_size: int) -> float:
    """Bits per byte of `model` over those of `parent` on the same windows, both as they run at inference."""
    after, before = (measure_windows(inference_copy(m), windows, batch_size).nats for m in (model, parent))
    return rate(after, before).value


def in_reach(accuracy: Mapping[int, float]) -> list[int]:
    """The levels in reach: those that a model could forget, and where there is something to decide. All levels where
    none is."""
    return [level for level, value in accuracy.items() if value >= REACH] or list(accuracy)
