"""The models of the graph, one `Phase` each: the eight phases as functions from parents and data to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from training_core.character.config import CharacterConfig
from training_core.character.phase import make_character
from training_core.cognate.training import TrunkConfig, Variant, VariantConfig, specialise, train_trunk
from training_core.compression.training import CompressionConfig, carry_experts, train_compressed
from training_core.curriculum.dreams import CurriculumConfig
from training_core.curriculum.phase import make_practised
from training_core.cycles.config import CyclesConfig
from training_core.cycles.phase import make_baked
from training_core.data.batches import TrainingData
from training_core.data.tasks import read_tasks
from training_core.evaluation.held_out import open_suite
from training_core.experts.config import ExpertsConfig
from training_core.experts.on_disk import measure_expert_bundle
from training_core.experts.phase import make_experts
from training_core.loading import load_latents, load_model, ternary_settings
from training_core.merging.cognates import merge_cognates
from training_core.merging.evolution import EvolutionConfig
from training_core.models.cognate import Cognate
from training_core.phases import DATA, Measure, Phase, PhaseRun, Product, measure_bundle
from training_core.quantization.training import TernaryConfig, settings_of, ternary_product, train_ternary
from training_core.questions.bank import open_bank
from training_core.questions.tools import ToolBox
from training_core.reasoning.phase import make_reasoner
from training_core.reasoning.training import ReasoningConfig
from training_core.sandbox import SandboxUnavailableError
from training_core.training.loop import TrainingResult

QUESTIONED = (*DATA, "question_bank")
SPECIALISTS = ("cognate_reasoning", "cognate_memory", "cognate_speed")
_TRAINING = ("training_core.models", "training_core.optim", "training_core.training", "training_core.data.batches")
_SANDBOXED = (
    "training_core.questions",
    "training_core.baking",
    "training_core.quantization",
    "training_core.sampling",
    "training_core.generation",
    "training_core.cognate",
    "training_core.sandbox",
    *_TRAINING,
)


def _open(run: PhaseRun) -> TrainingData:
    return TrainingData.open(run.data["tokens"], run.data["task_bank"])


def _trunk(run: PhaseRun, config: TrunkConfig) -> Product:
    data = _open(run)
    model, result = train_trunk(config, data, run.reporter, run.checkpoint)
    return _cognate(model, result, data)


def _specialist(variant: Variant, run: PhaseRun, config: VariantConfig) -> Product:
    data = _open(run)
    parent = load_latents(run.parents["trunk"])
    model, result = specialise(parent, variant, config, data, run.reporter, run.checkpoint)
    return _cognate(model, result, data)


def _cognate(model: Cognate, result: TrainingResult, data: TrainingData) -> Product:
    config = {"cognate": model.config.model_dump()}
    return Product("cognate", config, model.state_dict(), data.tokenizer_json, metrics=result.metrics())


def _merged(run: PhaseRun, config: EvolutionConfig) -> Product:
    """Fitness is measured on the suite's validation documents, never on its test documents."""
    suite = open_suite(run.data["evaluation_suite"])
    model, metrics = merge_cognates(
        load_latents(run.parents["trunk"]),
        {name: load_latents(run.parents[name]) for name in SPECIALISTS},
        config,
        suite.validation,
        suite.config.batch_size,
        run.reporter,
        run.checkpoint,
    )
    shape = {"cognate": model.config.model_dump()}
    return Product("cognate", shape, model.state_dict(), run.parents["trunk"].tokenizer_json(), metrics=metrics)


def _reasoning(run: PhaseRun, config: ReasoningConfig) -> Product:
    """Bake chains of thought, train thoughts by REINFORCE beside two controls, and measure all of them."""
    return make_reasoner(
        load_latents(run.parents["merged_model"]),
        config,
        _open(run),
        list(read_tasks(run.data["task_bank"], "train")),
        open_suite(run.data["evaluation_suite"]),
        run.reporter,
        run.checkpoint,
    )


def _ternary(run: PhaseRun, config: TernaryConfig) -> Product:
    """Train the reasoning model in ternary form, taught by itself in full precision."""
    data = _open(run)
    parent = load_latents(run.parents["reasoning_model"])
    model, result = train_ternary(parent, config, data, run.reporter, run.checkpoint)
    return ternary_product(model, settings_of(config), data.tokenizer_json, metrics=result.metrics())


def _in_sandbox(make: Callable[..., Product], parent: str, run: PhaseRun, config: Any) -> Product:
    """Make a product with tools in a sandbox, and say whether that sandbox held here and now.

    Raises:
        SandboxUnavailableError: when there is no sandbox: model-written programs never run on the host.
    """
    if run.sandbox is None:
        raise SandboxUnavailableError(
            "this phase runs programs that the model wrote, and no sandbox was given: name one, for instance "
            "--sandbox forge_resources.sandbox:probed_sandbox where agent-forge is installed"
        )
    with run.sandbox() as (sandbox, conformance):
        bundle = run.parents[parent]
        product = make(
            load_latents(bundle),
            ternary_settings(bundle),
            config,
            _open(run),
            open_bank(run.data["question_bank"]),
            ToolBox(sandbox),
            open_suite(run.data["evaluation_suite"]),
            run.reporter,
            run.checkpoint,
        )
    return replace(product, metrics={**product.metrics, **conformance})


