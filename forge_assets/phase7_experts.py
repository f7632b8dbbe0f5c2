"""Phase 7, experts: found by the model itself, routed in two passes, composed by a measured search."""

from forge_assets.factory import PhaseRun, phase_asset
from forge_assets.sandboxed import SANDBOXED_CODE, SANDBOXED_DATA, in_sandbox
from training_core.experts.config import ExpertsConfig
from training_core.experts.on_disk import measure_expert_bundle
from training_core.experts.phase import make_experts
from training_core.phases import Product


@phase_asset(
    phase=7,
    parents=("baked_model",),
    data=SANDBOXED_DATA,
    code=["training_core.experts", "training_core.evaluation", *SANDBOXED_CODE],
    description="The baked model, and beside it experts on its singular values that it found, routed and composed.",
    measure=measure_expert_bundle,
)
def expert_model(run: PhaseRun, config: ExpertsConfig) -> Product:
    """Profile the model; train an expert for each group of families; route; search compositions; measure."""
    return in_sandbox(make_experts, run, run.parents["baked_model"], config)
