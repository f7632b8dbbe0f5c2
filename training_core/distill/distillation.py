"""Knowledge distillation (Hinton et al., 2015, section 2): train on the teacher's distribution and on the data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training_core.nn.cognate import Carry, Cognate
from training_core.training.loop import Objective, StepResult


class DistillationConfig(BaseModel):
    """Weight and temperature of the distillation loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(0.5, ge=0, le=1, description="Weight of the distillation loss; the data gets the rest")
    temperature: float = Field(1.0, gt=0, description="Distillation temperature")


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over positions; logits (batch, seq, vocab)."""
    log_student = (student / temperature).log_softmax(-1).flatten(0, -2)
    log_teacher = (teacher / temperature).log_softmax(-1).flatten(0, -2)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def distil(objective: Objective, teacher: Cognate, weight: float, temperature: float) -> Objective:
    """Return the objective (1 - weight) * objective + weight * distillation from `teacher`.

    The teacher runs once per batch, without gradients, however many supervision steps follow. With weight 0 it is not
    run at all.
    """
    if weight == 0:
        return objective
    teacher_logits: list[Tensor] = []  # those of the current batch

    def combined(model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        result = objective(model, batch, carry, generator)
        if carry is None:
            teacher.to(batch.device).eval()
            with torch.no_grad():
                teacher_logits[:] = [teacher(batch[:, :-1]).logits.float()]
        divergence = distillation_loss(result.logits, teacher_logits[0], temperature)
        loss = (1 - weight) * result.loss + weight * divergence
        return StepResult(loss, result.logits, result.carry, result.metrics | {"distillation": divergence.detach()})

    return combined
