"""The A-cycle: the model learns to repair code with a tool when prompted, then the prompt is baked in.

    attempt    fresh micro-repositories, with the tool prompt; edits are applied and tested in the sandbox
    learn      successful attempts, and the gold fix of failed ones, still with the prompt; rehearsal without the prompt
               keeps the unprompted model unchanged
    bake       the prompted model's own trajectories, to half strength, into the weights
    score      resolve rate on validation micro-repositories without the prompt

Tool replies come from the sandbox, in lessons and in trajectories, and are masked out of the loss.
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
    """Iterations of the A-cycle. `prompt` is the tool prompt with a line break, `prompt_ids` its tokens."""

    name: Literal["tools"] = "tools"

    def __init__(self, material: CycleContext) -> None:
        self.material = material
        self.prompt = material.config.lessons.tool_prompt + SEPARATOR
        self.prompt_ids = tuple(material.context.tokenizer.encode(self.prompt).ids)
        self.examples: list[Example] = []
        self._last: Baked | None = None
        self._untaught = material.parent  # the model before the last lesson
        if not material.config.lessons.tool_prompt.strip():
            raise ValueError("tool_prompt is empty, so that there is nothing to bake: say how the tool is called")
        self.validation = self.instances(
            "validation", material.config.measurement.scored_repairs, material.config.training.seed
        )
        self._check_length()

    @cached_property
    def test(self) -> list[Instance]:
        """The test micro-repositories.

        Raises:
            SealedDataError: before the product is fixed.
        """
        config = self.material.config
        self.material.context.require_fixed()
        return self.instances("test", config.measurement.measured_repairs, config.training.seed)

    def _check_length(self) -> None:
        """Check, before any training, that there are enough programs and that prompt and repair fit max_seq_len."""
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
        """Return `number` micro-repositories of a split, of the configured difficulty."""
        config = self.material.config
        return make_instances(
            split, number, seed, most_lines=config.lessons.repair_lines, num_names=config.lessons.repair_names
        )

    def score(self, model: Cognate) -> Estimate:
        """Return the resolve rate of `model` on validation micro-repositories, decoding greedily without the prompt."""
        resolved = [attempt.resolved for attempt in self.repair(model, self.validation)]
        return wilson(sum(resolved), len(resolved))

    def repair(
        self, model: Cognate, instances: Sequence[Instance], *, prompted: bool = False, temperature: float = 0.0
    ) -> list[RepairAttempt]:
        """Make one attempt at each instance; greedy attempts do not depend on the seed."""
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
        """Run one iteration, starting from the current model.

        If that is the model of this cycle's last iteration, baking continues towards the same teacher. Otherwise the
        iteration begins with a lesson.

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
        """Return repairs as text without the prompt, as rehearsal data for other bakes."""
        instances = self.instances("train", STAYING_REPAIRS, self.material.config.training.seed + 1)
        return [instance_text(instance) + gold_text(instance) for instance in instances]

    def _begin(self, number: int, model: Cognate) -> tuple[Cognate, Cognate, Trajectories]:
        """Give a lesson; return the prompted teacher, the model to bake into, and the teacher's trajectories."""
        cache = self.material.cache
        lesson = cache.cached(f"lesson {number}", lambda: self._lesson(number, model))
        self.examples += [Example(*(tuple(part) for part in example)) for example in lesson["examples"]]
        taught = self._learn(number, model)
        teacher = inference_copy(taught)
        drawn = cache.cached(f"trajectories {number}", lambda: as_json(self._trajectories(number, teacher)))
        return teacher, taught, from_json(drawn)

    def _lesson(self, number: int, model: Cognate) -> Mapping[str, Any]:
        """Return the examples of a lesson: successful attempts at fresh instances, and demonstrated gold repairs."""
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
        examples = [(a.prompt_ids, a.completion_ids, a.own) for a in attempts if a.resolved]
        examples += [demonstration(tokenizer, instance, sandbox, preamble=self.prompt) for instance in shown]
        asked = [q for q in self.material.context.train_questions if any(put_in for _, put_in in segments(q.solution))]
        start = number * config.lessons.tool_questions
        for question in asked[start : start + config.lessons.tool_questions]:
            example = example_of(question, tokenizer)
            examples.append((example.prompt, example.completion, example.learned))
        return {"examples": [[list(part) for part in trajectory] for trajectory in examples]}

    def _learn(self, number: int, model: Cognate) -> Cognate:
        """Return a copy of `model` trained on all lessons so far.

        Rehearsal keeps it unchanged at repairs without the prompt, so that the effect of the prompt is what baking
        transfers.
        """
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
        """Sample the prompted teacher on training and then validation instances, with replies from the sandbox."""
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
