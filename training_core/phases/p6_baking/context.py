"""The context shared by both cycles: the parent and its baseline measurements, half-baking, and the check for harm."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training_core.distill.prompt_baking import NO_EFFECT_NATS, TextBatches, bake, measure_baking
from training_core.distill.rehearsal_data import staying_rows
from training_core.distill.trajectories import Trajectory
from training_core.evaluation.harm import BAKES, in_reach
from training_core.evaluation.intervals import Z95, rate
from training_core.evaluation.language_modeling import measure_windows
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.phases.p6_baking.config import CyclesConfig
from training_core.phases.p6_baking.half_baking import HalfBaking, half_bake
from training_core.record import Estimate
from training_core.tasks.questions.attempts import completion_text, question_text
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.likelihood import Likelihoods, family_drops, measure_likelihoods
from training_core.tasks.questions.measurement import by_level, spread
from training_core.tasks.questions.question import LEVELS, Question

STAYING_QUESTIONS = 128  # rehearsal questions of all levels
STAYING_IN_REACH = 512  # rehearsal questions of the levels in reach, which the model could forget
STAYING_REPAIRS = 160
SEPARATOR = "\n"  # between a prompt and the text that follows it
BEYOND_REACH = 10  # questions per level from families out of reach, which are checked for harm too


class NothingToBakeError(ValueError):
    """A cycle cannot bake, because there is no proposal or the prompt has no effect."""


@dataclass(frozen=True, slots=True)
class Trajectories:
    """Trajectories of the prompted teacher for training, for setting the strength, and for the final measurement."""

    teaching: tuple[Trajectory, ...]
    setting: tuple[Trajectory, ...]
    measuring: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class Baked:
    """A prompt that was baked in.

    `teacher` is the model that answered with the prompt, `start` the model before this bake, `full` the full bake and
    `half.model` the half-baked model. `origin` is the model before the first bake towards this teacher.
    """

    cycle: str
    text: str
    prompt_ids: tuple[int, ...]
    teacher: Cognate
    trajectories: Trajectories
    origin: Cognate
    start: Cognate
    full: Cognate
    half: HalfBaking
    target: float


class CycleContext:
    """The parent, the data, and the parent's baseline measurements.

    Raises:
        ValueError: when a level has no held-out questions.
    """

    def __init__(self, parent: Cognate, context: QuestionContext, config: CyclesConfig) -> None:
        self.parent, self.config, self.context = parent, config, context
        self.cache = context.cache(context.fingerprint(parent, config))
        self.levels_in_reach: list[int] = self.cache.cached("reach", self._reach)["levels"]
        self.harm_questions = self.questions(context.selection.questions)
        self._before: tuple[Likelihoods, torch.Tensor] | None = None

    def questions(self, held_out: Sequence[Question]) -> list[Question]:
        """Return all questions of families that have a level in reach, and the first few per level of the others."""
        in_reach = {question.family for question in held_out if question.level in self.levels_in_reach}
        chosen = [question for question in held_out if question.family in in_reach]
        for others in by_level([question for question in held_out if question.family not in in_reach]).values():
            chosen += others[:BEYOND_REACH]
        return chosen

    def staying(self, repairs: Sequence[str] = ()) -> TextBatches:
        """Return the rehearsal data of a bake: text, questions and the given repairs, on which it must not change."""
        asked = [
            *spread(self.context.train_questions, STAYING_QUESTIONS, LEVELS),
            *spread(self.context.train_questions, STAYING_IN_REACH, self.levels_in_reach),
        ]
        stay = [*(question_text(q) + completion_text(q) for q in asked), *repairs]
        return staying_rows(
            self.context.training,
            stay,
            self.config.mix,
            self.config.training.seq_len,
            self.config.strength.question_share,
            self.config.strength.staying_rows,
        )

    def bake(
        self,
        number: int,
        cycle: str,
        text: str,
        prompt_ids: Sequence[int],
        teacher: Cognate,
        start: Cognate,
        trajectories: Trajectories,
        target: float,
        staying: TextBatches,
        stays_as: Cognate,
        origin: Cognate,
    ) -> Baked:
        """Bake a prompt fully into a copy of `start`, then interpolate back to the strength `target`.

        On the rows of rehearsal data drawn by `staying`, the student is distilled from `stays_as`.

        Raises:
            NothingToBakeError: when the prompt has no effect on the teacher.
        """
        effect = measure_baking(teacher, start, prompt_ids, trajectories.setting).kl_after
        if effect < NO_EFFECT_NATS:
            raise NothingToBakeError(
                f"with the prompt the model differs by {effect:.2g} nats per token from what it is without: there is "
                "nothing to bake"
            )
        full = copy.deepcopy(start)
        bake(
            teacher,
            full,
            prompt_ids,
            trajectories.teaching,
            staying,
            self.config.baking(),
            self.context.reporter,
            self.context.checkpoint,
            f"baking {number}",
            inference_copy(stays_as),
        )
        half = half_bake(teacher, start, full, prompt_ids, trajectories.setting, target, self.config.strength.tolerance)
        return Baked(cycle, text, tuple(prompt_ids), teacher, trajectories, origin, start, full, half, target)

    def harm(self, model: Cognate) -> dict[str, Any]:
        """Return what `model` lost on validation data relative to the parent.

        These are the ratio of bits per byte, the largest drop of a family's expected accuracy (upper bound of the
        paired CI), and that family's name.
        """
        size = self.context.batch_size
        if self._before is None:
            answers = measure_likelihoods(self.parent, self.context.tokenizer, self.harm_questions)
            self._before = answers, measure_windows(inference_copy(self.parent), self.context.selection.text, size).nats
        answers, nats = self._before
        after = measure_windows(inference_copy(model), self.context.selection.text, size).nats
        drops = family_drops(
            self.harm_questions, answers, measure_likelihoods(model, self.context.tokenizer, self.harm_questions)
        )
        worst = max(drops, key=lambda family: drops[family].high)
        return {"text_ratio": rate(after, nats).value, "family": worst, "family_drop": drops[worst].high}

    def _reach(self) -> Mapping[str, Any]:
        """Return the levels at which the parent produces a tenth of the worked completions, or all levels if none."""
        questions_by_level = by_level(self.context.selection.questions)
        likelihoods = {
            level: measure_likelihoods(
                self.parent, self.context.tokenizer, questions[: self.config.measurement.questions_per_level]
            )
            for level, questions in questions_by_level.items()
        }
        return {"levels": in_reach({level: measured.exact().value for level, measured in likelihoods.items()})}


def harmful(harm: Mapping[str, Any]) -> str:
    """Return the reason why a model with this harm is rolled back, or an empty string if it may be kept."""
    text, most = harm["text_ratio"], BAKES.text_ratio
    if text > most:
        return f"bits per byte on validation text were {text:.4f} of the parent's, at most {most}"
    drop, most = harm["family_drop"], BAKES.accuracy_drop
    if drop > most:
        return f"accuracy in the family {harm['family']} fell by up to {drop:.3f}, at most {most}"
    return ""


def standard_error(estimate: Estimate) -> float:
    """Return the standard error implied by a 95 % CI, assuming normality."""
    return (estimate.high - estimate.low) / (2 * Z95)


def as_json(trajectories: Trajectories) -> dict[str, Any]:
    """Return trajectories as a JSON document, for the cache."""
    return {
        name: [
            [list(t.prefix), list(t.continuation), list(t.own), list(t.history)] for t in getattr(trajectories, name)
        ]
        for name in Trajectories.__slots__
    }


def from_json(document: Mapping[str, Any]) -> Trajectories:
    """Return the trajectories that `as_json` encoded."""
    return Trajectories(
        *(
            tuple(Trajectory(*(tuple(part) for part in parts)) for parts in document[name])
            for name in Trajectories.__slots__
        )
    )
