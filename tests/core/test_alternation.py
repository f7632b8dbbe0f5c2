"""Every transition of the controller, its state as JSON, and whole runs on synthetic curves."""

from __future__ import annotations

import copy
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from training_core.cycles.alternation import Alternation, AlternationConfig, Cycle, Decision
from training_core.cycles.plateau import PlateauConfig, Score, judge

FINE = 1e-4  # a standard error that hides nothing here
CONFIG = AlternationConfig(
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
    assert (decision.action, decision.cycle, decision.best) == ("continue", "tools", 4)
    assert (alternation.iteration, alternation.model, alternation.begun, alternation.stopped) == (4, 4, True, False)


def test_a_plateau_switches_to_the_other_cycle_and_to_the_best_model() -> None:
    decision = observe(alternation := begun(), 0.6, 0.7, 0.699, 0.698)
    assert (decision.action, decision.cycle, decision.best) == ("switch", "persona", 2)
    assert decision.why.endswith("below 0.01, and 2 iterations since a significant new best")
    assert (alternation.cycle, alternation.model, alternation.begun) == ("persona", 2, False)


def test_iterations_that_are_rolled_back_leave_the_model_and_end_the_turn_after_patience() -> None:
    alternation = begun()
    assert observe(alternation, 0.6).best == 1
    assert alternation.observe(score(0.9), kept=False) == Decision("continue", "tools", 1, "2 of the 3 scores it takes")
    decision = alternation.observe(score(0.95), kept=False)
    assert (decision.action, decision.best) == ("switch", 1)
    assert decision.why == "none of the last 2 iterations was kept"


def test_an_iteration_that_is_kept_ends_a_row_of_those_that_were_not() -> None:
    alternation = begun()
    for value, kept in ((0.6, False), (0.6, True), (0.6, False), (0.7, True), (0.7, False)):
        assert alternation.observe(score(value), kept).action == "continue"
    assert alternation.model == 4


def test_the_slope_is_per_iteration_also_over_those_that_were_rolled_back() -> None:
    alternation = begun()
    for value, kept in ((0.6, True), (0.6, False), (0.7, True)):
        decision = alternation.observe(score(value), kept)
    assert decision.why == judge([score(0.5), score(0.6), score(0.7)], CONFIG.plateau(), [0, 1, 3]).why
    assert decision.why.startswith("+0.0643 an iteration")  # .9 / 14, not .1


def test_both_plateaued_without_an_improvement_since_the_switch_stops() -> None:
    alternation = begun()
    observe(alternation, 0.6, 0.7, 0.7, 0.7)
    alternation.begin("persona", score(0.3))
    decision = observe(alternation, 0.3, 0.3)
    assert (decision.action, decision.cycle, decision.best) == ("stop", "persona", 2)
    assert decision.why.endswith("tools had plateaued, and nothing has improved since")
    assert alternation.stopped


def test_an_improvement_before_the_plateau_gives_the_other_cycle_another_turn() -> None:
    alternation = begun()
    observe(alternation, 0.5, 0.5)
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.4, 0.4, 0.4).action == "switch"
    assert (alternation.cycle, alternation.model) == ("tools", 3), "the best of persona is its first, iteration 3"
    alternation.begin("tools", score(0.5))
    decision = observe(alternation, 0.5, 0.5)
    assert (decision.action, decision.best) == ("stop", 3)


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
    config = CONFIG.model_copy(update={"max_turn": 2})
    alternation = begun(config)
    decision = observe(alternation, 0.6, 0.7)
    assert (decision.action, decision.cycle, decision.best) == ("switch", "persona", 2)
    assert decision.why.startswith("2 iterations are all that a turn has; ")
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.3, 0.3).action == "switch", "tools had not plateaued: it has another turn"
    alternation.begin("tools", score(0.7))
    assert observe(alternation, 0.7, 0.7).action == "stop"


def test_the_largest_number_of_iterations_stops_with_the_best_model() -> None:
    config = CONFIG.model_copy(update={"max_iterations": 3})
    decision = observe(begun(config), 0.7, 0.9, 0.8)
    assert (decision.action, decision.cycle, decision.best) == ("stop", "tools", 2)
    assert decision.why.startswith("3 iterations are all there are; ")


