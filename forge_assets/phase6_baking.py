"""Phase 6, baking: tools and personas into the weights, half at a time."""

from forge_assets.factory import PhaseRun, phase_asset
from forge_assets.sandboxed import SANDBOXED_CODE, SANDBOXED_DATA, in_sandbox
from training_core.cycles.config import CyclesConfig
from training_core.cycles.phase import make_baked
from training_core.phases import Product


@phase_asset(
    phase=6,
    parents=("curriculum_model",),
    data=SANDBOXED_DATA,
    code=["training_core.cycles", "training_core.repair", *SANDBOXED_CODE],
    description="The curriculum model with a tool prompt and prompts of its own baked in, in A/B cycles.",
)
def baked_model(run: PhaseRun, config: CyclesConfig) -> Product:
    """Alternate tools and personas until both have plateaued; half-bake each; measure. Needs a sandbox."""
    return in_sandbox(make_baked, run, run.parents["curriculum_model"], config)
