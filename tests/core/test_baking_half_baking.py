"""Half-baking: strengths in closed form on a bigram whose prompt is a bias, bisection on ternary codes, schedules, the
law of stacking."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import pytest
import torch

from tests.core.test_baking import LEARNING, PROMPT, drawn, make_model
from tests.oracles.prompted_bigram import PROMPT_TOKEN, SIZE, PromptedBigram, baked_table, closed_strength
from training_core.distill.prompt_baking import BakingConfig, bake, measure_baking
from training_core.distill.trajectories import SamplingConfig, Trajectory, sample_continuations
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phases.p6_baking.half_baking import (
    HalfBaking,
    Stacking,
    StackRow,
    between,
    half_bake,
    measure_stacking,
    strength_schedule,
)
from training_core.record import Estimate
from training_core.reporting import SilentReporter

BIAS = [PROMPT_TOKEN]


def bigram(bias_scale: float = 2.0) -> Cognate:
    return cast(Cognate, PromptedBigram(bias_scale))


def baked(model: Cognate, scale: float = 1.0) -> Cognate:
    found = copy.deepcopy(model)
    found.embedding.weight.data = baked_table(cast(PromptedBigram, model), scale)
    return found


def written(model: Cognate, count: int, seed: int) -> list[Trajectory]:
    prefixes = [[1 + number % (SIZE - 2)] for number in range(count)]
    return sample_continuations(
        model, BIAS, prefixes, SamplingConfig(max_tokens=6), torch.Generator().manual_seed(seed)
    )


def contexts(trajectories: list[Trajectory]) -> list[int]:
    return [token for t in trajectories for token in [*t.prefix, *t.continuation][len(t.prefix) - 1 : -1]]


# -- one half-baking -------------------------------------------------------------------------------------------------


def test_every_strength_on_the_way_is_the_closed_form() -> None:
    model = bigram()
    trajectories = written(model, 30, 0)
    found = half_bake(model, model, baked(model), BIAS, trajectories)
    oracle = cast(PromptedBigram, model)
    for scale, strength in found.evaluations:
        assert strength == pytest.approx(closed_strength(oracle, contexts(trajectories), scale), abs=1e-9)
    assert found.evaluations[0] == (1.0, pytest.approx(1.0, abs=1e-12))
    assert torch.allclose(found.model.embedding.weight, baked(model, found.scale).embedding.weight, atol=1e-12)


def test_half_the_weights_is_not_half_the_strength_and_bisection_corrects_it() -> None:
    """The divergence is nearly quadratic: a = 1/2 has a strength near 3/4, and 1/2 needs a near 1 - 1 / sqrt 2."""
    model = bigram()
    trajectories = written(model, 30, 0)
    found = half_bake(model, model, baked(model), BIAS, trajectories)
    tried = dict(found.evaluations)
    assert tried[0.5] > 0.70
    assert abs(found.scale - (1 - math.sqrt(0.5))) < 0.06
    assert found.reached
    assert found.reason == ""
    assert abs(found.strength - 0.5) <= 0.02
    measure = measure_baking(model, found.model, BIAS, trajectories)
    assert (found.strength, found.interval) == (measure.strength, measure.strength_estimate())
    assert found.interval.low < found.strength < found.interval.high


@pytest.mark.parametrize("target", [0.1, 0.35, 0.8, 0.99])
def test_any_target_is_reached_in_few_evaluations(target: float) -> None:
    model = bigram()
    found = half_bake(
        model, model, baked(model), BIAS, written(model, 30, 0), target, tolerance=0.001, max_evaluations=16
    )
    assert found.reached
    assert abs(found.strength - target) <= 0.001
    assert len(found.evaluations) <= 12, "an interval of width 1 halves to below .001 of strength in about ten steps"


def test_a_full_baking_that_is_weaker_than_the_target_is_returned_as_it_is() -> None:
    model = bigram()
    weak = baked(model, 0.2)
    found = half_bake(model, model, weak, BIAS, written(model, 30, 0))
    assert (found.reached, found.scale, len(found.evaluations)) == (False, 1.0, 1)
    assert f"the full baking has strength {found.strength:.3f}, below the target 0.500" in found.reason
    assert torch.equal(found.model.embedding.weight, weak.embedding.weight)


def ternary_pair() -> tuple[Cognate, Cognate, Cognate, list[Trajectory]]:
    before = make_model()
    make_ternary(before, TernarySettings())
    teacher, after = inference_copy(before), copy.deepcopy(before)
    trajectories = drawn(teacher, 40)
    config = BakingConfig(**LEARNING | {"text_weight": 0.0})  # type: ignore[arg-type]
    bake(teacher, after, PROMPT, trajectories[:30], None, config, SilentReporter())
    return teacher, before, after, trajectories


def test_half_baking_of_ternary_latents() -> None:
    """The strength is that of the ternary model which would be stored, and the result goes on training."""
    teacher, before, after, trajectories = ternary_pair()
    found = half_bake(teacher, before, after, PROMPT, trajectories[30:])
    assert found.reached, found.reason
    assert abs(found.strength - 0.5) <= 0.02
    stored = measure_baking(teacher, inference_copy(found.model), PROMPT, trajectories[30:])
    assert found.strength == stored.strength
    latents = (before, found.model, after)
    name = "core.0.mlp.up.weight"
    a, b, c = (m.state_dict()[name] for m in latents)
    assert torch.allclose(b, (1 - found.scale) * a + found.scale * c, atol=1e-7)
    assert all(p.requires_grad for p in found.model.parameters())
    # no scale has a strength this exact: codes flip in jumps
    rough = half_bake(teacher, before, after, PROMPT, trajectories[30:], tolerance=1e-9, max_evaluations=7)
    assert not rough.reached
    assert len(rough.evaluations) == 7
    assert rough.strength == min((s for _, s in rough.evaluations), key=lambda s: abs(s - 0.5))
    assert f"after 7 evaluations the nearest strength is {rough.strength:.3f}" in rough.reason


def test_the_bracket_holds_where_strength_is_not_monotone() -> None:
    """The way from W - b to W + 2 b leads through the optimum at 2/3 and away from it again; 0.9 is met twice."""
    model = bigram()
    trajectories = written(model, 30, 0)
    oracle, where = cast(PromptedBigram, model), contexts(trajectories)

    def closed(scale: float) -> float:
        left = 1 - closed_strength(oracle, where, -1 + 3 * scale)
        return 1 - left / (1 - closed_strength(oracle, where, -1.0))

    assert closed(2 / 3) == pytest.approx(1.0)
    assert closed(1.0) < 0.97
    found = half_bake(model, baked(model, -1.0), baked(model, 2.0), BIAS, trajectories, 0.7)
    assert found.reached
    assert abs(found.strength - 0.7) <= 0.02
    assert len(found.evaluations) > 2
    for scale, strength in found.evaluations:
        assert strength == pytest.approx(closed(scale), abs=1e-9)


def test_between_has_its_ends_and_refuses_other_shapes() -> None:
    before, after = make_model(0), make_model(1)
    for scale, end in ((0.0, before), (1.0, after)):
        found = between(before, after, scale).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in end.state_dict().items())
    assert between(before, after, 0.25).embedding.weight.data_ptr() != before.embedding.weight.data_ptr()
    with pytest.raises(ValueError, match="nothing between them"):
        between(before, make_model(num_layers=4), 0.5)


def test_half_baking_refuses_bad_input() -> None:
    model = bigram()
    trajectories = written(model, 4, 0)
    for changed in ({"target": 0.0}, {"target": 1.1}, {"tolerance": 0.0}, {"max_evaluations": 0}):
        with pytest.raises(ValueError, match=r"half a prompt is 0.5 \+- 0.02"):
            half_bake(model, model, baked(model), BIAS, trajectories, **changed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no trajectories"):
        half_bake(model, model, baked(model), BIAS, [])
    without_effect = bigram(0.0)
    with pytest.raises(ValueError, match="a baking strength is undefined"):
        half_bake(without_effect, without_effect, baked(model), BIAS, trajectories)


# -- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_by_hand() -> None:
    assert strength_schedule("constant", 0.5, 0.9, 3) == (0.5, 0.5, 0.5)
    assert strength_schedule("linear", 0.2, 0.8, 4) == pytest.approx((0.2, 0.4, 0.6, 0.8))
    half = math.sqrt(0.5) / 2
    cosine = strength_schedule("cosine", 1.0, 0.5, 5)
    assert cosine == pytest.approx((1.0, 0.75 + half / 2, 0.75, 0.75 - half / 2, 0.5))
    assert strength_schedule("cosine", 0.3, 0.9, 1) == (0.3,)
    assert strength_schedule("linear", 0.3, 0.9, 1) == (0.3,)
    for first, last, iterations in ((0.0, 0.5, 2), (0.5, 1.2, 2), (0.5, 0.5, 0)):
        with pytest.raises(ValueError, match=r"strengths must lie in \(0, 1\]"):
            strength_schedule("linear", first, last, iterations)
    with pytest.raises(ValueError, match="unknown schedule 'steps'"):
        strength_schedule("steps", 0.5, 0.5, 2)  # type: ignore[arg-type]


# -- stacking --------------------------------------------------------------------------------------------------------


def test_repeated_half_baking_follows_the_law_where_the_optimum_is_known() -> None:
    """Every step halves KL(T || m) within the tolerance, so that 1 - s = prod (1 - s_i) holds exactly for the measured
    s_i, and is .5^N within 4 % each."""
    model = bigram()
    trajectories = written(model, 30, 0)
    current, left = model, 1.0
    for number in range(1, 5):
        half: HalfBaking = half_bake(model, current, baked(model), BIAS, trajectories)
        current, left = half.model, left * (1 - half.strength)
        total = measure_baking(model, current, BIAS, trajectories).strength
        assert total == pytest.approx(1 - left, abs=1e-9)
        assert abs(total - (1 - 0.5**number)) <= 1 - 0.5**number - (1 - 0.52**number) + 0.02


STACK = BakingConfig(
    steps=60, batch_size=32, seq_len=8, adamw_lr=0.1, muon_lr=0.01, grokfast_lambda=0.0, text_weight=0.0,
    checkpoint_interval_s=0.0,
)  # fmt: skip


def stacked(
    model: Cognate,
    teaching: list[Trajectory],
    setting: list[Trajectory],
    config: BakingConfig,
    targets: Sequence[float],
) -> list[HalfBaking]:
    """Half-bakings of the bias one upon the other, each trained anew."""
    halves: list[HalfBaking] = []
    for target in targets:
        start = halves[-1].model if halves else model
        full = copy.deepcopy(start)
        bake(model, full, BIAS, teaching, None, config, SilentReporter())
        halves.append(half_bake(model, start, full, BIAS, setting, target))
    return halves


def test_trained_half_bakings_follow_the_law_on_held_out_trajectories() -> None:
    model = bigram()
    teaching, setting, held_out = (written(model, 150, seed) for seed in range(3))
    targets = strength_schedule("constant", 0.5, 0.5, 3)
    halves = stacked(model, teaching, setting, STACK, targets)
    found = measure_stacking(model, model, BIAS, held_out, halves, targets)
    assert [row.expected for row in found.rows] == [0.5, 0.75, 0.875]
    for row, half in zip(found.rows, halves, strict=True):
        assert half.reached
        assert row.reason == ""
        assert row.measured == measure_baking(model, half.model, BIAS, held_out).strength_estimate()
        assert abs(row.measured.value - row.expected) <= 0.04
        assert row.measured.low <= row.expected + 0.02
        assert row.measured.high >= row.expected - 0.02
    assert found.follows(0.04)
    assert found.reason(0.04) == ""
    assert model.embedding.weight.equal(bigram().embedding.weight), "the teacher stays"


def test_a_stack_counts_from_where_it_began_and_from_its_own_targets() -> None:
    """The middle of a stack, measured from there: what came before is not counted."""
    model = bigram()
    trajectories = written(model, 40, 0)
    first, second = stacked(model, trajectories, trajectories, STACK, (0.3, 0.2))
    whole = measure_stacking(model, model, BIAS, trajectories, [first, second], [0.3, 0.2])
    assert [row.expected for row in whole.rows] == pytest.approx([0.3, 1 - 0.7 * 0.8])
    later = measure_stacking(model, first.model, BIAS, trajectories, [second], [0.2])
    assert later.rows[0].expected == pytest.approx(0.2)
    assert later.rows[0].measured.value == pytest.approx(second.strength, abs=1e-9)
    with pytest.raises(ValueError, match="longer|shorter"):
        measure_stacking(model, model, BIAS, trajectories, [first, second], [0.3])


def test_a_stack_that_bakes_too_little_says_so() -> None:
    model = bigram()
    trajectories = written(model, 40, 0)
    little = STACK.model_copy(update={"steps": 2, "adamw_lr": 0.02})
    halves = stacked(model, trajectories, trajectories, little, (0.5, 0.9))
    found = measure_stacking(model, model, BIAS, trajectories, halves, (0.5, 0.9))
    assert [row.expected for row in found.rows] == [0.5, pytest.approx(0.95)]
    assert not found.follows(0.05)
    assert "after 1 half-bakings the strength is 0." in found.reason(0.05)
    assert "bake longer or at higher learning rates" in found.reason(0.05)


def test_a_stack_that_does_not_carry_over_says_so() -> None:
    stacking = Stacking((StackRow(0.5, Estimate(0.38, 0.33, 0.42), ""),))
    assert stacking.follows(0.13)
    assert not stacking.follows(0.11)
    assert "0.380 [0.330, 0.420] where 1 - (1 - s)^N expects 0.500: every step has its strength" in stacking.reason(
        0.11
    )
