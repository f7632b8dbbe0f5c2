"""All gates and claims of the graph, collected from the phases, in the order in which the models are made."""

from __future__ import annotations

from training_core.gates import Gate
from training_core.phases.p1_cognate import gates as p1
from training_core.phases.p2_evomerge import gates as p2
from training_core.phases.p3_quiet_star import gates as p3
from training_core.phases.p4_bitnet import gates as p4
from training_core.phases.p5_curriculum import gates as p5
from training_core.phases.p6_baking import gates as p6
from training_core.phases.p7_experts import gates as p7
from training_core.phases.p8_compression import gates as p8

BY_MODEL: dict[str, tuple[Gate, ...]] = {
    model: gates for phase in (p1, p2, p3, p4, p5, p6, p7, p8) for model, gates in phase.GATES.items()
}
GATES: tuple[Gate, ...] = tuple(gate for gates in BY_MODEL.values() for gate in gates)
MODELS = tuple(BY_MODEL)
