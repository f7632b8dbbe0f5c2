"""The registry of the graph's models, one `Phase` each, in the order in which they are made, and of their controls."""

from __future__ import annotations

from training_core.phase import Phase
from training_core.phases.p1_cognate import phase as p1
from training_core.phases.p2_evomerge import phase as p2
from training_core.phases.p3_quiet_star import phase as p3
from training_core.phases.p4_bitnet import phase as p4
from training_core.phases.p5_curriculum import phase as p5
from training_core.phases.p6_baking import phase as p6
from training_core.phases.p7_experts import phase as p7
from training_core.phases.p8_compression import controls
from training_core.phases.p8_compression import phase as p8

PHASES: dict[str, Phase] = {made.name: made for phase in (p1, p2, p3, p4, p5, p6, p7, p8) for made in phase.PHASES}
CONTROLS: dict[str, Phase] = controls.PHASES
