"""Every transition of the controller, and whole runs on synthetic curves."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from pydantic import ValidationError

from tests.nested import nested
from training_core.phases.p6_baking.alternation import Alternation, AlternationConfig, Cycle, Decision
from training_core.phases.p6_baking.plateau import PlateauConfig, Score, judge

FINE = 1e-4  # a standard error that hides nothing here
CONFIG = nested(
    AlternationConfig,
    max_iterations=30,
    max_turn=10,
    plateau_window=3,
    plateau_patience=2,
    plateau_threshold=0.01,
    plateau_adaptive=False,
)


def score(value: float, error: float = FINE) -> Score:
    return Score(value, error)


def begun(config: AlternationConfig = CONFIG, baseline: float = 0.5) -> Alternation:
    alternation = Alternation(config)
    alternation.begin(config.first, score(baseline))
    return alternation


def observe(alternation: Alternation, *values: float, kept: bool = True) -> Decision:
    """Observes the values one after the other; all but the last must let the turn continue."""
    for value in values[:-1]:
        assert alternation.observe(score(value), kept).action == "continue"
    return alternation.observe(score(values[-1]), kept)


# --- one transition each


def test_a_turn_continues_while_scores_rise() -> None:
    alternation = begun()
    decision = observe(alternation, 0.55, 0.6, 0.65, 0.7)
    assert (decision.action, decision.cycle) == ("continue", "tools")
    assert (alternation.iteration, alternation.begun, alternation.stopped) == (4, True, False)


def test_a_plateau_switches_to_the_other_cycle() -> None:
    decision = observe(alternation := begun(), 0.6, 0.7, 0.699, 0.698)
    assert (decision.action, decision.cycle) == ("switch", "persona")
    assert decision.why.endswith("below 0.01, and 2 iterations since a significant new best")
    assert (alternation.cycle, alternation.begun, alternation.stopped) == ("persona", False, False)


def test_iterations_that_are_rolled_back_end_the_turn_after_patience() -> None:
    alternation = begun()
    assert observe(alternation, 0.6).action == "continue"
    assert alternation.observe(score(0.9), kept=False) == Decision("continue", "tools", "2 of the 3 scores it takes")
    decision = alternation.observe(score(0.95), kept=False)
    assert decision == Decision("switch", "persona", "none of the last 2 iterations was kept")


def test_an_iteration_that_is_kept_ends_a_row_of_those_that_were_not() -> None:
    alternation = begun()
    for value, kept in ((0.6, False), (0.6, True), (0.6, False), (0.7, True), (0.7, False)):
        assert alternation.observe(score(value), kept).action == "continue"
    assert (alternation.iteration, alternation.begun) == (5, True)


def test_the_slope_is_per_iteration_also_over_those_that_were_rolled_back() -> None:
    alternation = begun()
    for value, kept in ((0.6, True), (0.6, False), (0.7, True)):
        decision = alternation.observe(score(value), kept)
    assert decision.why == judge([score(0.5), score(0.6), score(0.7)], CONFIG.plateau, [0, 1, 3]).why
    assert decision.why.startswith("+0.0643 an iteration")  # .9 / 14, not .1


def test_both_plateaued_without_an_improvement_since_the_switch_stops() -> None:
    alternation = begun()
    observe(alternation, 0.6, 0.7, 0.7, 0.7)
    alternation.begin("persona", score(0.3))
    decision = observe(alternation, 0.3, 0.3)
    assert (decision.action, decision.cycle) == ("stop", "persona")
    assert decision.why.endswith("tools had plateaued, and nothing has improved since")
    assert (alternation.stopped, alternation.begun, alternation.iteration) == (True, False, 6)


def test_an_improvement_before_the_plateau_gives_the_other_cycle_another_turn() -> None:
    alternation = begun()
    observe(alternation, 0.5, 0.5)
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.4, 0.4, 0.4).action == "switch"
    alternation.begin("tools", score(0.5))
    assert observe(alternation, 0.5, 0.5).action == "stop"


@pytest.mark.parametrize(("last", "action"), [(0.53, "stop"), (0.54, "switch")])
def test_an_improvement_must_be_significant(last: float, action: str) -> None:
    """At 99 % and with errors of .01 each, .0364 above the baseline."""
    alternation = begun()
    observe(alternation, 0.5, 0.5)
    alternation.begin("persona", score(0.5, 0.01))
    alternation.observe(score(last, 0.01), kept=True)
    alternation.observe(score(0.9, 0.01), kept=False)
    assert alternation.observe(score(0.9, 0.01), kept=False).action == action


def test_the_longest_turn_switches_and_is_no_plateau() -> None:
    config = nested(CONFIG, **{"max_turn": 2})
    alternation = begun(config)
    decision = observe(alternation, 0.6, 0.7)
    assert (decision.action, decision.cycle) == ("switch", "persona")
    assert decision.why.startswith("2 iterations are all that a turn has; ")
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.3, 0.3).action == "switch", "tools had not plateaued: it has another turn"
    alternation.begin("tools", score(0.7))
    assert observe(alternation, 0.7, 0.7).action == "stop"


def test_only_the_latest_turn_of_the_other_cycle_counts() -> None:
    alternation = begun(nested(CONFIG, **{"max_turn": 3}))
    assert observe(alternation, 0.5, 0.5).action == "switch"
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.4, 0.4, 0.4).action == "switch"
    alternation.begin("tools", score(0.5))
    assert observe(alternation, 0.6, 0.7, 0.8).why.startswith("3 iterations are all that a turn has")
    alternation.begin("persona", score(0.4))
    assert observe(alternation, 0.4, 0.4).action == "switch", "tools plateaued in its first turn, but not in its second"


def test_the_largest_number_of_iterations_stops() -> None:
    config = nested(CONFIG, **{"max_iterations": 3})
    decision = observe(begun(config), 0.7, 0.9, 0.8)
    assert (decision.action, decision.cycle) == ("stop", "tools")
    assert decision.why.startswith("3 iterations are all there are; ")


def test_an_improvement_that_did_not_last_counts() -> None:
    """The highest score of a turn is compared with its baseline, not the last, and none that was rolled back."""
    alternation = begun()
    observe(alternation, 0.5, 0.5)
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.4, 0.3, 0.2).action == "switch"
    alternation.begin("tools", score(0.5))
    alternation.observe(score(0.9), kept=False)
    assert alternation.observe(score(0.9), kept=False).action == "stop"


def test_a_turn_begins_anew_with_its_own_baseline() -> None:
    """What the cycle before scored is of another measure: neither its slope nor its best counts."""
    alternation = begun()
    observe(alternation, 0.5, 0.5)
    alternation.begin("persona", score(0.1))
    assert alternation.observe(score(0.12), kept=True).why == "2 of the 3 scores it takes"
    decision = alternation.observe(score(0.14), kept=True)
    expected = judge([score(0.1), score(0.12), score(0.14)], CONFIG.plateau)
    assert (decision.action, decision.why) == ("continue", expected.why)


# --- a cycle that cannot run


def test_a_cycle_that_cannot_begin_switches_at_once_and_both_stop() -> None:
    alternation = Alternation(CONFIG)
    decision = alternation.fail("no trajectory")
    assert decision == Decision("switch", "persona", "tools could not run: no trajectory")
    decision = alternation.fail("no proposal has an effect")
    assert (decision.action, alternation.iteration, alternation.stopped) == ("stop", 2, True)
    assert decision.why.startswith("persona could not run: no proposal has an effect; tools had plateaued")
    with pytest.raises(ValueError, match="a cycle failed after the end: the alternation has stopped"):
        alternation.fail("again")


def test_the_other_cycle_runs_alone_after_a_failure() -> None:
    alternation = Alternation(CONFIG)
    alternation.fail("no trajectory")
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.4, 0.4, 0.4).action == "switch", "it improved: tools may have a trajectory now"
    decision = alternation.fail("no trajectory")
    assert (decision.action, decision.cycle) == ("stop", "tools")


def test_failures_are_iterations() -> None:
    alternation = Alternation(nested(CONFIG, **{"max_iterations": 1}))
    decision = alternation.fail("no trajectory")
    assert (decision.action, decision.cycle) == ("stop", "tools")
    assert decision.why == "1 iterations are all there are; tools could not run: no trajectory"


def test_a_failure_within_a_turn_switches_and_what_the_turn_brought_counts() -> None:
    for values, last in (((0.6, 0.7), "switch"), ((0.5,), "stop")):
        alternation = Alternation(CONFIG)
        alternation.fail("no trajectory")
        alternation.begin("persona", score(0.5))
        observe(alternation, *values)
        decision = alternation.fail("the best proposal has no effect")
        assert (decision.action, alternation.iteration) == (last, len(values) + 2)
        assert decision.why.startswith("persona could not run: the best proposal has no effect")


def test_a_plateau_at_the_first_step() -> None:
    """The window of a plateau holds the baseline: with patience 1 the first iteration that is not kept ends it all."""
    config = nested(CONFIG, **{"plateau_patience": 1})
    alternation = begun(config)
    assert alternation.observe(score(0.5), kept=False).action == "switch"
    alternation.begin("persona", score(0.3))
    decision = alternation.observe(score(0.3), kept=False)
    assert (decision.action, alternation.iteration) == ("stop", 2)


# --- calls out of order


def test_calls_out_of_order_are_refused() -> None:
    alternation = Alternation(CONFIG)
    with pytest.raises(ValueError, match="outside a turn: a turn of 'tools' is next; call `begin`"):
        alternation.observe(score(0.5), kept=True)
    with pytest.raises(ValueError, match="a turn of 'persona' cannot begin: a turn of 'tools' is next"):
        alternation.begin("persona", score(0.5))
    alternation.begin("tools", score(0.5))
    with pytest.raises(ValueError, match="a turn of 'tools' cannot begin: a turn of 'tools' is under way"):
        alternation.begin("tools", score(0.5))
    alternation.fail("x")
    alternation.fail("y")
    with pytest.raises(ValueError, match="cannot begin: the alternation has stopped"):
        alternation.begin("persona", score(0.5))
    with pytest.raises(ValueError, match="outside a turn: the alternation has stopped"):
        alternation.observe(score(0.5), kept=True)


def test_configuration_has_bounds() -> None:
    wrongs = ({"max_iterations": 0}, {"max_turn": 0}, {"first": "memory"}, {"turns": 3}, {"plateau": {"window": 17}})
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            AlternationConfig.model_validate(wrong)
    default = AlternationConfig()
    assert default.plateau == PlateauConfig(), "both state the same defaults"
    assert CONFIG.plateau == PlateauConfig(window=3, patience=2, threshold=0.01, adaptive=False)
    persona = nested(AlternationConfig, first="persona")
    assert Alternation(persona).cycle == "persona"


# --- whole runs


CYCLES: tuple[Cycle, Cycle] = ("tools", "persona")


class Curves:
    """Two cycles that saturate, each a little helped by the other; scores are measured with noise."""

    def __init__(self, seed: int, error: float) -> None:
        self.rng, self.error = np.random.default_rng(seed), error
        self.rooms: dict[Cycle, float] = {cycle: self.rng.uniform(0.1, 0.4) for cycle in CYCLES}
        self.rates: dict[Cycle, float] = {cycle: self.rng.uniform(0.3, 0.7) for cycle in CYCLES}

    def truth(self, model: dict[Cycle, float], cycle: Cycle) -> float:
        other = model["persona" if cycle == "tools" else "tools"]
        return 0.3 + self.rooms[cycle] * (1 - math.exp(-self.rates[cycle] * model[cycle])) + 0.05 * math.tanh(other)

    def measured(self, model: dict[Cycle, float], cycle: Cycle) -> Score:
        return Score(self.truth(model, cycle) + self.error * float(self.rng.normal()), self.error)

    def step(self, model: dict[Cycle, float], cycle: Cycle) -> dict[Cycle, float]:
        """The next model; one iteration of eight goes wrong."""
        moved = -2.0 if self.rng.random() < 0.125 else 1.0
        return {**model, cycle: max(0.0, model[cycle] + moved)}


@dataclass(frozen=True)
class Step:
    """An iteration of a whole run, and the true scores of the model that stands behind it."""

    decision: Decision
    cycle: Cycle
    truth: dict[Cycle, float]


def run(seed: int, config: AlternationConfig, error: float) -> list[Step]:
    """A whole run that keeps what scores no less than the model that stands."""
    curves, alternation = Curves(seed, error), Alternation(config)
    model: dict[Cycle, float] = {"tools": 0.0, "persona": 0.0}
    steps: list[Step] = []
    standing = Score(0, 0)
    while not alternation.stopped:
        cycle = alternation.cycle
        if not alternation.begun:
            standing = curves.measured(model, cycle)
            alternation.begin(cycle, standing)
        child = curves.step(model, cycle)
        score = curves.measured(child, cycle)
        kept = score.value >= standing.value
        decision = alternation.observe(score, kept)
        if kept:
            model, standing = child, score
        steps.append(Step(decision, cycle, {c: curves.truth(model, c) for c in model}))
        assert alternation.iteration == len(steps)
    return steps


RUNS = nested(
    AlternationConfig, plateau_window=4, plateau_patience=3, plateau_threshold=0.02, max_iterations=40, max_turn=12
)


def test_saturating_cycles_end_bounded_and_gain_most_of_what_there_was() -> None:
    stops, gains = [], []
    for seed in range(200):
        steps = run(seed, RUNS, 0.01)
        stops.append(len(steps))
        assert len(steps) <= RUNS.max_iterations
        assert [step.decision.action == "stop" for step in steps] == [False] * (len(steps) - 1) + [True]
        assert {step.cycle for step in steps} == {"tools", "persona"}
        curves = Curves(seed, 0.01)
        gains += [(steps[-1].truth[c] - 0.3) / (curves.rooms[c] + 0.05) for c in curves.rooms]
    assert np.mean([n < RUNS.max_iterations for n in stops]) >= 0.95
    assert np.mean(gains) >= 0.8, "of what there was to gain"


def test_turns_follow_each_other_as_decided() -> None:
    for seed in range(20):
        for step, following in itertools.pairwise(run(seed, RUNS, 0.01)):
            assert step.decision.cycle == following.cycle
            assert (step.decision.action == "switch") == (step.cycle != following.cycle)


def test_the_same_observations_lead_to_the_same_decisions() -> None:
    """A run that is replayed from its kept scores goes on as it would have."""
    for seed in range(30):
        assert run(seed, RUNS, 0.01) == run(seed, RUNS, 0.01)


class OfAPhase(AlternationConfig):
    """A phase's configuration with that of its alternation in it."""

    steps: int = 7


def test_a_phase_may_hand_over_its_whole_configuration() -> None:
    whole = OfAPhase(**CONFIG.model_dump(), steps=9)
    assert observe(begun(whole), 0.6, 0.7, 0.7) == observe(begun(), 0.6, 0.7, 0.7)
