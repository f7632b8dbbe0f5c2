"""The score of a model on the items of one family, beside what it takes to be right without understanding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from training_core.evaluation.intervals import paired_difference, wilson
from training_core.evaluation.result import ABOVE_BEST, BASELINE
from training_core.record import Estimate


@dataclass(frozen=True, slots=True)
class FamilyScore:
    """Outcomes of a model on each item of a family, (items,) float64: 1 if right, 0 if wrong, between them for a tie.

    baselines: by name, the outcomes of a rule on the same items. chance: what guessing reaches.
    """

    outcomes: Tensor
    chance: float
    baselines: Mapping[str, Tensor] = field(default_factory=dict)

    def accuracy(self) -> Estimate:
        """Return the share of right answers with Wilson's interval."""
        return wilson(float(self.outcomes.sum()), len(self.outcomes))

    def best_baseline(self) -> str | None:
        """Return the name of the baseline with the highest accuracy on these items (the first of equals), if any."""
        return max(self.baselines, key=lambda name: float(self.baselines[name].mean()), default=None)

    def above_best_baseline(self) -> Estimate | None:
        """Return the accuracy minus the best baseline's, paired by item (Tango, 1998).

        The best one is chosen on the same items, so its accuracy is flattered and the difference is conservative.
        """
        best = self.best_baseline()
        return None if best is None else paired_difference(self.outcomes, self.baselines[best])

    def as_dict(self) -> dict[str, float]:
        """Return flat scalars for the ledger. Corrected for chance an accuracy p is (p - chance) / (1 - chance)."""
        accuracy, above = self.accuracy(), self.above_best_baseline()

        def corrected(p: float) -> float:
            return (p - self.chance) / (1 - self.chance)

        return {
            "accuracy": accuracy.value,
            "chance": self.chance,
            "corrected": corrected(accuracy.value),
            "corrected_low": corrected(accuracy.low),
            "corrected_high": corrected(accuracy.high),
            "items": len(self.outcomes),
            **{f"{BASELINE}{name}": float(of.mean()) for name, of in self.baselines.items()},
            **({} if above is None else above.metrics(ABOVE_BEST)),
        }
