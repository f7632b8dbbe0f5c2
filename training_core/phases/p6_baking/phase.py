"""Phase 6: half-bake tool prompts and personas into the curriculum model in alternation, and evaluate the result.

`alternation` switches between the A-cycle (`tools`) and the B-cycle (`personas`). An iteration is rolled back if it
does harm on validation data (bits per byte, or accuracy in a task family), or if it makes its own score significantly
worse. If none is kept, the parent is stored unchanged, and the gate on the effect of prompts fails.

**Does not cover**: a persona in any sense beyond what is measured: accuracy, style statistics, and a distribution that
stays the same over turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training_core.exhibit import MeasuredValue
from training_core.formats.loading import load_latents, ternary_settings
from training_core.formats.ternary_packing import round_to_half_, ternary_product
from training_core.nn.cognate import Cognate
from training_core.nn.ternary_cognate import TernarySettings
from training_core.phase import Phase
from training_core.phases.p6_baking.alternation import Alternation, Decision
from training_core.phases.p6_baking.config import CyclesConfig
from training_core.phases.p6_baking.context import Baked, CycleContext, NothingToBakeError, harmful, standard_error
from training_core.phases.p6_baking.exhibit import BakedExhibit, ColumnNames, CycleBaselines, CycleName, ShownIteration
from training_core.phases.p6_baking.gates import GATES
from training_core.phases.p6_baking.half_baking import strength_schedule
from training_core.phases.p6_baking.measurement import (
    last_of_each,
    measure_effects,
    measure_families,
    measure_persona,
    measure_repairs,
    side_by_side,
    stacking_of,
)
from training_core.phases.p6_baking.personas import PersonaCycle
from training_core.phases.p6_baking.plateau import Score
from training_core.phases.p6_baking.result import BakedResult
from training_core.phases.p6_baking.tools import ToolCycle
from training_core.record import Estimate
from training_core.store.bundle import Product
from training_core.tasks.questions.context import QUESTIONED, QuestionContext
from training_core.training.device import best_device


def make_baked(parent: Cognate, settings: TernarySettings, context: QuestionContext, config: CyclesConfig) -> Product:
    """Bake tools and personas into `parent`, which has latent ternary weights, and evaluate the result.

    An interrupted run resumes in the unfinished iteration: attempts, samples and scores come from the cache, and
    training continues from its last resume point.

    Raises:
        ValueError: when the tool prompt, a micro-repository and its repair do not fit max_seq_len together, or a level
            has no held-out questions.
    """
    parent.to(best_device()).eval()
    round_to_half_(parent)
    shared = CycleContext(parent, context, config)
    cycles = _Cycles(shared)
    model = cycles.run()
    context.fix(model)
    kept = last_of_each(cycles.kept)
    last = {baked.cycle: baked for baked in kept}
    cache = shared.cache
    effects = cache.cached("effects", lambda: measure_effects(model, cycles.kept))
    repairs = cache.cached("repairs", lambda: measure_repairs(cycles.tools, model, last.get("tools")))
    persona = cache.cached("persona", lambda: measure_persona(cycles.persona, model, last.get("persona")))
    stacking = cache.cached("stacking", lambda: stacking_of(cycles.kept))
    families = cache.cached("families", lambda: measure_families(shared, model))
    texts = cache.cached("generations", lambda: {"texts": side_by_side(cycles.tools, cycles.persona, kept)})
    metrics = cycles.metrics()
    for part in (effects, repairs, persona, stacking, families):
        metrics |= part["metrics"]
    metrics |= _over_baked(metrics, last)
    shown = BakedExhibit(  # the parts come back from the checkpoint as JSON; here each becomes its type
        timeline=cycles.timeline,
        baselines=CycleBaselines(**{name: MeasuredValue.of(score) for name, score in cycles.baselines.items()}),
        prompts=effects["shown"],
        stacking=stacking["shown"],
        stacking_note=stacking["note"],
        tools=repairs["shown"],
        proposals=cycles.persona.proposals,
        style=persona["style"],
        turns=persona["turns"],
        generations=texts["texts"],
        columns=_columns(kept),
        not_kept="" if kept else cycles.refusal(),
    )
    tokenizer_json = context.training.tokenizer_json
    return ternary_product(model.cpu(), settings, tokenizer_json, metrics=metrics, exhibits={"baked": shown.as_json()})


class _Cycles:
    """The iterations of both cycles, in the order decided by the alternation."""

    def __init__(self, shared: CycleContext) -> None:
        self.shared = shared
        self.tools = ToolCycle(shared)
        self.persona = PersonaCycle(shared, self.tools)
        self.kept: list[Baked] = []
        self.timeline: list[ShownIteration] = []
        self.baselines: dict[str, Estimate] = {}
        # The best score of each cycle's turn. Comparing with it makes many small drops add up.
        self._standing: dict[str, Estimate] = {}

    def run(self) -> Cognate:
        """Run all iterations; return the model after the last one that was kept."""
        config = self.shared.config
        model = self.shared.parent
        alternation = Alternation(config.alternation)
        schedule = strength_schedule(
            config.strength.schedule, config.strength.first, config.strength.last, config.alternation.max_iterations
        )
        tried = dict.fromkeys((self.tools.name, self.persona.name), 0)
        while not alternation.stopped:
            cycle = self.tools if alternation.cycle == "tools" else self.persona
            if not alternation.begun:
                self._standing[cycle.name] = self._baseline(cycle, model)
                alternation.begin(cycle.name, _score(self._standing[cycle.name]))
            target = schedule[tried[cycle.name]]
            tried[cycle.name] += 1
            try:
                baked = cycle.iterate(len(self.timeline), model, target)
            except NothingToBakeError as error:
                self._record(cycle.name, None, None, str(error), alternation.fail(str(error)), target)
                continue
            score, why = self._judge(cycle, baked)
            decision = alternation.observe(_score(score), kept=not why)
            if not why:
                model = baked.half.model
                self.kept.append(baked)
                self._standing[cycle.name] = max(score, self._standing[cycle.name], key=lambda s: s.value)
            self._record(cycle.name, baked, score, why, decision, target)
        return model

    def metrics(self) -> dict[str, float]:
        """Return counts of iterations, kept iterations and switches as flat metrics."""
        switches = sum(step.decision == "switch" for step in self.timeline)
        return {
            "iterations": float(len(self.timeline)),
            "iterations_kept": float(len(self.kept)),
            "switches": float(switches),
            "handed_on": float(not self.kept),
        }

    def refusal(self) -> str:
        """Return the reasons why no iteration was kept, for the report."""
        reasons = "; ".join(f"iteration {step.number + 1}: {step.why}" for step in self.timeline)
        return f"No prompt was kept, and the model is its parent, unchanged. {reasons}"

    def _baseline(self, cycle: ToolCycle | PersonaCycle, model: Cognate) -> Estimate:
        """Return the score of the current model at the start of a cycle's turn."""
        name = f"baseline {len(self.timeline)} {cycle.name}"
        score = Estimate(**self.shared.cache.cached(name, lambda: cycle.score(model).document()))
        self.baselines.setdefault(cycle.name, score)
        return score

    def _judge(self, cycle: ToolCycle | PersonaCycle, baked: Baked) -> tuple[Estimate, str]:
        """Return the score of a half-baked model, and why it is rolled back (empty if it is kept)."""
        model = baked.half.model
        round_to_half_(model)

        def judge() -> Mapping[str, Any]:
            return {"score": cycle.score(model).document(), "harm": self.shared.harm(model)}

        judged = self.shared.cache.cached(f"judged {len(self.timeline)}", judge)
        score = Estimate(**judged["score"])
        return score, harmful(judged["harm"]) or _worse(score, self._standing[cycle.name])

    def _record(
        self, cycle: CycleName, baked: Baked | None, score: Estimate | None, why: str, decision: Decision, target: float
    ) -> None:
        number = len(self.timeline)
        shown = score if score is not None else self._standing[cycle]
        self.timeline.append(
            ShownIteration(
                number=number,
                cycle=cycle,
                prompt="" if baked is None else baked.text,
                score=MeasuredValue.of(shown),
                kept=not why,
                why=why,
                decision=decision.action,
                decision_why=decision.why,
                strength=None if baked is None else baked.half.strength,
                target=target,
            )
        )
        self.shared.context.reporter.metrics(
            number, {f"cycles/{cycle}_score": shown.value, "cycles/kept": float(not why)}
        )


