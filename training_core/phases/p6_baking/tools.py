"""The A-cycle: repair broken code with a tool, and do it without being told how.

    attempt    fresh micro-repositories, the tool prompt in front; edits are applied and tested in the sandbox
    learn      what resolved its issue, and the gold fix where the attempt did not, the prompt still in front; without
               the prompt the model stays as it was
    bake       the prompted model's own trajectories, by half, into the weights
    score      share of validation micro-repositories resolved without the prompt

Replies of the tool are the sandbox's, in lessons and in trajectories, and are never learned.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch

from training_core.data.batches import TEXT_ONLY
from training_core.distill.trajectories import Trajectory
from training_core.evaluation.intervals import wilson
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.phases.p6_baking.context import (
    SEPARATOR,
    STAYING_REPAIRS,
    Baked,
    CycleContext,
    Trajectories,
    as_json,
    from_json,
)
from training_core.record import Estimate
from training_core.tasks.questions.likelihood import example_of
from training_core.tasks.questions.measurement import spread
from training_core.tasks.questions.sft_objective import BesideText, Example, LessonObjective, Memory
from training_core.tasks.questions.tools import segments
from training_core.tasks.repair.attempts import RepairAttempt, attempt_repairs, demonstration
from training_core.tasks.repair.instances import Instance
from training_core.tasks.repair.micro_repositories import gold_text, instance_text, make_instances
from training_core.training.loop import step_generator, train

REHEARSED_QUESTIONS = 512


class ToolCycle:
    """Iterations of the A-cycle. `prompt` is the tool prompt with its line break, `prompt_ids` its tokens."""

    name: Literal["tools"] = "tools"

    def __init__(self, material: CycleContext) -> None:
        self.material = material
        self.prompt = material.config.lessons.tool_prompt + SEPARATOR
        self.prompt_ids = tuple(material.context.tokenizer.encode(self.prompt).ids)
        self.examples: list[Example] = []
        self._last: Baked | None = None
        self._untaught = material.parent  # what stood before the last lesson
        if not material.config.lessons.tool_prompt.strip():
            raise ValueError("tool_prompt is empty, so that there is nothing to bake: say how the tool is called")
        self.validation = self.instances(
            "validation", material.config.measurement.scored_repairs, material.config.training.seed
        )
        self._check_length()

    @cached_property
    def test(self) -> list[Instance]:
        """Test micro-repositories.

        Raises:
            SealedDataError: before the product is fixed.
        """
        config = self.material.config
        self.material.context.require_fixed()
        return self.instances("test", config.measurement.measured_repairs, config.training.seed)

    def _check_length(self) -> None:
        """There must be as many programs as are asked for, and the tool prompt must leave room for a repair: refused
        before anything is trained."""
        config, longest = self.material.config, self.material.parent.config.max_seq_len
        drawn = [
            *self.instances(
                "train",
                max(config.lessons.repairs + config.lessons.shown_repairs, config.strength.num_trajectories),
                config.training.seed,
            ),
            *self.instances(
                "validation",
                max(config.measurement.scored_repairs, 2 * config.strength.held_out_trajectories),
                config.training.seed,
            ),
            *self.instances("test", config.measurement.measured_repairs, config.training.seed),
        ]
        most = max(len(self.material.context.tokenizer.encode(instance_text(i)).ids) for i in drawn)
        if len(self.prompt_ids) + most + config.lessons.repair_tokens > longest:
            raise ValueError(
                f"{len(self.prompt_ids)} tokens of tool_prompt, {most} of a micro-repository and "
                f"{config.lessons.repair_tokens} of its repair exceed max_seq_len = {longest}: shorten tool_prompt, or "
                "lower repair_tokens"
            )

    def instances(self, split: str, number: int, seed: int) -> list[Instance]:
        """Micro-repositories of a split, as hard as is configured."""
        config = self.material.config
        return make_instances(
            split, number, seed, most_lines=config.lessons.repair_lines, num_names=config.lessons.repair_names
        )

    def score(self, model: Cognate) -> Estimate:
        """Share of validation micro-repositories that `model` resolves without the prompt, greedily."""
        resolved = [attempt.resolved for attempt in self.repair(model, self.validation)]
        return wilson(sum(resolved), len(resolved))

    def repair(
        self, model: Cognate, instances: Sequence[Instance], *, prompted: bool = False, temperature: float = 0.0
    ) -> list[RepairAttempt]:
        """One attempt at each instance; greedy ones do not depend on the seed."""
        material = self.material
        return attempt_repairs(
            inference_copy(model),
            material.context.tokenizer,
            instances,
            material.context.sandbox,
            step_generator(material.config.training.seed, -6_000_000),
            preamble=self.prompt if prompted else "",
            temperature=temperature,
            max_tokens=material.config.lessons.repair_tokens,
        )

    def iterate(self, number: int, model: Cognate, target: float) -> Baked:
        """One iteration, from the current model: where that is the last iteration's, baking goes on towards the same
        teacher, else it begins with a lesson.

        Raises:
            NothingToBakeError: when the prompt has no effect on the model.
        """
        last = self._last
        if last is not None and last.half.model is model:
            teacher, origin, trajectories, start = last.teacher, last.origin, last.trajectories, model
        else:
            self._untaught = model
            teacher, origin, trajectories = self._begin(number, model)
            start = origin
        self._last = self.material.bake(
            number,
            self.name,
            self.prompt,
            self.prompt_ids,
            teacher,
            start,
            trajectories,
            target,
            self.material.staying(),
            self._untaught,
            origin,
        )
        return self._last

    def taught(self) -> list[str]:
        """Repairs as text, without the prompt: what other bakes must leave as it is."""
        instances = self.instances("train", STAYING_REPAIRS, self.material.config.training.seed + 1)
        return [instance_text(instance) + gold_text(instance) for instance in instances]

    def _begin(self, number: int, model: Cognate) -> tuple[Cognate, Cognate, Trajectories]:
        """A lesson: who answers with the prompt, with what baking it in begins, and what that teacher writes."""
        cache = self.material.cache
        lesson = cache.cached(f"lesson {number}", lambda: self._lesson(number, model))
        self.examples += [Example(*(tuple(part) for part in example)) for example in lesson["examples"]]
        taught = self._learn(number, model)
        teacher = inference_copy(taught)
        drawn = cache.cached(f"trajectories {number}", lambda: as_json(self._trajectories(number, teacher)))
        return teacher, taught, from_json(drawn)

    def _lesson(self, number: int, model: Cognate) -> Mapping[str, Any]:
        """Attempts at fresh instances, and true repairs of those that failed and of more, with what the tool says."""
        config, tokenizer, sandbox = (
            self.material.config,
            self.material.context.tokenizer,
            self.material.context.sandbox,
        )
        instances = self.instances(
            "train", config.lessons.repairs + config.lessons.shown_repairs, config.training.seed + 1 + number
        )
        attempts = self.repair(model, instances[: config.lessons.repairs], prompted=True)
        shown = [a.instance for a in attempts if not a.resolved] + instances[config.lessons.repairs :]
        found = [(a.prompt_ids, a.completion_ids, a.own) for a in attempts if a.resolved]
        found += [demonstration(tokenizer, instance, sandbox, preamble=self.prompt) for instance in shown]
        asked = [q for q in self.material.context.train_questions if any(put_in for _, put_in in segments(q.solution))]
        start = number * config.lessons.tool_questions
        for question in asked[start : start + config.lessons.tool_questions]:
            example = example_of(question, tokenizer)
            found.append((example.prompt, example.completion, example.learned))
        return {"examples": [[list(part) for part in trajectory] for trajectory in found]}

    def _learn(self, number: int, model: Cognate) -> Cognate:
        """A copy of `model` that learned from all lessons so far. Without the prompt it stays as it was at repairs as
        well, so that the prompt is what makes the difference that is baked in."""
        material, config = self.material, self.material.config
        taught = copy.deepcopy(model)
        rehearsed = spread(material.context.train_questions, REHEARSED_QUESTIONS, material.levels_in_reach)
        before = inference_copy(model)
        memories = [
            Memory(
                [example_of(question, material.context.tokenizer) for question in rehearsed],
                config.lessons.rehearsed_tokens,
                config.lessons.rehearsal_weight,
                before,
            )
        ]
        if config.lessons.unprompted_repairs:
            unprompted = self.instances("train", config.lessons.unprompted_repairs, config.training.seed + 1)
            shown = [
                Example(*demonstration(material.context.tokenizer, each, material.context.sandbox))
                for each in unprompted
            ]
            memories.append(Memory(shown, config.lessons.unprompted_tokens, config.lessons.unprompted_weight, before))

        def text(generator: torch.Generator) -> torch.Tensor:
            return material.context.training.batch(
                TEXT_ONLY, max(2, config.lessons.batch_size // 2), config.lessons.text_tokens + 1, generator
            )

        def batches(generator: torch.Generator) -> torch.Tensor:
            return torch.randint(len(self.examples), (config.lessons.batch_size,), generator=generator)

        train(
            taught,
            BesideText(LessonObjective(self.examples, *memories), text, config.lessons.text_weight, before),
            batches,
            config.lesson_training(),
            material.context.reporter,
            checkpoint=material.context.checkpoint,
            label=f"lesson {number}",
            optimizer_steps_per_batch=taught.config.num_supervision,
            identity=f"{material.cache.fingerprint}/{number}",
        )
        return taught

    def _trajectories(self, number: int, teacher: Cognate) -> Trajectories:
        """What the prompted teacher writes, with the sandbox's replies: training instances, then validation ones."""
        config = self.material.config
        held_out = 2 * config.strength.held_out_trajectories
        instances = [
            *self.instances("train", config.strength.num_trajectories, config.training.seed + 1001 + number),
            *self.instances("validation", held_out, config.training.seed + 2001 + number),
        ]
        drawn = [
            Trajectory(attempt.prompt_ids[len(self.prompt_ids) :], attempt.completion_ids, attempt.own)
            for attempt in self.repair(teacher, instances, prompted=True, temperature=1.0)
        ]
        first, second = (
            config.strength.num_trajectories,
            config.strength.num_trajectories + config.strength.held_out_trajectories,
        )
        return Trajectories(tuple(drawn[:first]), tuple(drawn[first:second]), tuple(drawn[second:]))
