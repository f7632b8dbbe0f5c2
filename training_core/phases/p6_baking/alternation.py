"""Alternation of two cycles: tools and persona take turns, each until its score stops improving.

    begin(cycle, baseline) -> observe(score, kept) -> continue: observe the next iteration
                                                   -> switch: begin the other cycle
                                                   -> stop

The caller decides whether an iteration is kept or rolled back. The current model is always that of the last kept
iteration.

A turn of a cycle ends on a plateau (`plateau.judge` over the baseline and the scores of kept iterations), after
`patience` consecutive iterations of which none was kept, or at its maximum number of iterations. A cycle that cannot
run at all counts as a plateau at once (`fail`).

The alternation stops when a turn reaches a plateau without a significant improvement over its baseline while the
latest turn of the other cycle ended on a plateau too, because then neither cycle improves the current model. It also
stops after `max_iterations` in total. A failure counts as an iteration, so the alternation always terminates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from training_core.phases.p6_baking.plateau import PlateauConfig, PlateauVerdict, Score, above, judge

Cycle = Literal["tools", "persona"]
Action = Literal["continue", "switch", "stop"]
_OTHER: dict[Cycle, Cycle] = {"tools": "persona", "persona": "tools"}


class AlternationConfig(BaseModel):
    """Limits on turns and iterations, and the rule for plateaus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_iterations: int = Field(24, ge=1, description="Maximum total number of iterations of both cycles")
    max_turn: int = Field(8, ge=1, description="Maximum number of iterations in one turn of a cycle")
    first: Cycle = Field("tools", description="The cycle that runs first")
    plateau: PlateauConfig = Field(PlateauConfig(), description="When a cycle counts as no longer improving")


@dataclass(frozen=True, slots=True)
class Decision:
    """The next action and its reason. `cycle` is the cycle to run next or, after a stop, the last one."""

    action: Action
    cycle: Cycle
    why: str


class Alternation:
    """The controller of two cycles. It decides from observed scores and runs nothing itself.

    `cycle` is the current cycle, the next one to begin or, after a stop, the last one. `iteration` counts iterations,
    including failed ones. `begun` is True while a turn is in progress, when `observe` is to be called rather than
    `begin`; `stopped` is True once the alternation has ended.
    """

    def __init__(self, config: AlternationConfig) -> None:
        """Create an alternation whose first turn has not begun."""
        self.config = config
        self.cycle: Cycle = config.first
        self.iteration = 0
        self.begun = False
        self.stopped = False
        self._turn_began = 0
        self._scores: list[Score] = []  # of this turn: its baseline, then the scores of kept iterations
        self._at: list[int] = []  # the iteration at which each of these scores was measured
        self._plateaued: dict[Cycle, bool] = {"tools": False, "persona": False}  # whether the latest turn did

    def begin(self, cycle: Cycle, baseline: Score) -> None:
        """Start a turn of `cycle`. `baseline` is the score of the current model on that cycle's metric.

        Raises:
            ValueError: when another cycle is next, a turn is in progress, or the alternation has stopped.
        """
        if self.begun or self.stopped or cycle != self.cycle:
            raise ValueError(f"a turn of {cycle!r} cannot begin: {self._standing()}")
        self.begun, self._turn_began = True, self.iteration
        self._scores, self._at = [baseline], [self.iteration]

    def observe(self, score: Score, kept: bool) -> Decision:
        """Return the decision after an iteration whose model scored `score` and was kept or rolled back.

        Raises:
            ValueError: when no turn is in progress.
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
        """Return the decision when the cycle cannot run (no effective proposal, no trajectory): an immediate plateau.

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
        verdict: PlateauVerdict = judge(self._scores, config, self._at)
        idle = self.iteration - self._at[-1]
        if idle >= config.patience:
            return True, f"none of the last {idle} iterations was kept"
        return verdict.plateau, verdict.why

    def _improved(self) -> bool:
        """Return whether the best kept score of the turn is significantly above its baseline."""
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
