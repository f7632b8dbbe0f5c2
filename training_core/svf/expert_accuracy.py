"""Expected accuracy with families weighted alike, and what every expert alone makes of every question.

Shape legend: Q questions, K experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training_core.evaluation.intervals import difference_of_rates, percentile_interval, rate, resample_weights
from training_core.nn.svf import Expert, SVFModel
from training_core.record import Estimate
from training_core.tasks.questions.likelihood import AskedQuestions
from training_core.tasks.questions.measurement import spread
from training_core.tasks.questions.question import LEVELS, Question


def of_each_family(questions: Sequence[Question], number: int) -> list[Question]:
    """At most `number` questions of every family, one of each level in turn."""
    families = dict.fromkeys(sorted(question.family for question in questions))
    return [
        question
        for family in families
        for question in spread([q for q in questions if q.family == family], number, LEVELS)
    ]


def family_weights(questions: Sequence[Question]) -> Tensor:
    """1 / (families * questions of the family) of each question, (questions,) float64: they sum to 1."""
    counted = Counter(question.family for question in questions)
    return torch.tensor([1 / (len(counted) * counted[q.family]) for q in questions], dtype=torch.float64)


def accuracy(expected_Q: Tensor, questions: Sequence[Question]) -> Estimate:
    """Mean over families of their mean expected accuracy, 95 % bootstrap over questions."""
    weights_Q = family_weights(questions)
    return rate(expected_Q * weights_Q, weights_Q)


def gain(expected_Q: Tensor, other_Q: Tensor, questions: Sequence[Question]) -> Estimate:
    """What the first has over the other, likewise, paired by question."""
    weights_Q = family_weights(questions)
    return difference_of_rates(expected_Q * weights_Q, other_Q * weights_Q, weights_Q)


def family_drops(before_Q: Tensor, after_Q: Tensor, questions: Sequence[Question]) -> dict[str, Estimate]:
    """By family: mean of `before` minus `after`, paired by question. The bootstrap intervals hold together: of F
    families each has one of 1 - .05 / F (Bonferroni), so that of models that are no worse in any family at most one in
    twenty looks as if it were."""
    families = sorted({question.family for question in questions})
    tail = 0.025 / len(families)
    drops: dict[str, Estimate] = {}
    for family in families:
        there = torch.tensor([question.family == family for question in questions])
        fall_q = (before_Q - after_Q)[there].double()
        samples = resample_weights(len(fall_q)) @ fall_q / len(fall_q)
        drops[family] = percentile_interval(float(fall_q.mean()), samples, tail)
    return drops


@dataclass(frozen=True, slots=True)
class PerExpertAccuracy:
    """Expected accuracy on each question without an expert (row 0) and with each alone, (experts + 1, questions)."""

    questions: tuple[Question, ...]
    expected_KQ: Tensor

    @classmethod
    def measure(cls, scalable: SVFModel, experts: Sequence[Expert], asked: AskedQuestions) -> PerExpertAccuracy:
        """One pass without an expert, and one with each."""
        device = next(scalable.model.parameters()).device
        rows = []
        for multipliers in (None, *(expert.multipliers() for expert in experts)):
            with scalable.using(multipliers) as model:
                told = asked.likelihoods(lambda _, inputs_BS, model=model: model(inputs_BS.to(device)).logits)  # type: ignore[misc]
            rows.append(told.expected_Q())
        return cls(asked.questions, torch.stack(rows))

    @property
    def none_Q(self) -> Tensor:
        """Without an expert."""
        return self.expected_KQ[0]

    def chosen(self, choice_Q: Tensor) -> Tensor:
        """With the expert that was chosen for each question, 0 for none: (questions,)."""
        return self.expected_KQ.gather(0, choice_Q[None])[0]

    def by_oracle(self, expert_of: Mapping[str, int]) -> Tensor:
        """With the expert of each question's family, from 1; none where it has none."""
        return self.chosen(torch.tensor([expert_of.get(question.family, 0) for question in self.questions]))

    def best_single(self) -> int:
        """The expert, from 1, that is best for all questions, families weighted alike."""
        return 1 + int((self.expected_KQ[1:] @ family_weights(self.questions)).argmax())

    def by_family(self) -> tuple[list[str], list[list[float]]]:
        """Families, and of every row their mean expected accuracies."""
        families = sorted({question.family for question in self.questions})
        columns = [torch.tensor([question.family == family for question in self.questions]) for family in families]
        return families, [[float(row_Q[there].mean()) for there in columns] for row_Q in self.expected_KQ]
