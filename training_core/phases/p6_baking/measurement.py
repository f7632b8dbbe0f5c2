"""Final evaluation of the stored model, on data that no choice was based on.

effects     strength of every kept prompt, on fresh trajectories of its prompted teacher
repairs     resolve rate on test micro-repositories: parent, prompted, stored, and a random patcher (chance)
families    drop of expected accuracy on test questions, by family
personas    answers of the teacher with the prompt and of the stored model without it; style; drift over turns
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.distill.prompt_baking import measure_baking
from training_core.distill.trajectories import SamplingConfig
from training_core.evaluation.intervals import difference_of_rates, paired_difference, wilson
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.phases.p6_baking.context import Baked, CycleContext
from training_core.phases.p6_baking.half_baking import measure_stacking
from training_core.phases.p6_baking.persistence import measure_persistence
from training_core.phases.p6_baking.personas import PersonaCycle
from training_core.phases.p6_baking.result import LEAST_STRENGTH
from training_core.phases.p6_baking.style import style, style_difference, style_direction
from training_core.phases.p6_baking.tools import ToolCycle
from training_core.tasks.questions.attempts import question_text
from training_core.tasks.questions.likelihood import family_drops, measure_likelihoods
from training_core.tasks.repair.attempts import RepairAttempt
from training_core.tasks.repair.chance import chance_level
from training_core.text.sampling import continue_rows
from training_core.training.loop import step_generator

SHOWN_ATTEMPTS = 8
SHOWN_TEXTS = 4
STACKING_TOLERANCE = 0.05  # largest deviation from 1 - (1 - s)^N at which stacking counts as following it
TURNS_SHOWN = (1, 2, 5, 10, 20, 30)

Measured = dict[str, Any]  # {"metrics": {...}, "shown": ...}


def measure_effects(model: Cognate, kept: Sequence[Baked]) -> Measured:
    """Measure the strength of each cycle's last prompt in the stored model, the weakest (0 if none was kept), and the
    number of those that are too weak."""
    shown: list[Measured] = []
    metrics: dict[str, float] = {}
    stored = inference_copy(model)
    strengths = []
    for number, baked in enumerate(last_of_each(kept)):
        measure = measure_baking(baked.teacher, stored, baked.prompt_ids, baked.trajectories.measuring)
        strength = measure.strength_estimate()
        strengths.append(strength)
        metrics |= strength.metrics(f"effect_{number}_{baked.cycle}")
        metrics |= {f"kl_before_{number}": measure.kl_before, f"kl_after_{number}": measure.kl_after}
        shown.append(
            {
                "name": f"{baked.cycle} {number + 1}",
                "cycle": baked.cycle,
                "text": baked.text,
                "kl_before": measure.kl_before,
                "kl_after": measure.kl_after,
                "strength": strength.document(),
                "target": 1 - math.prod(1 - one.target for one in _towards(baked, kept)),
                "scale": baked.half.scale,
                "why": baked.half.reason,
            }
        )
    weakest = min(strengths, key=lambda strength: strength.low, default=None)
    metrics["prompts_kept"] = float(len(strengths))
    metrics["faint_prompts"] = float(sum(strength.low < LEAST_STRENGTH for strength in strengths))
    metrics |= (
        {"weakest_effect": 0.0, "weakest_effect_low": 0.0} if weakest is None else weakest.metrics("weakest_effect")
    )
    return {"metrics": metrics, "shown": shown}


def measure_families(material: CycleContext, model: Cognate) -> Measured:
    """Measure the drop of expected accuracy by family on test questions, and the largest upper bound of its CI."""
    questions = material.questions(material.context.report.questions)
    before = measure_likelihoods(material.parent, material.context.tokenizer, questions)
    after = measure_likelihoods(model, material.context.tokenizer, questions)
    metrics = before.expected().metrics("expected_accuracy_before") | after.expected().metrics("expected_accuracy")
    drops = family_drops(questions, before, after)
    for family, drop in drops.items():
        metrics |= drop.metrics(f"family_{family}_drop")
    metrics["worst_family_drop_high"] = max(drop.high for drop in drops.values())
    return {"metrics": metrics}


def measure_repairs(cycle: ToolCycle, model: Cognate, baked: Baked | None) -> Measured:
    """Measure the resolve rate on test micro-repositories of the parent, the prompted teacher and the stored model.

    Without a kept tool prompt, the parent takes the place of the teacher.
    """
    material = cycle.material
    instances = cycle.test
    base = cycle.repair(material.parent, instances)
    stored = cycle.repair(model, instances)
    prompted = cycle.repair(material.parent if baked is None else baked.teacher, instances, prompted=True)
    chance = chance_level(instances, material.context.sandbox)
    solved = {
        name: [a.resolved for a in made] for name, made in (("base", base), ("prompted", prompted), ("baked", stored))
    }
    estimates = {name: wilson(sum(right), len(right)) for name, right in solved.items()}
    metrics = {"repairs_chance": chance}
    for name, estimate in estimates.items():
        metrics |= estimate.metrics(f"repairs_{name}")
    rights = {name: torch.tensor(right).double() for name, right in solved.items()}
    metrics |= paired_difference(rights["prompted"], rights["baked"]).metrics("repairs_prompted_over_baked")
    metrics |= paired_difference(rights["baked"], rights["base"]).metrics("repairs_gain")
    metrics["repairs_tool_calls"] = float(sum(len(a.calls) for a in stored))
    kinds = sorted({instance.kind for instance in instances})
    by_kind = []
    for kind in kinds:
        places = [i for i, instance in enumerate(instances) if instance.kind == kind]
        row = {name: wilson(sum(solved[name][i] for i in places), len(places)).document() for name in ("base", "baked")}
        by_kind.append({"kind": kind, **row})
    shown = {name: estimate.document() for name, estimate in estimates.items()}
    return {
        "metrics": metrics,
        "shown": {
            **shown,
            "chance": chance,
            "by_kind": by_kind,
            "attempts": [_shown(a) for a in stored[:SHOWN_ATTEMPTS]],
        },
    }


def measure_persona(cycle: PersonaCycle, model: Cognate, baked: Baked | None) -> Measured:
    """Compare the persona as a prompt with the persona baked in: answers to test questions, style, drift over turns."""
    if baked is None:
        return {"metrics": {}, "style": [], "turns": []}
    material, config = cycle.material, cycle.material.config
    prompted = measure_likelihoods(baked.teacher, material.context.tokenizer, cycle.test, baked.text)
    stored = measure_likelihoods(model, material.context.tokenizer, cycle.test)
    metrics = prompted.expected().metrics("answers_prompted") | stored.expected().metrics("answers_baked")
    ones = torch.ones(len(cycle.test), dtype=torch.float64)
    metrics |= difference_of_rates(prompted.expected_Q(), stored.expected_Q(), ones).metrics(
        "answers_prompted_over_baked"
    )
    generator = step_generator(config.training.seed, -9_000_000)
    given = cycle.text(config.measurement.style_texts, "test", config.persona.given_tokens, generator)
    texts = {
        "base": _written(material, material.parent, given),
        "prompted": _written(material, baked.teacher, given, baked.prompt_ids),
        "half_baked": _written(material, model, given),
        "baked": _written(material, baked.full, given),
    }
    styles = {name: style(written) for name, written in texts.items()}
    prompted_style = style_difference(texts["base"], texts["prompted"], config.training.seed)
    metrics |= prompted_style.distance.metrics("style_distance_prompted") | {
        "style_distance_chance": prompted_style.chance
    }
    direction = style_direction(texts["base"], texts["prompted"], texts["half_baked"], config.training.seed)
    metrics |= {} if direction is None else direction.metrics("style_direction")
    statistics = [{"statistic": name, **{of: styles[of][name] for of in styles}} for name in styles["base"]]
    conversations = cycle.conversations(config.measurement.conversations, config.measurement.turns, generator)
    turns = [turn for turn in TURNS_SHOWN if turn < config.measurement.turns] + [config.measurement.turns]
    sampling = SamplingConfig(max_tokens=config.measurement.reply_tokens)
    drift = measure_persistence(baked.teacher, model, baked.prompt_ids, conversations, turns, sampling, generator)
    metrics |= drift.metrics()
    curve = [
        {"turn": turn, "prompted": p.document(), "baked": b.document()}
        for turn, p, b in zip(turns, drift.prompted, drift.baked, strict=True)
    ]
    return {"metrics": metrics, "style": statistics, "turns": curve}


def stacking_of(kept: Sequence[Baked]) -> Measured:
    """Compare the longest kept chain of half-bakes towards one teacher with the law 1 - (1 - s)^N."""
    baked = max(kept, key=lambda one: len(_towards(one, kept)), default=None)
    if baked is None:
        return {"metrics": {}, "shown": [], "note": "no prompt was kept, so that no stacking was measured"}
    halves = _towards(baked, kept)
    stacking = measure_stacking(
        baked.teacher,
        baked.origin,
        baked.prompt_ids,
        baked.trajectories.measuring,
        [one.half for one in halves],
        [one.target for one in halves],
    )
    metrics = {"stacking_follows": float(stacking.follows(STACKING_TOLERANCE))}
    shown = []
    for times, row in enumerate(stacking.rows, 1):
        metrics |= row.measured.metrics(f"stacked_{times}") | {f"stacked_{times}_expected": row.expected}
        shown.append({"times": times, "expected": row.expected, "measured": row.measured.document()})
    return {"metrics": metrics, "shown": shown, "note": stacking.reason(STACKING_TOLERANCE)}


def _towards(baked: Baked, kept: Sequence[Baked]) -> list[Baked]:
    """Return the half-bakes towards the same teacher up to and including this one, in order."""
    chain = [one for one in kept if one.teacher is baked.teacher]
    return chain[: next(place for place, one in enumerate(chain, 1) if one is baked)]


def side_by_side(tools: ToolCycle, persona: PersonaCycle, kept: Sequence[Baked]) -> list[Measured]:
    """Return the same beginnings continued by the parent, the prompted teacher, the half-baked and the fully baked."""
    material = persona.material
    shown: list[Measured] = []
    generator = step_generator(material.config.training.seed, -9_500_000)
    for baked in last_of_each(kept):
        if baked.cycle == tools.name:
            instances = tools.test[:SHOWN_TEXTS]
            columns = {
                "base": tools.repair(material.parent, instances),
                "prompted": tools.repair(baked.teacher, instances, prompted=True),
                "half_baked": tools.repair(baked.half.model, instances),
                "baked": tools.repair(baked.full, instances),
            }
            given = [material.context.tokenizer.decode(list(a.prompt_ids)) for a in columns["base"]]
            texts = {name: [a.text for a in made] for name, made in columns.items()}
        else:
            prefixes = persona.text(SHOWN_TEXTS - 1, "test", material.config.persona.given_tokens, generator)
            asked = next(q for q in material.context.report.questions if q.level in material.levels_in_reach)
            prefixes.append(material.context.tokenizer.encode(question_text(asked)).ids)
            given = [material.context.tokenizer.decode(prefix) for prefix in prefixes]
            texts = {
                "base": _written(material, material.parent, prefixes),
                "prompted": _written(material, baked.teacher, prefixes, baked.prompt_ids),
                "half_baked": _written(material, baked.half.model, prefixes),
                "baked": _written(material, baked.full, prefixes),
            }
        shown += [
            {"prompt": baked.text, "given": start, **{name: column[i] for name, column in texts.items()}}
            for i, start in enumerate(given)
        ]
    return shown


def last_of_each(kept: Sequence[Baked]) -> list[Baked]:
    """Return the last kept bake of each cycle, in the order in which the cycles first appear."""
    return list({baked.cycle: baked for baked in kept}.values())


def _written(
    material: CycleContext, model: Cognate, given: Sequence[Sequence[int]], prompt_ids: Sequence[int] = ()
) -> list[str]:
    """Sample a model's continuation of each beginning; all models use the same seed."""
    generator = step_generator(material.config.training.seed, -9_600_000)
    rows = [(*prompt_ids, *row) for row in given]
    drawn = continue_rows(
        inference_copy(model), rows, material.config.measurement.style_tokens, generator, temperature=0.8
    )
    return [material.context.tokenizer.decode([i for i in row.ids if i != END_OF_TEXT_ID]) for row in drawn]


def _shown(attempt: RepairAttempt) -> Measured:
    calls = [
        {"tool": call.tool, "input": call.input, "output": call.output, "status": call.status} for call in attempt.calls
    ]
    return {
        "issue": attempt.instance.issue,
        "source": attempt.instance.source,
        "text": attempt.text,
        "calls": calls,
        "status": attempt.grade.status,
        "resolved": attempt.resolved,
    }