def _score(estimate: Estimate) -> Score:
    return Score(estimate.value, standard_error(estimate))


def _worse(after: Estimate, before: Estimate) -> str:
    """Return the reason if the score is significantly worse (the CIs do not overlap), else an empty string."""
    if after.high < before.low:
        return f"the score fell from {before.value:.3f} to {after.value:.3f}, beyond their intervals"
    return ""


def _over_baked(metrics: Mapping[str, float], kept: Mapping[str, Baked]) -> dict[str, float]:
    """Return the accuracy gap, prompted minus baked, of the worse of the cycles that kept a prompt.

    Without any kept prompt there is nothing to compare, and the metric is omitted.
    """
    of_cycle = {"tools": "repairs_prompted_over_baked_high", "persona": "answers_prompted_over_baked_high"}
    gaps = [metrics[of_cycle[name]] for name in kept]
    return {"prompted_over_baked_high": max(gaps)} if gaps else {}


def _columns(kept: list[Baked]) -> ColumnNames:
    halves = ", ".join(f"{baked.cycle} {baked.half.strength:.2f}" for baked in kept) or "none"
    return ColumnNames(half_baked=f"half-baked (strength: {halves})", baked="fully baked")


def _baked(context: QuestionContext, config: CyclesConfig) -> Product:
    parent = context.parents["curriculum_model"]
    return make_baked(load_latents(parent), ternary_settings(parent), context, config)


PHASES = (
    Phase(
        "baked_model",
        6,
        "The curriculum model with a tool prompt and self-proposed persona prompts baked in, in A/B cycles.",
        CyclesConfig,
        _baked,
        ("curriculum_model",),
        QUESTIONED,
        gates=GATES["baked_model"],
        result=BakedResult,
        kind="ternary",
        sandboxed=True,
        context=QuestionContext,
    ),
)
