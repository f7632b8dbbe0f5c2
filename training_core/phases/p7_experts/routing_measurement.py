"""How well routers route: against the experts that the questions' families have, and against two that read nothing.

A router that always picks one expert is called that. Its accuracy is the share of questions that need this expert, and
the entropy of its choices is 0.

Shape legend: Q questions, C = experts + 1 classes (0 none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training_core.evaluation.intervals import wilson
from training_core.record import Estimate
from training_core.tasks.questions.question import Question


@dataclass(frozen=True, slots=True)
class OracleRouter:
    """Knows every question's family, and reads nothing: what routing can reach at most. A family without an expert
    gets none."""

    expert_of: Mapping[str, int]
    num_experts: int
    name: str = "oracle"

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """1 for the right one, (questions, experts + 1)."""
        right_Q = torch.tensor([self.expert_of.get(question.family, 0) for question in questions])
        return torch.nn.functional.one_hot(right_Q, self.num_experts + 1).double()

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class ConstantRouter:
    """The same choice for every prompt, 0 for none."""

    choice: int
    num_experts: int
    name: str = "constant"

    def __post_init__(self) -> None:
        if not 0 <= self.choice <= self.num_experts:
            raise ValueError(f"the choice must lie in 0 .. {self.num_experts}, got {self.choice}")

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """(questions, experts + 1)."""
        return self.of_prompts([()] * len(questions))

    def of_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(prompts, experts + 1)."""
        chosen = torch.nn.functional.one_hot(torch.tensor(self.choice), self.num_experts + 1).double()
        return chosen.repeat(len(prompts), 1)

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """None."""
        return 0


@dataclass(frozen=True, slots=True)
class Routing:
    """What a router chose where something was right.

    accuracy: share of right choices, Wilson. commonest: share of the class that most questions need, Wilson: a
    constant reaches it. right_probability: mean probability of the right class. confusion: questions by right class
    (rows) and choice (columns), (classes, classes). recalls: accuracy on the questions of each class, None for a class
    that no question needs. entropy_bits: of the choices.
    """

    name: str
    accuracy: Estimate
    commonest: Estimate
    right_probability: float
    confusion: Tensor
    recalls: tuple[Estimate | None, ...]
    entropy_bits: float

    @property
    def always_picks(self) -> int | None:
        """The only class that was ever chosen, None where there were several."""
        chosen = (self.confusion.sum(0) > 0).nonzero().flatten().tolist()
        return int(chosen[0]) if len(chosen) == 1 else None

    def document(self) -> dict[str, Any]:
        """As part of an exhibit."""
        return {
            "router": self.name,
            "accuracy": self.accuracy.document(),
            "commonest": self.commonest.document(),
            "right_probability": self.right_probability,
            "confusion": self.confusion.tolist(),
            "recalls": [None if recall is None else recall.document() for recall in self.recalls],
            "entropy_bits": self.entropy_bits,
            "always_picks": self.always_picks,
        }


def measure_routing(name: str, probabilities_QC: Tensor, right_Q: Tensor) -> Routing:
    """Compare the likeliest class of each row, the first of equals, with the right one (questions,).

    Raises:
        ValueError: for no questions, or a right class that has no column.
    """
    classes = probabilities_QC.shape[1]
    if len(right_Q) == 0 or not 0 <= int(right_Q.min()) <= int(right_Q.max()) < classes:
        raise ValueError(
            f"routing is measured on questions whose right class lies in 0 .. {classes - 1}, got {right_Q}"
        )
    chosen_Q = probabilities_QC.argmax(1)
    confusion = torch.bincount(right_Q * classes + chosen_Q, minlength=classes**2).view(classes, classes)
    needed, hits, picked = confusion.sum(1).tolist(), confusion.diagonal().tolist(), confusion.sum(0).tolist()
    shares = [count / len(right_Q) for count in picked if count]
    return Routing(
        name,
        wilson(sum(hits), len(right_Q)),
        wilson(max(needed), len(right_Q)),
        float(probabilities_QC.gather(1, right_Q[:, None]).mean()),
        confusion,
        tuple(wilson(hit, count) if count else None for hit, count in zip(hits, needed, strict=True)),
        -sum(share * math.log2(share) for share in shares) if len(shares) > 1 else 0.0,
    )
