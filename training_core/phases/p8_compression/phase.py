"""Phase 8: distil the expert model, as decoded from its packed file, into a student in its compressed form."""

from __future__ import annotations

from training_core.formats.loading import load_model
from training_core.phase import Phase
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.equal_bytes import compare_with_packed_ngrams
from training_core.phases.p8_compression.gates import GATES
from training_core.phases.p8_compression.result import CompressedResult
from training_core.phases.p8_compression.student import carry_experts, train_compressed
from training_core.store.bundle import Product
from training_core.tasks.questions.context import QUESTIONED, QuestionContext


def make_compressed(context: QuestionContext, config: CompressionConfig) -> Product:
    """Distil the teacher into a student, train experts on the student, and write both into one file."""
    teacher = context.parents["expert_model"]
    without, student, result = train_compressed(
        load_model(teacher), config, context.training, context.reporter, context.checkpoint
    )
    experts = teacher.model_config["experts"]
    payload, taught = carry_experts(without, student, experts["names"], experts["families"], config, context)
    metrics = {
        **result.metrics(),
        **taught.metrics(),
        **compare_with_packed_ngrams(payload, context),
        "file_expert_bytes": float(len(payload) - len(without)),
    }
    document = {"cognate": student.config.model_dump()}
    return Product("compressed", document, None, context.training.tokenizer_json, payload=payload, metrics=metrics)


PHASES = (
    Phase(
        "compressed_model",
        8,
        "The file that ships: a restructured ternary student, entropy-coded together with its tokenizer.",
        CompressionConfig,
        make_compressed,
        ("expert_model",),
        QUESTIONED,
        gates=GATES["compressed_model"],
        result=CompressedResult,
        kind="compressed",
        context=QuestionContext,
    ),
)
