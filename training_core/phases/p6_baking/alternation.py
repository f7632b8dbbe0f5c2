"""Which of two cycles runs next: tools and persona take turns, each until it brings nothing more.

    begin(cycle, baseline) -> observe(score, kept) -> continue: observe the next iteration
                                                   -> switch: begin the other cycle
                                                   -> stop

Whether an iteration is kept, the caller decides; the model after the last one that was kept stands, whatever follows.

A turn of a cycle ends on a plateau (`plateau.judge` over the baseline and the scores of the iterations that were
kept), on `patience` iterations in a row of which none was kept (the model stood still), or on its largest number of
iterations. A cycle that could not run at all has plateaued at its first step (`fail`).

The alternation stops when a turn ends on a plateau without a significant improvement on its baseline while the other
cycle's latest turn ended on a plateau too: then neither cycle has moved the model since both were last tried. It also
stops after `max_iterations` in all. Between two failures lies an iteration or the end, so that it always ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from training_core.phases.p6_baking.plateau import PlateauConfig, Score, Verdict, above, judge

Cycle = Literal["tools", "persona"]
Action = Literal["continue", "switch", "stop"]
_OTHER: dict[Cycle, Cycle] = {"tools": "persona", "persona": "tools"}


class AlternationConfig(BaseModel):
    """When cycles take turns and when they end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_iterations: int = Field(24, ge=1, description="Iterations in all")
    max_turn: int = Field(8, ge=1, description="Iterations of one cycle before the other has its turn")
    first: Cycle = Field("tools", description="The cycle that begins")
    plateau: PlateauConfig = Field(PlateauConfig(), description="When a cycle brings nothing more")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, and why. `cycle` is the one that runs next, or ran last."""

    action: Action
    cycle: Cycle
    why: str


class Alternation:
    """The controller of two cycles. It decides from what was observed, and runs nothing.

    `cycle` runs, or is to begin, or ran last. `iteration` counts iterations, those that failed among them. `begun` says
    whether a turn is under way, so that `observe` comes next and not `begin`; `stopped`, whether all is done.
    """

    def __init__(self, config: AlternationConfig) -> None:
        """An alternation that has not begun."""
        self.config = config
        self.cycle: Cycle = config.first
        self.iteration = 0
        self.begun = False
        self.stopped = False
        self._turn_began = 0
        self._scores: list[Score] = []  # of the turn: its baseline, and those of iterations that were kept
        self._at: list[int] = []  # after how many iterations each of them was measured
        self._plateaued: dict[Cycle, bool] = {"tools": False, "persona": False}  # the latest turn of each

    def begin(self, cycle: Cycle, baseline: Score) -> None:
        """Starts a turn of `cycle`. `baseline` is the score of the model that stands, by the measure of that cycle.

        Raises:
            ValueError: when that cycle is not the next, or a turn is under way, or the alternation has stopped.
        """
        if self.begun or self.stopped or cycle != self.cycle:
            raise ValueError(f"a turn of {cycle!r} cannot begin: {self._standing()}")
        self.begun, self._turn_began = True, self.iteration
        self._scores, self._at = [baseline], [self.iteration]

    def observe(self, score: Score, kept: bool) -> Decision:
        """The decision after an iteration whose model scored `score` and was kept, or rolled back.

        Raises:
            ValueError: when no turn is under way.
        """
        if not self.begun:
            raise ValueError(f"an iteration outside a turn: {self._standing()}; call `begin` before `observe`")
        self.iteration += 1
        if kept:
            self._scores.append(score)
            self._at.append(self.iteration)
        plateau, why = self._plateau()
        if self.iteration >= self.config.max_iterations:
            return self._stop(f"{self.config.max_iterations} iterations are all there are; {why}")
        if plateau:
            return self._turn_plateaued(why)
        if self.iteration - self._turn_began >= self.config.max_turn:
            return self._switch(f"{self.config.max_turn} iterations are all that a turn has; {why}", plateaued=False)
        return Decision("continue", self.cycle, why)

    def fail(self, why: str) -> Decision:
        """The decision when the cycle cannot run (no proposal has an effect, no trajectory): a plateau at once.

        Raises:
            ValueError: when the alternation has stopped.
        """
        if self.stopped:
            raise ValueError(f"a cycle failed after the end: {self._standing()}")
        self.iteration += 1
        why = f"{self.cycle} could not run: {why}"
        if self.iteration >= self.config.max_iterations:
            return self._stop(f"{self.config.max_iterations} iterations are all there are; {why}")
        return self._turn_plateaued(why)

    def _plateau(self) -> tuple[bool, str]:
        config = self.config.plateau
        verdict: Verdict = judge(self._scores, config, self._at)
        idle = self.iteration - self._at[-1]
        if idle >= config.patience:
            return True, f"none of the last {idle} iterations was kept"
        return verdict.plateau, verdict.why

    def _improved(self) -> bool:
        """Whether the highest score that was kept in the turn is significantly above its baseline."""
        if not self.begun:
            return False
        best = max(self._scores, key=lambda score: score.value)
        return above(best, self._scores[0], self.config.plateau.confidence)

    def _turn_plateaued(self, why: str) -> Decision:
        if self._plateaued[_OTHER[self.cycle]] and not self._improved():
            return self._stop(f"{why}; {_OTHER[self.cycle]} had plateaued, and nothing has improved since")
        return self._switch(why, plateaued=True)

    def _switch(self, why: str, plateaued: bool) -> Decision:
        self._plateaued[self.cycle] = plateaued
        self.begun, self.cycle = False, _OTHER[self.cycle]
        return Decision("switch", self.cycle, why)

    def _stop(self, why: str) -> Decision:
        self.begun, self.stopped = False, True
        return Decision("stop", self.cycle, why)

    def _standing(self) -> str:
        if self.stopped:
            return "the alternation has stopped"
        return f"a turn of {self.cycle!r} is {'under way' if self.begun else 'next'}"
