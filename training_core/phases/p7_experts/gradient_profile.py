"""A model's own profile on questions: how right it is, at what loss, and which way an expert would move it on each.

    loss_q = -log p(completion_q | question_q) / tokens_q                  nats per completion token
    g_q    = d loss_q / d m                                                at m = 1, of every scaled matrix

g_q is what the first step of an expert that learns question q alone goes against. The gradients of all questions of a
batch come out of one backward pass: every row has multipliers of its own, and rows do not see each other. Multipliers
of constant value change nothing (`singular`), so that g_q sums to 0 over each matrix.

The gradient goes through every recursion that inference makes, not through the last `grad_cycles` alone.

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
    """How a model stands on some questions: expected accuracy, exact accuracy, and nats per completion token."""

    questions: int
    expected: Estimate
    exact: Estimate
    nats_per_token: float

    @classmethod
    def of(cls, told: Likelihoods, there_Q: Tensor) -> FamilyBaseline:
        """On the questions where `there_Q` (questions,) is True."""
        part = Likelihoods(told.log_prob_Q[there_Q], told.tokens_Q[there_Q], told.exact_Q[there_Q])
        nats = float(-part.log_prob_Q.sum() / part.tokens_Q.sum())
        return cls(int(there_Q.sum()), part.expected(), part.exact(), nats)


@dataclass(frozen=True, slots=True)
class GradientProfile:
    """Of each question: its family, the likelihood of its completion, and by matrix the gradient g_q (questions, r)."""

    families: tuple[str, ...]
    told: Likelihoods
    gradients: Mapping[str, Tensor]

    def directions(self) -> Tensor:
        """The gradients of all matrices side by side, of each question at length 1, (questions, multipliers) float64.

        At length 1 a hard question counts as much as an easy one. A gradient of 0, of a question that the model knows
        for certain, stays 0: it points nowhere.
        """
        g_QP = torch.cat([g_QR.double() for g_QR in self.gradients.values()], 1)
        length_Q1: Tensor = torch.linalg.vector_norm(g_QP, dim=1, keepdim=True)
        return g_QP / length_Q1.clamp(min=torch.finfo(torch.float64).tiny)


def measure_profile(svf: SVFModel, asked: AskedQuestions) -> GradientProfile:
    """The profile of the model without experts.

    Raises:
        ValueError: when a gradient is not finite.
    """
    with svf.using(None) as model:
        device = next(model.parameters()).device
        told = asked.likelihoods(lambda _, inputs_BS: model(inputs_BS.to(device)).logits)
    families = tuple(question.family for question in asked.questions)
    return GradientProfile(families, told, measure_gradients(svf, asked))


def measure_gradients(svf: SVFModel, asked: AskedQuestions) -> dict[str, Tensor]:
    """g_q of each question by matrix, (questions, r) float32, in the order of the questions.

    Raises:
        ValueError: when one is not finite.
    """
    found = {name: torch.zeros(len(asked.questions), len(its.s_R)) for name, its in svf.singular.items()}
    for places, rows in asked.batches:
        for name, g_BR in _row_gradients(svf, rows).items():
            found[name][places] = g_BR.cpu()
    for name, g_QR in found.items():
        if not bool(torch.isfinite(g_QR).all()):
            raise ValueError(
                f"the gradient of a question's loss must be finite, that of {name} is not: check the model"
            )
    return found


def _row_gradients(svf: SVFModel, rows: Rows) -> dict[str, Tensor]:
    ones = {
        name: torch.ones(len(rows.inputs_BS), len(its.s_R), device=its.s_R.device, requires_grad=True)
        for name, its in svf.singular.items()
    }
    with torch.enable_grad(), svf.using(ones) as model:
        device = next(model.parameters()).device
        mask_BS = rows.mask_BS.to(device)
        logits_BSV = model(rows.inputs_BS.to(device)).logits
        loss_N = F.cross_entropy(logits_BSV[mask_BS].float(), rows.targets_BS.to(device)[mask_BS], reduction="none")
        tokens_BS = mask_BS.sum(1, keepdim=True).expand_as(mask_BS)
        total = (loss_N / tokens_BS[mask_BS]).sum()  # of the rows' means: each row's gradient is its question's own
        gradients = torch.autograd.grad(total, list(ones.values()))
    return dict(zip(ones, gradients, strict=True))
