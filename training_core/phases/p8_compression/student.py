"""The student of phase 8: a restructured model, distilled from its teacher in its compressed form.

The student is a Cognate model without prelude and memory: a few core blocks that are run `num_loops` times, a
factorised embedding, and ternary weights everywhere. Weight sharing across depth and the low rank are part of the
training graph from the first step; the ternary codes harden gradually. After training, norms and convolutions are
rounded to 8 bits and everything else is coded losslessly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.data.batches import TrainingData
from training_core.distill.distillation import distil
from training_core.formats.artifact import make_compressible, read_artifact, write_artifact
from training_core.nn.cognate import Carry, Cognate, CognateConfig, effective_weight
from training_core.nn.ternary import hardness, set_hardness
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.student_experts import FileExpertsReport, measure_student, teach_student
from training_core.reporting import Reporter
from training_core.tasks.questions.context import QuestionContext
from training_core.training.loop import StepResult, TrainingResult, train


def carry_experts(
    payload: bytes,
    student: Cognate,
    names: Sequence[str],
    families: Sequence[Sequence[str]],
    config: CompressionConfig,
    context: QuestionContext,
) -> tuple[bytes, FileExpertsReport]:
    """Train an expert for each of the teacher's, add those that help to the file, and measure their gain.

    Returns the file's bytes and the report.
    """
    decoded = read_artifact(payload).model
    taught = teach_student(decoded, names, families, context, config.experts, config.training.seed)
    if taught.kept is not None:
        tokenizer_json = context.training.tokenizer_json
        payload = write_artifact(
            student, tokenizer_json, config.student.threshold, config.student.granularity, taught.kept
        )
    context.fix(payload)
    return payload, measure_student(taught, context, config.experts)


def student_config(config: CompressionConfig, teacher: CognateConfig) -> CognateConfig:
    """Return the student's shape: the teacher's vocabulary and sequence length, everything else from `config`."""
    return CognateConfig(
        vocab_size=teacher.vocab_size,
        max_seq_len=teacher.max_seq_len,
        d_model=config.student.d_model,
        num_heads=config.student.num_heads,
        d_ff=config.student.d_ff,
        num_layers=config.student.num_blocks,
        num_core_layers=config.student.num_blocks,
        window=config.student.window,
        conv_kernel=config.student.conv_kernel,
        num_persistent=0,
        memory_layers=[],
        embedding_rank=config.student.embedding_rank,
        cycles=config.student.num_loops,
        grad_cycles=config.student.num_loops,
    )


def train_compressed(
    teacher: Cognate,
    config: CompressionConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None = None,
    *,
    from_teacher: bool = True,
) -> tuple[bytes, Cognate, TrainingResult]:
    """Train the student; return its file as bytes, the student that was written, and the training result.

    It starts from the teacher's weights as far as they fit, or with `from_teacher` False from random ones.
    """
    torch.manual_seed(config.training.seed)
    student = Cognate(student_config(config, teacher.config))
    if from_teacher:
        initialise_from(student, teacher)
    make_compressible(student, config.student.threshold, config.student.granularity)
    for parameter in (student.latent, *student.halt_head.parameters()):
        parameter.requires_grad_(False)  # not stored in the file

    def batches(generator: torch.Generator) -> Tensor:
        return data.batch(config.mix, config.training.batch_size, config.training.seq_len + 1, generator)

    result = train(
        student,
        distil(cross_entropy_objective, teacher, config.distillation.weight, config.distillation.temperature),
        batches,
        config.training,
        reporter,
        checkpoint=checkpoint,
        label="compressed",
        identity=config.model_dump_json(exclude={"training": {"checkpoint_interval_s"}}),
        before_step=lambda step: set_hardness(
            student, hardness(step, config.training.steps, config.student.hardening_fraction)
        ),
    )
    set_hardness(student, 1.0)
    payload = write_artifact(student, data.tokenizer_json, config.student.threshold, config.student.granularity)
    return payload, student, result


@torch.no_grad()
def initialise_from(student: Cognate, teacher: Cognate) -> None:
    """Initialise the student from the teacher as far as their shapes allow.

    The factorised embedding is the best rank-r approximation of the teacher's (Eckart & Young, 1936): E = U S V^T
    truncated to U sqrt(S) and V sqrt(S), with a random rotation if the widths differ. Weights of matching shape are
    copied block by block, from the teacher's last blocks to the student's last ones.
    """
    table = effective_weight(teacher.embedding).float()
    width, own = student.config.d_model, table.shape[1]
    rotation = torch.eye(own) if width == own else torch.linalg.qr(torch.randn(max(width, own), min(width, own)))[0]
    if rotation.shape != (width, own):
        rotation = rotation.T
    if student.embedding_out is not None:
        u, s, vh = torch.linalg.svd(table, full_matrices=False)
        rank = min(student.config.embedding_rank, s.shape[0])
        student.embedding.weight[:, :rank] = u[:, :rank] * s[:rank].sqrt()
        student.embedding_out.weight[:, :rank] = rotation @ (vh[:rank].T * s[:rank].sqrt())
    else:
        student.embedding.weight.copy_(table @ rotation.T)
    for target, source in zip(reversed(student.core), reversed(teacher.core), strict=False):
        source_modules = dict(source.named_modules())
        for name, module in target.named_modules():
            weight = getattr(module, "weight", None)
            if name not in source_modules or weight is None:
                continue
            if weight.shape == effective_weight(source_modules[name]).shape:
                weight.copy_(effective_weight(source_modules[name]))


def cross_entropy_objective(
    model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator
) -> StepResult:
    """Return the next-token cross-entropy of one supervision step, without halting: the file has no halting head."""
    assert isinstance(model, Cognate)
    h = model.encode(batch[:, :-1])
    logits = model.logits(model.supervise(h, model.start(h)).y).float()
    targets = batch[:, 1:]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    accuracy = (logits.detach().argmax(-1) == targets).float().mean()
    return StepResult(loss, logits, None, {"cross_entropy": loss.detach(), "accuracy": accuracy})
