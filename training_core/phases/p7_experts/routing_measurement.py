"""Evaluation of routers against the experts of the questions' families, with oracle and constant routers for reference.

A router that always picks the same class is reported as such: its accuracy is the share of questions of that class, and
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
    """A router that knows every question's family: the upper limit of routing. A family without an expert gets none."""

    expert_of: Mapping[str, int]
    num_experts: int
    name: str = "oracle"

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """Return probability 1 for the right class, (questions, experts + 1)."""
        right_Q = torch.tensor([self.expert_of.get(question.family, 0) for question in questions])
        return torch.nn.functional.one_hot(right_Q, self.num_experts + 1).double()

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Return 0, because this router reads no tokens."""
        return 0


@dataclass(frozen=True, slots=True)
class ConstantRouter:
    """A router that makes the same choice for every prompt; 0 is no expert."""

    choice: int
    num_experts: int
    name: str = "constant"

    def __post_init__(self) -> None:
        if not 0 <= self.choice <= self.num_experts:
            raise ValueError(f"the choice must lie in 0 .. {self.num_experts}, got {self.choice}")

    def probabilities(self, questions: Sequence[Question]) -> Tensor:
        """Return probability 1 for the constant choice, (questions, experts + 1)."""
        return self.of_prompts([()] * len(questions))

    def of_prompts(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return probability 1 for the constant choice, (prompts, experts + 1)."""
        chosen = torch.nn.functional.one_hot(torch.tensor(self.choice), self.num_experts + 1).double()
        return chosen.repeat(len(prompts), 1)

    def tokens_read(self, questions: Sequence[Question]) -> int:
        """Return 0, because this router reads no tokens."""
        return 0


@dataclass(frozen=True, slots=True)
class Routing:
    """The evaluation of a router.

    accuracy: share of right choices, with Wilson's interval. commonest: share of the most frequent class, also with
    Wilson's interval, which a constant router reaches. right_probability: mean probability of the right class.
    confusion: questions by right class (rows) and choice (columns), (classes, classes). recalls: accuracy on the
    questions of each class, None for a class without questions. entropy_bits: entropy of the choices.
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
        """The only class that was ever chosen, or None if there were several."""
        chosen = (self.confusion.sum(0) > 0).nonzero().flatten().tolist()
        return int(chosen[0]) if len(chosen) == 1 else None

    def document(self) -> dict[str, Any]:
        """Return the evaluation as JSON."""
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
    """Compare the likeliest class of each row (the first of equals) with the right one (questions,).

    Raises:
        ValueError: for no questions, or a right class without a column.
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
