"""Which of two cycles runs next: tools and persona take turns, each until it brings nothing more.

    begin(cycle, baseline) -> observe(score, kept) -> continue: observe the next iteration
                                                   -> switch: begin the other cycle, from the model `best`
                                                   -> stop: `best` is the result

A turn of a cycle ends on a plateau (`plateau.judge` over the baseline and the scores of the iterations that were
kept), on `patience` iterations in a row of which none was kept (the model stood still), or on its largest number of
iterations. A cycle that could not run at all has plateaued at its first step (`fail`).

The alternation stops when a turn ends on a plateau without a significant improvement on its baseline while the other
cycle's latest turn ended on a plateau too: then neither cycle has moved the model since both were last tried. It also
stops after `max_iterations` in all. Between two failures lies an iteration or the end, so that it always ends.

Everything is decided from what was observed, and the whole state is a JSON document (`state`, `restore`): a run that
was killed goes on with the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training_core.cycles.plateau import PlateauConfig, Score, Verdict, above, judge

Cycle = Literal["tools", "persona"]
Action = Literal["continue", "switch", "stop"]
Phase = Literal["between", "running", "stopped"]
_OTHER: dict[Cycle, Cycle] = {"tools": "persona", "persona": "tools"}
_Count = Annotated[int, Field(ge=0)]


class AlternationConfig(BaseModel):
    """When cycles take turns and when they end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_iterations: int = Field(24, ge=1, description="Iterations in all")
    max_turn: int = Field(8, ge=1, description="Iterations of one cycle before the other has its turn")
    first: Cycle = Field("tools", description="The cycle that begins")
    plateau_window: int = Field(5, ge=3, description="Scores from which a cycle's slope is told; fewer are no plateau")
    plateau_threshold: float = Field(0.01, gt=0, description="Least rise of a score per iteration that still counts")
    plateau_patience: int = Field(3, ge=1, description="Iterations without a significant new best before a plateau")
    plateau_adaptive: bool = Field(True, description="The window grows until it resolves the threshold")
    plateau_max_window: int = Field(16, ge=3, description="Most scores from which a slope is told")
    plateau_confidence: float = Field(0.99, gt=0.5, lt=1, description="Of a slope and of a new best, at one look")

    @model_validator(mode="after")
    def _plateau_can_be(self) -> Self:
        self.plateau()
        return self

    def plateau(self) -> PlateauConfig:
        """When a cycle brings nothing more."""
        return PlateauConfig(**{name: getattr(self, f"plateau_{name}") for name in PlateauConfig.model_fields})


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next. `cycle` is the one that runs next, or ran last; `best` the iteration whose model goes on.

    `best` is 0 for the model that the alternation began with. It is the highest score that was kept in this turn, or
    what the turn began with where none is higher; while the turn continues it is the last one kept.
    """

    action: Action
    cycle: Cycle
    best: int
    why: str


class _Kept(BaseModel):
    """A score that counts, when it was measured, and which iteration made its model.

    The two differ for a turn's baseline after iterations that were rolled back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    iteration: _Count
    model: _Count
    value: float
    standard_error: Annotated[float, Field(ge=0)]


