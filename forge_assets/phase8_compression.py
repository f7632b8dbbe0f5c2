"""Phase 8, final compression: one small file that holds a whole language model and its experts."""

from forge_assets.factory import PhaseRun, phase_asset
from training_core.compression.training import CompressionConfig, carry_experts, train_compressed
from training_core.data.batches import TrainingData
from training_core.loading import load_model
from training_core.phases import Product
from training_core.questions.bank import open_bank

TEACHER = "expert_model"


@phase_asset(
    phase=8,
    parents=(TEACHER,),
    data=("tokens", "task_bank", "question_bank", "evaluation_suite"),
    code=[
        "training_core.compression",
        "training_core.experts",
        "training_core.questions",
        "training_core.quantization",
        "training_core.models",
        "training_core.optim",
        "training_core.training",
        "training_core.data.batches",
    ],
    description="The file that ships: a restructured ternary student, entropy coded with its tokenizer.",
)
def compressed_model(run: PhaseRun, config: CompressionConfig) -> Product:
    """Distil the teacher, as it decodes from its packed file, into a student in its compressed form; teach experts."""
    data = TrainingData.open(run.data["tokens"], run.data["task_bank"])
    teacher = load_model(run.parents[TEACHER])
    payload, student, result = train_compressed(teacher, config, data, run.reporter, run.checkpoint)
    teachers = run.parents[TEACHER].model_config["experts"]
    bank = open_bank(run.data["question_bank"])
    without = len(payload)
    payload, taught = carry_experts(
        payload, student, teachers["names"], teachers["families"], config, data, bank, run.reporter, run.checkpoint
    )
    metrics = {**result.metrics(), **taught.metrics(), "file_expert_bytes": float(len(payload) - without)}
    config_document = {"cognate": student.config.model_dump()}
    return Product("compressed", config_document, None, data.tokenizer_json, payload=payload, metrics=metrics)
