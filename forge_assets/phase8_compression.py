"""Phase 8, final compression: one small file that holds a whole language model."""

from forge_assets.factory import PhaseRun, phase_asset
from training_core.compression.training import CompressionConfig, train_compressed
from training_core.data.batches import TrainingData
from training_core.loading import load_model
from training_core.phases import Product

TEACHER = "expert_model"


@phase_asset(
    phase=8,
    parents=(TEACHER,),
    code=[
        "training_core.compression",
        "training_core.quantization",
        "training_core.models",
        "training_core.optim",
        "training_core.training",
        "training_core.data.batches",
    ],
    description="The file that ships: a restructured ternary student, entropy coded with its tokenizer.",
)
def compressed_model(run: PhaseRun, config: CompressionConfig) -> Product:
    """Distil the teacher, as it decodes from its packed file, into a student in its compressed form."""
    data = TrainingData.open(run.data["tokens"], run.data["task_bank"])
    teacher = load_model(run.parents[TEACHER])
    payload, student, result = train_compressed(teacher, config, data, run.reporter, run.checkpoint)
    config_document = {"cognate": student.config.model_dump()}
    return Product("compressed", config_document, None, data.tokenizer_json, payload=payload, metrics=result.metrics())