class _State(BaseModel):
    """Everything that decisions rest on. `model` is the iteration that made the model which stands."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: AlternationConfig
    phase: Phase
    cycle: Cycle
    iteration: _Count
    model: _Count
    turn_began: _Count
    turn: list[_Kept]
    plateaued: dict[Cycle, bool]


class Alternation:
    """The controller of two cycles. It decides, and runs nothing."""

    def __init__(self, config: AlternationConfig) -> None:
        """An alternation that has not begun."""
        self._state = _State(
            config=_own(config),
            phase="between",
            cycle=config.first,
            iteration=0,
            model=0,
            turn_began=0,
            turn=[],
            plateaued={"tools": False, "persona": False},
        )

    @property
    def cycle(self) -> Cycle:
        """The cycle that runs, or is to begin, or ran last."""
        return self._state.cycle

    @property
    def iteration(self) -> int:
        """How many iterations there were, those that failed among them."""
        return self._state.iteration

    @property
    def model(self) -> int:
        """The iteration whose model stands; 0 for the one that the alternation began with."""
        return self._state.model

    @property
    def begun(self) -> bool:
        """Whether a turn is under way, so that `observe` comes next and not `begin`."""
        return self._state.phase == "running"

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to run."""
        return self._state.phase == "stopped"

    def begin(self, cycle: Cycle, baseline: Score) -> None:
        """Starts a turn of `cycle`. `baseline` is the score of the model that stands, by the measure of that cycle.

        Raises:
            ValueError: when that cycle is not the next, or a turn is under way, or the alternation has stopped.
        """
        state = self._state
        if state.phase != "between" or cycle != state.cycle:
            raise ValueError(f"a turn of {cycle!r} cannot begin: {self._standing()}")
        state.phase, state.turn_began = "running", state.iteration
        state.turn = [_kept(state.iteration, state.model, baseline)]

    def observe(self, score: Score, kept: bool) -> Decision:
        """The decision after an iteration whose model scored `score` and was kept, or rolled back.

        Raises:
            ValueError: when no turn is under way.
        """
        state = self._state
        if state.phase != "running":
            raise ValueError(f"an iteration outside a turn: {self._standing()}; call `begin` before `observe`")
        state.iteration += 1
        if kept:
            state.turn.append(_kept(state.iteration, state.iteration, score))
            state.model = state.iteration
        plateau, why = self._plateau()
        if state.iteration >= state.config.max_iterations:
            return self._stop(f"{state.config.max_iterations} iterations are all there are; {why}")
        if plateau:
            return self._turn_plateaued(why)
        if state.iteration - state.turn_began >= state.config.max_turn:
            return self._switch(f"{state.config.max_turn} iterations are all that a turn has; {why}", plateaued=False)
        return Decision("continue", state.cycle, state.model, why)

    def fail(self, why: str) -> Decision:
        """The decision when the cycle cannot run (no proposal has an effect, no trajectory): a plateau at once.

        Raises:
            ValueError: when the alternation has stopped.
        """
        state = self._state
        if state.phase == "stopped":
            raise ValueError(f"a cycle failed after the end: {self._standing()}")
        state.iteration += 1
        why = f"{state.cycle} could not run: {why}"
        if state.iteration >= state.config.max_iterations:
            return self._stop(f"{state.config.max_iterations} iterations are all there are; {why}")
        return self._turn_plateaued(why)

    def state(self) -> dict[str, Any]:
        """The whole state as a JSON document."""
        document: dict[str, Any] = self._state.model_dump(mode="json")
        return document

    @classmethod
    def restore(cls, config: AlternationConfig, document: dict[str, Any]) -> Alternation:
        """The alternation as `state` wrote it.

        Raises:
            ValueError: when the document is not such a state, or was written under another configuration.
        """
        try:
            state = _State.model_validate(document)
        except ValidationError as error:
            raise ValueError(f"this is no state of an alternation: {error}") from error
        if state.config != _own(config):
            raise ValueError("the state was written under another configuration: restore with that, or begin anew")
        if state.phase == "running" and not state.turn:
            raise ValueError("a turn that is under way has a baseline, this state has none: begin anew")
        restored = cls(config)
        restored._state = state
        return restored

    def _plateau(self) -> tuple[bool, str]:
        state, config = self._state, self._state.config.plateau()
        verdict: Verdict = judge([_score(kept) for kept in state.turn], config, [kept.iteration for kept in state.turn])
        idle = state.iteration - state.turn[-1].iteration
        if idle >= config.patience:
            return True, f"none of the last {idle} iterations was kept"
        return verdict.plateau, verdict.why

    def _improved(self) -> bool:
        """Whether the best score of the turn is significantly above its baseline."""
        turn = self._state.turn
        return bool(turn) and above(_score(self._best()), _score(turn[0]), self._state.config.plateau_confidence)

    def _best(self) -> _Kept:
        return max(self._state.turn, key=lambda kept: (kept.value, -kept.iteration))

    def _turn_plateaued(self, why: str) -> Decision:
        state = self._state
        if state.plateaued[_OTHER[state.cycle]] and not self._improved():
            return self._stop(f"{why}; {_OTHER[state.cycle]} had plateaued, and nothing has improved since")
        return self._switch(why, plateaued=True)

    def _switch(self, why: str, plateaued: bool) -> Decision:
        state = self._state
        self._settle()
        state.plateaued[state.cycle] = plateaued
        state.phase, state.cycle, state.turn = "between", _OTHER[state.cycle], []
        return Decision("switch", state.cycle, state.model, why)

    def _stop(self, why: str) -> Decision:
        self._settle()
        self._state.phase = "stopped"
        return Decision("stop", self._state.cycle, self._state.model, why)

    def _settle(self) -> None:
        """At the end of a turn its best model stands; that of the baseline is the one that the turn began with."""
        if self._state.turn:
            self._state.model = self._best().model

    def _standing(self) -> str:
        state = self._state
        if state.phase == "stopped":
            return "the alternation has stopped"
        return f"a turn of {state.cycle!r} is {'under way' if state.phase == 'running' else 'next'}"


def _own(config: AlternationConfig) -> AlternationConfig:
    """The fields of an alternation alone, where `config` has those of a whole phase."""
    return AlternationConfig(**{name: getattr(config, name) for name in AlternationConfig.model_fields})


def _kept(iteration: int, model: int, score: Score) -> _Kept:
    return _Kept(iteration=iteration, model=model, value=score.value, standard_error=score.standard_error)


def _score(kept: _Kept) -> Score:
    return Score(kept.value, kept.standard_error)