def test_where_nothing_is_above_the_baseline_its_model_goes_on() -> None:
    alternation = begun()
    assert observe(alternation, 0.6, 0.7).best == 2
    for _ in range(2):
        decision = alternation.observe(score(0.1), kept=False)
    assert (decision.action, decision.best) == ("switch", 2)
    alternation.begin("persona", score(0.3))
    decision = observe(alternation, 0.25, 0.2)
    assert (decision.action, decision.best) == ("stop", 2), "persona made the model of iteration 2 only worse"


# --- a cycle that cannot run


def test_a_cycle_that_cannot_begin_switches_at_once_and_both_stop() -> None:
    alternation = Alternation(CONFIG)
    decision = alternation.fail("no trajectory")
    assert decision == Decision("switch", "persona", 0, "tools could not run: no trajectory")
    decision = alternation.fail("no proposal has an effect")
    assert (decision.action, decision.best, alternation.iteration) == ("stop", 0, 2)
    assert decision.why.startswith("persona could not run: no proposal has an effect; tools had plateaued")
    with pytest.raises(ValueError, match="a cycle failed after the end: the alternation has stopped"):
        alternation.fail("again")


def test_the_other_cycle_runs_alone_after_a_failure() -> None:
    alternation = Alternation(CONFIG)
    alternation.fail("no trajectory")
    alternation.begin("persona", score(0.3))
    assert observe(alternation, 0.4, 0.4, 0.4).action == "switch", "it improved: tools may have a trajectory now"
    decision = alternation.fail("no trajectory")
    assert (decision.action, decision.cycle, decision.best) == ("stop", "tools", 2)


def test_failures_are_iterations() -> None:
    alternation = Alternation(CONFIG.model_copy(update={"max_iterations": 1}))
    decision = alternation.fail("no trajectory")
    assert (decision.action, decision.cycle, decision.best) == ("stop", "tools", 0)
    assert decision.why == "1 iterations are all there are; tools could not run: no trajectory"


def test_a_failure_within_a_turn_keeps_what_the_turn_brought() -> None:
    alternation = begun()
    observe(alternation, 0.6, 0.7)
    decision = alternation.fail("the sandbox is gone")
    assert (decision.action, decision.cycle, decision.best) == ("switch", "persona", 2)


def test_a_plateau_at_the_first_step() -> None:
    """The window of a plateau holds the baseline: with patience 1 the first iteration that is not kept ends it all."""
    config = CONFIG.model_copy(update={"plateau_patience": 1})
    alternation = begun(config)
    assert alternation.observe(score(0.5), kept=False).action == "switch"
    alternation.begin("persona", score(0.3))
    decision = alternation.observe(score(0.3), kept=False)
    assert (decision.action, decision.best, alternation.iteration) == ("stop", 0, 2)


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
    for wrong in ({"max_iterations": 0}, {"max_turn": 0}, {"first": "memory"}, {"turns": 3}, {"plateau_window": 17}):
        with pytest.raises(ValidationError):
            AlternationConfig(**wrong)
    default = AlternationConfig()
    assert default.plateau() == PlateauConfig(), "both state the same defaults"
    assert CONFIG.plateau() == PlateauConfig(window=3, patience=2, threshold=0.01, adaptive=False)
    persona = AlternationConfig(first="persona")
    assert Alternation(persona).cycle == "persona"


# --- whole runs


class Curves:
    """Two cycles that saturate, each a little helped by the other; scores are measured with noise."""

    def __init__(self, seed: int, error: float) -> None:
        self.rng, self.error = np.random.default_rng(seed), error
        self.rooms = {cycle: self.rng.uniform(0.1, 0.4) for cycle in ("tools", "persona")}
        self.rates = {cycle: self.rng.uniform(0.3, 0.7) for cycle in ("tools", "persona")}

    def truth(self, model: dict[str, float], cycle: Cycle) -> float:
        other = model["persona" if cycle == "tools" else "tools"]
        return 0.3 + self.rooms[cycle] * (1 - math.exp(-self.rates[cycle] * model[cycle])) + 0.05 * math.tanh(other)

    def measured(self, model: dict[str, float], cycle: Cycle) -> Score:
        return Score(self.truth(model, cycle) + self.error * float(self.rng.normal()), self.error)

    def step(self, model: dict[str, float], cycle: Cycle) -> dict[str, float]:
        """The next model; one iteration of eight goes wrong."""
        moved = -2.0 if self.rng.random() < 0.125 else 1.0
        return {**model, cycle: max(0.0, model[cycle] + moved)}


