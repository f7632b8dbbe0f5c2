"""Expected accuracy averaged over families, and the expected accuracy of every single expert on every question.

Shape legend: Q questions, K experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training_core.evaluation.intervals import (
    difference_of_rates,
    percentile_interval,
    resample_weights,
    weighted_proportion,
)
from training_core.nn.svf import Expert, SVFModel
from training_core.record import Estimate
from training_core.tasks.questions.likelihood import AskedQuestions
from training_core.tasks.questions.measurement import spread
from training_core.tasks.questions.question import LEVELS, Question


def of_each_family(questions: Sequence[Question], number: int) -> list[Question]:
    """Return at most `number` questions of every family, taken from each level in turn."""
    families = dict.fromkeys(sorted(question.family for question in questions))
    return [
        question
        for family in families
        for question in spread([q for q in questions if q.family == family], number, LEVELS)
    ]


def family_weights(questions: Sequence[Question]) -> Tensor:
    """Return the weight of each question, 1 / (families * questions of its family): (questions,) float64, sum 1."""
    counted = Counter(question.family for question in questions)
    return torch.tensor([1 / (len(counted) * counted[q.family]) for q in questions], dtype=torch.float64)


def accuracy(expected_Q: Tensor, questions: Sequence[Question]) -> Estimate:
    """Return the mean over families of their mean expected accuracy, with a Wilson interval, conservative here."""
    return weighted_proportion(expected_Q, family_weights(questions))


def gain(expected_Q: Tensor, other_Q: Tensor, questions: Sequence[Question]) -> Estimate:
    """Return the gain of the first over the other in the same average, with a 95 % bootstrap paired by question."""
    weights_Q = family_weights(questions)
    return difference_of_rates(expected_Q * weights_Q, other_Q * weights_Q, weights_Q)


def family_drops(before_Q: Tensor, after_Q: Tensor, questions: Sequence[Question]) -> dict[str, Estimate]:
    """Return the mean drop of each family (`before` minus `after`), with simultaneous 95 % bootstrap intervals paired
    by question.

    Each of the F intervals has coverage 1 - .05 / F (Bonferroni), so a model that is worse in no family appears to be
    worse in some family with a probability of at most 5 %.
    """
    families = sorted({question.family for question in questions})
    tail = 0.025 / len(families)
    drops: dict[str, Estimate] = {}
    for family in families:
        in_family_Q = torch.tensor([question.family == family for question in questions])
        drop_q = (before_Q - after_Q)[in_family_Q].double()
        samples = resample_weights(len(drop_q)) @ drop_q / len(drop_q)
        drops[family] = percentile_interval(float(drop_q.mean()), samples, tail)
    return drops


@dataclass(frozen=True, slots=True)
class PerExpertAccuracy:
    """Expected accuracy on each question without an expert (row 0) and with each single expert: (experts + 1,
    questions)."""

    questions: tuple[Question, ...]
    expected_KQ: Tensor

    @classmethod
    def measure(cls, svf: SVFModel, experts: Sequence[Expert], asked: AskedQuestions) -> PerExpertAccuracy:
        """Measure the model in one pass without an expert and one with each expert."""
        device = next(svf.model.parameters()).device
        rows = []
        for multipliers in (None, *(expert.multipliers() for expert in experts)):
            with svf.using(multipliers) as model:
                result = asked.likelihoods(lambda _, inputs_BS, model=model: model(inputs_BS.to(device)).logits)  # type: ignore[misc]
            rows.append(result.expected_Q())
        return cls(asked.questions, torch.stack(rows))

    @property
    def none_Q(self) -> Tensor:
        """Expected accuracy on each question without an expert, (questions,)."""
        return self.expected_KQ[0]

    def chosen(self, choice_Q: Tensor) -> Tensor:
        """Return the accuracy with the expert chosen for each question (0 for none), (questions,)."""
        return self.expected_KQ.gather(0, choice_Q[None])[0]

    def by_oracle(self, expert_of: Mapping[str, int]) -> Tensor:
        """Return the accuracy under oracle routing: each question gets its family's expert (from 1), if any."""
        return self.chosen(torch.tensor([expert_of.get(question.family, 0) for question in self.questions]))

    def best_single(self) -> int:
        """Return the expert (from 1) with the highest accuracy over all questions, families equally weighted."""
        return 1 + int((self.expected_KQ[1:] @ family_weights(self.questions)).argmax())

    def by_family(self) -> tuple[list[str], list[list[float]]]:
        """Return the families, and for every row the mean expected accuracy in each of them."""
        families = sorted({question.family for question in self.questions})
        masks = [torch.tensor([question.family == family for question in self.questions]) for family in families]
        return families, [[float(row_Q[mask_Q].mean()) for mask_Q in masks] for row_Q in self.expected_KQ]
