"""Selection rules and all of their limits: when a trained candidate is rejected, and which levels are in reach.

Both are judged on validation data. The limits affect which model a phase produces, so changing one makes the model
stale; the thresholds that judge the result are in the phases' `gates.py`.
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

REACH = 0.1  # lowest accuracy on validation questions at which a level is in reach


@dataclass(frozen=True, slots=True)
class HarmLimits:
    """Largest loss at which a candidate is still kept.

    text_ratio: limit of bits per byte on validation text, relative to the parent. accuracy_drop: limit of the accuracy
    drop, of a quantity that each phase defines.
    """

    text_ratio: float = math.inf
    accuracy_drop: float = math.inf

    def exceeded(self, text_ratio: float, accuracy_drop: float = 0.0) -> bool:
        """Return whether a candidate exceeds a limit and is rejected."""
        return text_ratio > self.text_ratio or accuracy_drop > self.accuracy_drop


THOUGHTS = HarmLimits(text_ratio=1.01)  # phase 3, with thoughts off
PRACTICE = HarmLimits(text_ratio=1.015, accuracy_drop=0.03)  # phase 5: each arm; foreseen at the worst passed level
RULES = HarmLimits(text_ratio=1.01, accuracy_drop=0.03)  # phase 5: predicted for the worst passed level, upper bound
BAKES = HarmLimits(text_ratio=1.01, accuracy_drop=0.01)  # phase 6: of any task family, upper bound
EXPERTS = HarmLimits(text_ratio=1.01, accuracy_drop=0.01)  # phase 7: text in the search, any task family


def text_ratio(model: Cognate, parent: Cognate, windows: Windows, batch_size: int) -> float:
    """Return the ratio of bits per byte of `model` to `parent` on the same windows, both in inference form."""
    after, before = (measure_windows(inference_copy(m), windows, batch_size).nats for m in (model, parent))
    return rate(after, before).value


def in_reach(accuracy: Mapping[int, float]) -> list[int]:
    """Return the levels in reach, those that a model could forget; all levels if none is in reach."""
    return [level for level, value in accuracy.items() if value >= REACH] or list(accuracy)