def _compressed(run: PhaseRun, config: CompressionConfig) -> Product:
    """Distil the teacher, as it decodes from its packed file, into a student in its compressed form; teach experts."""
    data, teacher = _open(run), run.parents["expert_model"]
    payload, student, result = train_compressed(load_model(teacher), config, data, run.reporter, run.checkpoint)
    experts = teacher.model_config["experts"]
    bank = open_bank(run.data["question_bank"])
    without = len(payload)
    payload, taught = carry_experts(
        payload, student, experts["names"], experts["families"], config, data, bank, run.reporter, run.checkpoint
    )
    metrics = {**result.metrics(), **taught.metrics(), "file_expert_bytes": float(len(payload) - without)}
    config_document = {"cognate": student.config.model_dump()}
    return Product("compressed", config_document, None, data.tokenizer_json, payload=payload, metrics=metrics)


def _branch(variant: Variant, description: str) -> Phase:
    compute = partial(_specialist, variant)
    return Phase(f"cognate_{variant}", 1, description, VariantConfig, compute, _COGNATE, ("trunk",), parallel=True)


def _with_tools(
    name: str,
    number: int,
    description: str,
    config: type[Any],
    make: Callable[..., Product],
    code: tuple[str, ...],
    parent: str,
    measure: Measure = measure_bundle,
) -> Phase:
    compute = partial(_in_sandbox, make, parent)
    return Phase(
        name, number, description, config, compute, (*code, *_SANDBOXED), (parent,), QUESTIONED, measure=measure
    )


_COGNATE = ("training_core.cognate", *_TRAINING)
_GRAPH = (
    Phase(
        "trunk",
        1,
        "The language model that the three specialists share: Titans-MAG blocks, TRM recursion, ACT halting.",
        TrunkConfig,
        _trunk,
        _COGNATE,
        parallel=True,
    ),
    _branch("reasoning", "Specialist with deeper recursion, trained on more arithmetic and logic."),
    _branch("memory", "Specialist with a faster memory, trained on longer sequences and needle tasks."),
    _branch("speed", "Specialist without recursion, trained on text alone: the quickest answer."),
    Phase(
        "merged_model",
        2,
        "The best merge that an evolution of linear, SLERP, TIES and DARE merges found on validation data.",
        EvolutionConfig,
        _merged,
        ("training_core.merging", "training_core.models"),
        (*SPECIALISTS, "trunk"),
        parallel=True,
    ),
    Phase(
        "reasoning_model",
        3,
        "The merged model, taught to think before hard tokens; with what its thoughts are worth.",
        ReasoningConfig,
        _reasoning,
        (
            "training_core.reasoning",
            "training_core.baking",
            "training_core.sampling",
            "training_core.generation",
            *_TRAINING,
        ),
        ("merged_model",),
    ),
    Phase(
        "ternary_model",
        4,
        "The reasoning model with weights in {-1, 0, +1}, five to a byte, and latents for further training.",
        TernaryConfig,
        _ternary,
        ("training_core.quantization", "training_core.cognate", *_TRAINING),
        ("reasoning_model",),
    ),
    _with_tools(
        "practised_model",
        5,
        "The ternary model after practice at the edge of what it can do, and dreams against forgetting.",
        CurriculumConfig,
        make_practised,
        ("training_core.curriculum",),
        "ternary_model",
    ),
    _with_tools(
        "curriculum_model",
        5,
        "The practised model with four rules baked in; its council, its loop and what it knows of itself.",
        CharacterConfig,
        make_character,
        ("training_core.curriculum", "training_core.character"),
        "practised_model",
    ),
    _with_tools(
        "baked_model",
        6,
        "The curriculum model with a tool prompt and prompts of its own baked in, in A/B cycles.",
        CyclesConfig,
        make_baked,
        ("training_core.cycles", "training_core.repair"),
        "curriculum_model",
    ),
    _with_tools(
        "expert_model",
        7,
        "The baked model, and beside it experts on its singular values that it found, routed and composed.",
        ExpertsConfig,
        make_experts,
        ("training_core.experts", "training_core.evaluation"),
        "baked_model",
        measure=measure_expert_bundle,
    ),
    Phase(
        "compressed_model",
        8,
        "The file that ships: a restructured ternary student, entropy coded with its tokenizer.",
        CompressionConfig,
        _compressed,
        (
            "training_core.compression",
            "training_core.experts",
            "training_core.questions",
            "training_core.quantization",
            *_TRAINING,
        ),
        ("expert_model",),
        QUESTIONED,
    ),
)
PHASES = {phase.name: phase for phase in _GRAPH}
