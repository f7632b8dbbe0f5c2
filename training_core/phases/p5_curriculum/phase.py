"""Phase 5: a ternary model practises at the edge of its ability, then four rules are baked into it."""

from __future__ import annotations

from training_core.formats.loading import load_latents, ternary_settings
from training_core.phase import Phase
from training_core.phases.p5_curriculum.config import CharacterConfig, CurriculumConfig
from training_core.phases.p5_curriculum.curriculum_model import make_character
from training_core.phases.p5_curriculum.gates import GATES
from training_core.phases.p5_curriculum.practised_model import make_practised
from training_core.phases.p5_curriculum.result import CharacterResult, PractisedResult
from training_core.store.bundle import Product
from training_core.tasks.questions.context import QUESTIONED, QuestionContext


def _practised(context: QuestionContext, config: CurriculumConfig) -> Product:
    parent = context.parents["ternary_model"]
    return make_practised(load_latents(parent), ternary_settings(parent), context, config)


def _curriculum(context: QuestionContext, config: CharacterConfig) -> Product:
    parent = context.parents["practised_model"]
    return make_character(load_latents(parent), ternary_settings(parent), context, config)


PHASES = (
    Phase(
        "practised_model",
        5,
        "The ternary model after practice at the edge of its ability, with dreams to prevent forgetting.",
        CurriculumConfig,
        _practised,
        ("ternary_model",),
        QUESTIONED,
        gates=GATES["practised_model"],
        result=PractisedResult,
        kind="ternary",
        sandboxed=True,
        context=QuestionContext,
    ),
    Phase(
        "curriculum_model",
        5,
        "The practised model with four rules baked in, and its council, OODA loop and self-model.",
        CharacterConfig,
        _curriculum,
        ("practised_model",),
        QUESTIONED,
        gates=GATES["curriculum_model"],
        result=CharacterResult,
        kind="ternary",
        sandboxed=True,
        context=QuestionContext,
    ),
)