def run(seed: int, config: AlternationConfig, error: float, restart: bool = False) -> tuple[list[Any], Alternation]:
    """A whole run that keeps what scores no less than the model that stands; `restart` goes through JSON every time."""
    curves, alternation = Curves(seed, error), Alternation(config)
    models: dict[int, dict[str, float]] = {0: {"tools": 0.0, "persona": 0.0}}
    seen: list[Any] = []
    while not alternation.stopped:
        if restart:
            alternation = Alternation.restore(config, json.loads(json.dumps(alternation.state())))
        cycle, parent = alternation.cycle, models[alternation.model]
        if not alternation.begun:
            standing = curves.measured(parent, cycle)
            alternation.begin(cycle, standing)
            turn = [(alternation.model, standing.value)]
        child = curves.step(parent, cycle)
        score = curves.measured(child, cycle)
        kept = score.value >= standing.value
        models[alternation.iteration + 1] = child
        decision = alternation.observe(score, kept)
        if kept:
            standing = score
            turn.append((alternation.iteration, score.value))
        seen.append((decision, cycle, list(turn), [curves.truth(models[alternation.model], c) for c in curves.rooms]))
    return seen, alternation


RUNS = AlternationConfig(plateau_window=4, plateau_patience=3, plateau_threshold=0.02, max_iterations=40, max_turn=12)


def test_saturating_cycles_end_bounded_and_keep_the_best_model() -> None:
    stops, gains = [], []
    for seed in range(200):
        seen, alternation = run(seed, RUNS, 0.01)
        stops.append(len(seen))
        assert len(seen) == alternation.iteration <= RUNS.max_iterations
        for decision, _, turn, _ in seen:
            if decision.action == "continue":
                assert decision.best == turn[-1][0]
            else:
                assert decision.best == max(turn, key=lambda kept: (kept[1], -kept[0]))[0]
        assert [decision.action for decision, *_ in seen].count("stop") == 1
        curves = Curves(seed, 0.01)
        most = [0.3 + curves.rooms[c] + 0.05 for c in curves.rooms]
        gains.append([(at - 0.3) / (of - 0.3) for at, of in zip(seen[-1][3], most, strict=True)])
        assert {cycle for _, cycle, *_ in seen} == {"tools", "persona"}
    assert np.mean([n < RUNS.max_iterations for n in stops]) >= 0.95
    assert np.mean(gains) >= 0.8, "of what there was to gain"


def test_turns_follow_each_other_as_decided() -> None:
    for seed in range(20):
        seen, _ = run(seed, RUNS, 0.01)
        for (decision, *_), (_, cycle, *_) in itertools.pairwise(seen):
            assert decision.action != "stop"
            assert decision.cycle == cycle


def test_a_restored_alternation_decides_the_same() -> None:
    for seed in range(30):
        assert run(seed, RUNS, 0.01, restart=True)[0] == run(seed, RUNS, 0.01)[0]


# --- the state


class OfAPhase(AlternationConfig):
    """A phase's configuration with that of its alternation in it."""

    steps: int = 7


def test_a_phase_may_hand_over_its_whole_configuration() -> None:
    whole = OfAPhase(**CONFIG.model_dump(), steps=9)
    state = begun(whole).state()
    assert state == begun().state()
    assert Alternation.restore(whole, state).state() == state


def test_the_state_is_json_and_apart_from_the_alternation() -> None:
    alternation = begun()
    observe(alternation, 0.6, 0.7)
    state = alternation.state()
    assert json.loads(json.dumps(state)) == state
    before = copy.deepcopy(state)
    alternation.observe(score(0.8), kept=True)
    assert state == before
    restored = Alternation.restore(CONFIG, state)
    assert (restored.iteration, restored.model, restored.cycle, restored.begun) == (2, 2, "tools", True)
    restored.observe(score(0.8), kept=True)
    assert restored.state() == alternation.state()


@pytest.mark.parametrize(
    ("path", "value"),
    [("phase", "resting"), ("cycle", "memory"), ("iteration", -1), ("turn", [{"iteration": 0}]), ("mood", 1)],
)
def test_a_state_that_is_none_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match="no state of an alternation"):
        Alternation.restore(CONFIG, {**begun().state(), path: value})


def test_a_state_without_a_baseline_or_of_another_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="under way has a baseline"):
        Alternation.restore(CONFIG, {**begun().state(), "turn": []})
    with pytest.raises(ValueError, match="another configuration"):
        Alternation.restore(CONFIG.model_copy(update={"max_turn": 3}), begun().state())
