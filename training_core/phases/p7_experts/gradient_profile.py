"""A model's gradient profile: its accuracy and loss on questions, and the direction an expert would take on each.

    loss_q = -log p(completion_q | question_q) / tokens_q                  nats per completion token
    g_q    = d loss_q / d m                                                at m = 1, of every scaled matrix

-g_q is the direction of the first step of an expert that learns question q alone. A single backward pass gives the
gradients of all questions of a batch, because every row has its own multipliers and rows are independent. Constant
multipliers change nothing (`nn.svf`), so g_q sums to 0 over each matrix.

The gradient flows through all recursions of inference, not only through the last `grad_cycles`.

Shape legend: Q questions, R singular values of a matrix, B rows of a batch, S positions, V vocabulary, P all
multipliers of all matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training_core.nn.svf import SVFModel
from training_core.record import Estimate
from training_core.tasks.questions.likelihood import AskedQuestions, Likelihoods
from training_core.tasks.questions.sft_objective import Rows


@dataclass(frozen=True, slots=True)
class FamilyBaseline:
    """A model's baseline on some questions: expected accuracy, exact accuracy, and nats per completion token."""

    questions: int
    expected: Estimate
    exact: Estimate
    nats_per_token: float

    @classmethod
    def of(cls, told: Likelihoods, there_Q: Tensor) -> FamilyBaseline:
        """Return the baseline on the questions where `there_Q` (questions,) is True."""
        part = Likelihoods(told.log_prob_Q[there_Q], told.tokens_Q[there_Q], told.exact_Q[there_Q])
        nats = float(-part.log_prob_Q.sum() / part.tokens_Q.sum())
        return cls(int(there_Q.sum()), part.expected(), part.exact(), nats)


@dataclass(frozen=True, slots=True)
class GradientProfile:
    """The family and the completion's likelihood of each question, and the gradients g_q (questions, r) by matrix."""

    families: tuple[str, ...]
    told: Likelihoods
    gradients: Mapping[str, Tensor]

    def directions(self) -> Tensor:
        """Return the concatenated gradients of all matrices, normalised per question, (questions, multipliers) float64.

        Normalisation gives hard and easy questions equal weight. A gradient of 0 (of a question that the model answers
        with certainty) stays 0.
        """
        g_QP = torch.cat([g_QR.double() for g_QR in self.gradients.values()], 1)
        length_Q1: Tensor = torch.linalg.vector_norm(g_QP, dim=1, keepdim=True)
        return g_QP / length_Q1.clamp(min=torch.finfo(torch.float64).tiny)


def measure_profile(svf: SVFModel, asked: AskedQuestions) -> GradientProfile:
    """Measure the profile of the model without experts.

    Raises:
        ValueError: when a gradient is not finite.
    """
    with svf.using(None) as model:
        device = next(model.parameters()).device
        likelihoods = asked.likelihoods(lambda _, inputs_BS: model(inputs_BS.to(device)).logits)
    families = tuple(question.family for question in asked.questions)
    return GradientProfile(families, likelihoods, measure_gradients(svf, asked))


def measure_gradients(svf: SVFModel, asked: AskedQuestions) -> dict[str, Tensor]:
    """Return g_q of each question by matrix, (questions, r) float32, in the order of the questions.

    Raises:
        ValueError: when a gradient is not finite.
    """
    gradients = {name: torch.zeros(len(asked.questions), len(svd.s_R)) for name, svd in svf.singular.items()}
    for places, rows in asked.batches:
        for name, g_BR in _row_gradients(svf, rows).items():
            gradients[name][places] = g_BR.cpu()
    for name, g_QR in gradients.items():
        if not bool(torch.isfinite(g_QR).all()):
            raise ValueError(
                f"the gradient of a question's loss must be finite, that of {name} is not: check the model"
            )
    return gradients


def _row_gradients(svf: SVFModel, rows: Rows) -> dict[str, Tensor]:
    ones = {
        name: torch.ones(len(rows.inputs_BS), len(svd.s_R), device=svd.s_R.device, requires_grad=True)
        for name, svd in svf.singular.items()
    }
    with torch.enable_grad(), svf.using(ones) as model:
        device = next(model.parameters()).device
        mask_BS = rows.mask_BS.to(device)
        logits_BSV = model(rows.inputs_BS.to(device)).logits
        loss_N = F.cross_entropy(logits_BSV[mask_BS].float(), rows.targets_BS.to(device)[mask_BS], reduction="none")
        tokens_BS = mask_BS.sum(1, keepdim=True).expand_as(mask_BS)
        # A sum of row means, not a mean over rows: each row's gradient is exactly that of its own question.
        total = (loss_N / tokens_BS[mask_BS]).sum()
        gradients = torch.autograd.grad(total, list(ones.values()))
    return dict(zip(ones, gradients, strict=True))
