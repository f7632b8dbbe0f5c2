"""Phase 5, curriculum: practice at the edge of what the model can do, then character, council and self-knowledge."""

from forge_assets.factory import PhaseRun, phase_asset
from forge_assets.sandboxed import SANDBOXED_CODE, SANDBOXED_DATA, in_sandbox
from training_core.character.config import CharacterConfig
from training_core.character.phase import make_character
from training_core.curriculum.dreams import CurriculumConfig
from training_core.curriculum.phase import make_practised
from training_core.phases import Product

CODE = ["training_core.curriculum", *SANDBOXED_CODE]


@phase_asset(
    phase=5,
    parents=("ternary_model",),
    data=SANDBOXED_DATA,
    code=CODE,
    description="The ternary model after practice at the edge of what it can do, and dreams against forgetting.",
)
def practised_model(run: PhaseRun, config: CurriculumConfig) -> Product:
    """Assess; attempt, verify, hint and vary; learn from what was right; consolidate by dreams. Needs a sandbox."""
    return in_sandbox(make_practised, run, run.parents["ternary_model"], config)


@phase_asset(
    phase=5,
    parents=("practised_model",),
    data=SANDBOXED_DATA,
    code=[*CODE, "training_core.character"],
    description="The practised model with four rules baked in; its council, its loop and what it knows of itself.",
)
def curriculum_model(run: PhaseRun, config: CharacterConfig) -> Product:
    """Bake the rules, convene the council, run the loop, predict the own temperature. Needs a sandbox."""
    return in_sandbox(make_character, run, run.parents["practised_model"], config)
