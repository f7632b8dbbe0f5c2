"""Controls of the compressed file that need training: what each part of the chain is worth to it.

Three students have the file's shape, data and training steps, without its experts. Each leaves something out: the
teacher's outputs, the teacher's weights too, or the phases between the merged model and the teacher. The fourth control
is the merged model rounded to ternary weights without any training. Each is stored and measured as a model of
the chain is; the file is among its parents, so that the suite compares the two on the same documents.
"""

from __future__ import annotations

from functools import partial

from pydantic import Field

from training_core.config import Config
from training_core.formats.loading import load_model
from training_core.formats.ternary_packing import ternary_product
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phase import CONTROLS, Phase, PhaseContext
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.student import train_compressed
from training_core.store.bundle import Product
from training_core.training.result import TrainingMetrics

FILE = "compressed_model"


class StudentControlConfig(Config):
    """Training of a student; everything else is as the file was made."""

    steps_ratio: float = Field(1.0, gt=0, le=1000, description="Training steps, relative to those of the file")


class RoundingConfig(Config):
    """Ternary weights without training."""

    quantization: TernarySettings = Field(TernarySettings(), description="Quantisation of the merged model")


def make_student(
    context: PhaseContext, config: StudentControlConfig, *, teacher: str, distilled: bool, from_teacher: bool
) -> Product:
    """Train a student as the file's was, but from another `teacher`, not `distilled`, or not `from_teacher`'s weights.

    Its configuration is the one that the file was made with.
    """
    file = CompressionConfig.model_validate(context.parents[FILE].lineage().config)
    training = file.training.model_copy(update={"steps": max(1, round(config.steps_ratio * file.training.steps))})
    weight = file.distillation.weight if distilled else 0.0
    as_file = file.model_copy(
        update={"training": training, "distillation": file.distillation.model_copy(update={"weight": weight})}
    )
    payload, student, result = train_compressed(
        load_model(context.parents[teacher]),
        as_file,
        context.training,
        context.reporter,
        context.checkpoint,
        from_teacher=from_teacher,
    )
    document = {"cognate": student.config.model_dump()}
    tokenizer = context.training.tokenizer_json
    return Product("compressed", document, None, tokenizer, payload=payload, metrics=result.metrics())


def make_rounded(context: PhaseContext, config: RoundingConfig) -> Product:
    """Round the merged model to ternary weights, without training."""
    model = load_model(context.parents["merged_model"])
    make_ternary(model, config.quantization)
    return ternary_product(model, config.quantization, context.training.tokenizer_json)


def _student(name: str, description: str, teacher: str, *, distilled: bool, from_teacher: bool) -> Phase:
    return Phase(
        name,
        8,
        description,
        StudentControlConfig,
        partial(make_student, teacher=teacher, distilled=distilled, from_teacher=from_teacher),
        (teacher, FILE),
        result=TrainingMetrics,
        kind="compressed",
        module=__name__,
        group=CONTROLS,
    )


PHASES = {
    made.name: made
    for made in (
        _student(
            "student_without_teacher",
            "Control: the file's student with the teacher's weights to start from, and trained on the text alone.",
            "expert_model",
            distilled=False,
            from_teacher=True,
        ),
        _student(
            "student_from_random",
            "Control: the file's student from random weights, trained on the text alone; the chain gives it nothing.",
            "expert_model",
            distilled=False,
            from_teacher=False,
        ),
        _student(
            "student_from_merged",
            "Control: the file's student with the merged model as its teacher; phases 3 to 7 give it nothing.",
            "merged_model",
            distilled=True,
            from_teacher=True,
        ),
        Phase(
            "merged_as_ternary",
            8,
            "Control: the merged model rounded to ternary weights without training.",
            RoundingConfig,
            make_rounded,
            ("merged_model", FILE),
            kind="ternary",
            module=__name__,
            group=CONTROLS,
        ),
    )
}
