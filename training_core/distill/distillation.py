"""Knowledge distillation (Hinton et al., 2015, section 2): learn the teacher's distribution beside the data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training_core.nn.cognate import Carry, Cognate
from training_core.training.loop import Objective, StepResult


class DistillationConfig(BaseModel):
    """How much is learned from a teacher's distribution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(0.5, ge=0, le=1, description="Weight of the teacher's distribution beside the data")
    temperature: float = Field(1.0, gt=0, description="Distillation temperature")


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over positions; logits (batch, seq, vocab)."""
    log_student = (student / temperature).log_softmax(-1).flatten(0, -2)
    log_teacher = (teacher / temperature).log_softmax(-1).flatten(0, -2)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def distil(objective: Objective, teacher: Cognate, weight: float, temperature: float) -> Objective:
    """(1 - weight) * objective + weight * distillation from `teacher`, whose logits are computed without a graph.

    The teacher answers once for each batch, however many supervision steps follow. With weight 0 it is not run.
    """
    if weight == 0:
        return objective
    answered: list[Tensor] = []

    def combined(model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        result = objective(model, batch, carry, generator)
        if carry is None:
            teacher.to(batch.device).eval()
            with torch.no_grad():
                answered[:] = [teacher(batch[:, :-1]).logits.float()]
        divergence = distillation_loss(result.logits, answered[0], temperature)
        loss = (1 - weight) * result.loss + weight * divergence
        return StepResult(loss, result.logits, result.carry, result.metrics | {"distillation": divergence.detach()})

    return combined
