"""Controls of the compressed file that need training: what each part of the chain is worth to it.

Three students have the file's shape, data and training time, without its experts. Each differs in one thing: the first
is trained on the text alone if the file learned from its teacher's outputs too, and else on these; the second starts
from random weights and the text alone; the third skips the phases between the merged model and the teacher. The fourth
control is the merged model rounded to ternary weights without any training. Each is stored and measured as a model of
the chain is; the file is among its parents, so that the suite compares the two on the same documents.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from training_core.config import Config
from training_core.distill.distillation import DistillationConfig
from training_core.formats.loading import load_model
from training_core.formats.ternary_packing import ternary_product
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phase import CONTROLS, Phase, PhaseContext
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.student import train_compressed
from training_core.store.bundle import Product
from training_core.training.result import TrainingMetrics

FILE = "compressed_model"
TAUGHT = DistillationConfig(weight=0.3)  # of a student whose file was not distilled
STEP_RATIO = 1.7  # CPU-seconds of a step with the teacher's outputs over those of one without, at `nano`
Target = Literal["as the file", "text alone", "the other"]  # what a student learns from


class StudentControlConfig(Config):
    """Training of a student; everything else is as the file was made."""

    steps_ratio: float = Field(1.0, gt=0, le=1000, description="Training time, relative to that of the file")


class RoundingConfig(Config):
    """Ternary weights without training."""

    quantization: TernarySettings = Field(TernarySettings(), description="Quantisation of the merged model")


def make_student(
    context: PhaseContext, config: StudentControlConfig, *, teacher: str, target: Target, from_teacher: bool
) -> Product:
    """Train a student as the file's was, but from another `teacher`, on another `target`, or not `from_teacher`'s
    weights.

    Its configuration is the one that the file was made with. It is trained for as long: without the teacher's outputs a
    step takes less time, so that there are more of them, and the other way round.
    """
    file = CompressionConfig.model_validate(context.parents[FILE].lineage().config)
    taught, untaught = file.distillation, file.distillation.model_copy(update={"weight": 0.0})
    other = untaught if taught.weight else TAUGHT
    distillation = {"as the file": taught, "text alone": untaught, "the other": other}[target]
    ratio = config.steps_ratio
    if bool(distillation.weight) != bool(taught.weight):
        ratio *= STEP_RATIO if taught.weight else 1 / STEP_RATIO
    training = file.training.model_copy(update={"steps": max(1, round(ratio * file.training.steps))})
    as_file = file.model_copy(update={"training": training, "distillation": distillation})
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


def _student(name: str, description: str, teacher: str, target: Target, *, from_teacher: bool) -> Phase:
    return Phase(
        name,
        8,
        description,
        StudentControlConfig,
        partial(make_student, teacher=teacher, target=target, from_teacher=from_teacher),
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
            "student_taught_otherwise",
            "Control: the file's student, on the text alone if its teacher's outputs taught it too, else on these.",
            "expert_model",
            "the other",
            from_teacher=True,
        ),
        _student(
            "student_from_random",
            "Control: the file's student from random weights, trained on the text alone; the chain gives it nothing.",
            "expert_model",
            "text alone",
            from_teacher=False,
        ),
        _student(
            "student_from_merged",
            "Control: the file's student with the merged model as its teacher; phases 3 to 7 give it nothing.",
            "merged_model",
            "as the file",
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
