"""Dream consolidation: training on the next level without forgetting earlier ones, compared with plain replay.

Three arms start from the same model and train on the same next level for the same number of steps: one without
rehearsal ("none"), one with examples of earlier levels that the model was trained on ("replay"), and one with the
model's own samples on questions of earlier levels, drawn at a higher temperature, with its former distribution as the
target ("dreams"). Replay and dreams rehearse the same number of tokens in every batch.

    forgetting of an arm = mean over earlier levels of (accuracy before - accuracy of the arm), paired by question

**Differs from** "Dreaming is All You Need" (arXiv:2409.01633), whose dreams are reconstructions in a classifier and
which does not measure forgetting; the loss on dreams is that of self-distillation (arXiv:2601.19897).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.phases.p5_curriculum.config import CurriculumConfig
from training_core.phases.p5_curriculum.practice import LevelStanding, Practice, PracticeResult, examples_of
from training_core.record import Estimate
from training_core.tasks.questions.attempts import Answerer, Attempt
from training_core.tasks.questions.measurement import Answered, mean_difference
from training_core.tasks.questions.sft_objective import Example, Memory
from training_core.training.loop import step_generator

ARMS = ("none", "replay", "dreams")
Answer = Callable[[Cognate], Answered]


@dataclass(frozen=True, slots=True)
class ConsolidationArm:
    """One way to train on the next level: the model, its answers to validation questions, and the tokens rehearsed."""

    name: str
    model: Cognate
    answered: Answered
    rehearsed_tokens: int
    forgetting: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Consolidation:
    """The answers before consolidation, the arms, the earlier levels, and the levels that the arms trained on."""

    before: Answered
    arms: Mapping[str, ConsolidationArm]
    earlier: tuple[int, ...]
    following: tuple[int, ...]

    def saved_by_dreams(self, other: str) -> Estimate:
        """Return the paired difference in accuracy on earlier levels, dreams minus `other`."""
        return mean_difference(self.arms[other].answered, self.arms["dreams"].answered, self.earlier)

    def metrics(self) -> dict[str, float]:
        """Return forgetting and gains as the flat metrics of a bundle."""
        metrics: dict[str, float] = {}
        for name, arm in self.arms.items():
            metrics |= arm.forgetting.metrics(f"forgetting_{name}") | arm.gain.metrics(f"next_level_gain_{name}")
        for other in ("none", "replay"):
            metrics |= self.saved_by_dreams(other).metrics(f"dreams_over_{other}")
        return metrics | {"rehearsed_tokens": float(self.arms["dreams"].rehearsed_tokens)}


def consolidate(
    practice: Practice, result: PracticeResult, standing: LevelStanding, config: CurriculumConfig, answer: Answer
) -> Consolidation:
    """Train and evaluate the three arms; `practice.model` is not changed.

    `answer` asks validation questions, from which the edge is estimated again. The next levels are the levels beyond
    the edge that `answer` covers. Earlier levels are those within the edge with correct attempts in practice, or all
    levels with correct attempts if none of them is within the edge.
    """
    base = practice.model
    before = answer(base)
    standing.update({level: (int(before.right(level).sum()), len(before.right(level))) for level in before.attempts})
    focus = standing.focus(config.practice.focus_levels)
    following = [level for level in focus if level in before.attempts] or [max(before.attempts)]
    made = practice.attempt_round(config.practice.rounds + config.practice.policy_rounds, following)
    news = [attempt for attempt in made if attempt.right]
    learned = result.right()
    levels = sorted({attempt.question.level for attempt in learned})
    earlier = [level for level in levels if level < following[0]] or levels
    past = _distinct([attempt for attempt in learned if attempt.question.level in earlier], config)
    memories = {
        "none": None,
        "replay": Memory(examples_of(past), config.consolidation.memory_tokens, config.consolidation.memory_weight),
        "dreams": Memory(
            _dream(practice, past, config),
            config.consolidation.memory_tokens,
            config.consolidation.memory_weight,
            _frozen(base),
        ),
    }
    training = config.training.model_copy(
        update={
            "steps": config.consolidation.steps,
            "muon_lr": config.training.muon_lr * config.consolidation.lr_factor,
            "adamw_lr": config.training.adamw_lr * config.consolidation.lr_factor,
        }
    )
    arms: dict[str, ConsolidationArm] = {}
    for name in ARMS:
        memory = memories[name]
        model = copy.deepcopy(base)
        practice.learn_beside(model, f"consolidation {name}", news, memory, training)
        answered = answer(model)
        arms[name] = ConsolidationArm(
            name,
            model,
            answered,
            0 if memory is None else config.consolidation.steps * config.consolidation.memory_tokens,
            mean_difference(answered, before, earlier),
            mean_difference(before, answered, following),
        )
    return Consolidation(before, arms, tuple(earlier), tuple(following))


def _dream(practice: Practice, past: Sequence[Attempt], config: CurriculumConfig) -> list[Example]:
    """Sample the base model's answers, right or wrong, to questions of earlier levels at a higher temperature."""
    answerer = Answerer(inference_copy(practice.model), practice.tokenizer, practice.tools, config.practice.max_tokens)
    generator = step_generator(config.training.seed, 2_000_000)
    questions = [attempt.question for attempt in past]
    return examples_of(answerer.attempt(questions, generator, temperature=config.consolidation.dream_temperature))


def _distinct(attempts: Sequence[Attempt], config: CurriculumConfig) -> list[Attempt]:
    """Draw at most `num_dreams` attempts at distinct questions, using the configured seed."""
    by_prompt = list({attempt.question.prompt: attempt for attempt in attempts}.values())
    order = torch.randperm(len(by_prompt), generator=torch.Generator().manual_seed(config.training.seed)).tolist()
    return [by_prompt[i] for i in order[: config.consolidation.num_dreams]]


def _frozen(model: Cognate) -> Cognate:
    return inference_copy(model).requires_grad_(False)
