"""Training of one expert per group of families, by reward and by supervision, and of the LoRA baseline.

The better of the two experts on validation questions is kept. The baseline has as many bytes and learns from the same
completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from training_core.nn.cognate import Cognate
from training_core.nn.svf import Expert, SVFModel
from training_core.phases.p7_experts.config import ExpertsConfig
from training_core.phases.p7_experts.discovery import ExpertProfile
from training_core.phases.p7_experts.lora_baseline import learn_low_rank
from training_core.phases.p7_experts.reinforce import learn_by_reward
from training_core.record import Estimate
from training_core.store.result_cache import ResultCache
from training_core.svf.expert_accuracy import gain, of_each_family
from training_core.svf.supervised import learn_supervised
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.likelihood import AskedQuestions, example_of
from training_core.tasks.questions.question import Question

METHODS = ("reward", "supervised")


@dataclass(frozen=True, slots=True)
class TrainedExpert:
    """The expert that was kept, its training method, and gains on validation questions of its families by method.

    `rewards` is the mean reward at each step; `kl` by method is the divergence from the model without the expert, in
    nats per token. `rival_weights` are the matrices of the LoRA baseline that differ from the model's, by name.
    `rival_Q` is its expected accuracy on test questions of the families, empty until `Teacher.measure_rival`.
    """

    expert: Expert
    method: str
    gains: dict[str, Estimate]
    kl: dict[str, float]
    rewards: list[float]
    rival_bytes: int
    rival_weights: dict[str, Tensor]
    rival_Q: Tensor


class Teacher:
    """Trains experts one after the other; finished experts are cached on disk."""

    def __init__(
        self,
        svf: SVFModel,
        config: ExpertsConfig,
        context: QuestionContext,
        train: Sequence[Question],
        validation: Sequence[Question],
        cache: ResultCache,
    ) -> None:
        self.svf, self.config, self.context, self.cache = svf, config, context, cache
        self.train_questions, self.validation_questions = train, validation

    def teach(self, profile: ExpertProfile) -> TrainedExpert:
        """Train, or load from the cache, the expert of one group of families."""
        name = f"expert {profile.number}"
        tensors = self.cache.cached_tensors(name, lambda: self._learn(profile))
        experts = {method: Expert.from_tensors(tensors, f"{method}.") for method in METHODS}
        cached = self.cache.cached(f"{name} gains", lambda: self._gains(profile, experts, tensors["rival.validation"]))
        gains = {method: Estimate(**cached["gains"][method]) for method in (*METHODS, "low rank")}
        method = max(METHODS, key=lambda each: gains[each].value)
        matrices = self._matrices(tensors["rival.matrices"])
        return TrainedExpert(
            experts[method],
            method,
            gains,
            {each: float(tensors[f"{each} kl"]) for each in METHODS},
            tensors["rewards"].tolist(),
            int(tensors["rival.bytes"]),
            {matrix: tensors[f"rival.weight.{matrix}"] for matrix in matrices},
            torch.empty(0),
        )

    @torch.no_grad()
    def measure_rival(self, profile: ExpertProfile, trained: TrainedExpert) -> TrainedExpert:
        """Return `trained` with `rival_Q`, the LoRA baseline's expected accuracy on test questions."""
        rival = self.svf.plain()
        for name, weight in trained.rival_weights.items():
            matrix = rival.get_submodule(name).weight
            cast(Tensor, matrix).copy_(weight)
        return replace(trained, rival_Q=self._expected(rival, self.test(profile)))

    def _learn(self, profile: ExpertProfile) -> dict[str, Tensor]:
        """Train both experts and the LoRA baseline; return them and the baseline's accuracy on validation questions."""
        config, svf = self.config, self.svf
        label = f"expert {profile.number}"
        questions = self._questions(self.train_questions, profile, config.questions.expert_questions)
        examples = [example_of(question, self.context.tokenizer) for question in questions]
        rewarded = learn_by_reward(
            svf, questions, self.context.tokenizer, self.context.tools, config.learning, self.context.reporter,
            checkpoint=self.context.checkpoint, label=f"{label} reward",
        )  # fmt: skip
        supervised = learn_supervised(
            svf,
            examples,
            config.learning,
            self.context.reporter,
            checkpoint=self.context.checkpoint,
            label=f"{label} supervised",
        )
        rival = learn_low_rank(
            svf, examples, supervised.expert.num_bytes, config.learning, self.context.reporter,
            checkpoint=self.context.checkpoint, label=f"{label} low rank",
        )  # fmt: skip
        names = list(svf.layers)
        return {
            **rewarded.expert.tensors("reward."),
            **supervised.expert.tensors("supervised."),
            "reward kl": torch.tensor(rewarded.kl),
            "supervised kl": torch.tensor(supervised.kl),
            "rewards": torch.tensor(rewarded.curve("reward")["reward"], dtype=torch.float64),
            "rival.bytes": torch.tensor(rival.num_bytes),
            "rival.matrices": torch.tensor([names.index(name) for name in rival.layers]),
            "rival.validation": self._expected(rival.model, self.validation(profile)),
            **{f"rival.weight.{name}": cast(Tensor, rival.model.get_submodule(name).weight) for name in rival.layers},
        }

    def _gains(self, profile: ExpertProfile, experts: dict[str, Expert], rival_Q: Tensor) -> dict[str, Any]:
        asked = self.validation(profile)
        with self.svf.using(None) as model:
            none_Q = self._expected(model, asked)
        expected: dict[str, Tensor] = {}
        for method, expert in experts.items():
            with self.svf.using(expert.multipliers()) as model:
                expected[method] = self._expected(model, asked)
        expected["low rank"] = rival_Q
        return {
            "gains": {method: gain(with_Q, none_Q, asked.questions).document() for method, with_Q in expected.items()}
        }

    def validation(self, profile: ExpertProfile) -> AskedQuestions:
        """Return the validation questions on which the better method is chosen."""
        return self._asked(self._questions(self.validation_questions, profile, self.config.questions.chosen_questions))

    def test(self, profile: ExpertProfile) -> AskedQuestions:
        """Return the test questions, on which no choice is based."""
        held_out = [q for q in self.context.report.questions if q.level <= self.config.questions.hardest_level]
        return self._asked(self._questions(held_out, profile, self.config.questions.measured_questions))

    def _questions(self, questions: Sequence[Question], profile: ExpertProfile, number: int) -> list[Question]:
        return of_each_family([question for question in questions if question.family in profile.families], number)

    def _asked(self, questions: Sequence[Question]) -> AskedQuestions:
        return AskedQuestions(questions, self.context.tokenizer, self.svf.model.config.max_seq_len)

    def _expected(self, model: Cognate, asked: AskedQuestions) -> Tensor:
        device = next(model.parameters()).device
        return asked.likelihoods(lambda _, inputs_BS: model(inputs_BS.to(device)).logits).expected_Q()

    def _matrices(self, numbers: Tensor) -> list[str]:
        names = list(self.svf.layers)
        return [names[number] for number in numbers.tolist()]
