"""One expert of each group of families: by reward and from worked completions, the better of them kept, and what a
low-rank adapter of as many bytes learns from the same completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.evaluation.intervals import Estimate
from training_core.experts.answers import gain, of_each_family
from training_core.experts.config import ExpertsConfig
from training_core.experts.discovery import ExpertProfile
from training_core.experts.learning import learn_supervised
from training_core.experts.low_rank_rival import learn_low_rank
from training_core.experts.reinforce import learn_by_reward
from training_core.experts.singular import Expert, Scalable
from training_core.models.cognate import Cognate
from training_core.questions.bank import QuestionBank
from training_core.questions.likelihood import AskedQuestions, example_of
from training_core.questions.question import Question
from training_core.questions.tools import ToolBox
from training_core.training.reporting import Reporter
from training_core.training.stages import Stages

METHODS = ("reward", "supervised")


@dataclass(frozen=True, slots=True)
class Taught:
    """An expert that was kept, how it was learned, and gains on validation questions of its families by method.

    `rewards` is the mean reward over the steps; `kl` by method, nats per token from the model without the expert.
    `rival_Q` is the expected accuracy of the low-rank adapter on test questions of its families, in their order.
    """

    expert: Expert
    method: str
    gains: dict[str, Estimate]
    kl: dict[str, float]
    rewards: list[float]
    rival_bytes: int
    rival_matrices: tuple[str, ...]
    rival_Q: Tensor


class Teacher:
    """Trains experts one after the other; each is kept on disk when it is finished."""

    def __init__(
        self,
        scalable: Scalable,
        config: ExpertsConfig,
        bank: QuestionBank,
        tokenizer: Tokenizer,
        tools: ToolBox,
        stages: Stages,
        reporter: Reporter,
        checkpoint: Path | None,
    ) -> None:
        self.scalable, self.config, self.bank = scalable, config, bank
        self.tokenizer, self.tools, self.stages = tokenizer, tools, stages
        self.reporter, self.checkpoint = reporter, checkpoint

    def teach(self, profile: ExpertProfile) -> Taught:
        """The expert of one group of families."""
        name = f"expert {profile.number}"
        tensors = self.stages.keep_tensors(name, lambda: self._learn(profile))
        experts = {method: Expert.from_tensors(tensors, f"{method}.") for method in METHODS}
        told = self.stages.keep(f"{name} gains", lambda: self._gains(profile, experts, tensors["rival.validation"]))
        gains = {method: Estimate(**told["gains"][method]) for method in (*METHODS, "low rank")}
        method = max(METHODS, key=lambda its: gains[its].value)
        matrices = tuple(self._matrices(tensors["rival.matrices"]))
        return Taught(
            experts[method],
            method,
            gains,
            {its: float(tensors[f"{its} kl"]) for its in METHODS},
            tensors["rewards"].tolist(),
            int(tensors["rival.bytes"]),
            matrices,
            tensors["rival.test"],
        )

    def _learn(self, profile: ExpertProfile) -> dict[str, Tensor]:
        """Both experts, and what the low-rank adapter makes of validation and test questions."""
        config, scalable = self.config, self.scalable
        label = f"expert {profile.number}"
        questions = self._questions(self.bank.train, profile, config.expert_questions)
        examples = [example_of(question, self.tokenizer) for question in questions]
        rewarded = learn_by_reward(
            scalable, questions, self.tokenizer, self.tools, config, self.reporter,
            checkpoint=self.checkpoint, label=f"{label} reward",
        )  # fmt: skip
        supervised = learn_supervised(
            scalable, examples, config, self.reporter, checkpoint=self.checkpoint, label=f"{label} supervised"
        )
        rival = learn_low_rank(
            scalable, examples, supervised.expert.num_bytes, config, self.reporter,
            checkpoint=self.checkpoint, label=f"{label} low rank",
        )  # fmt: skip
        names = list(scalable.layers)
        return {
            **rewarded.expert.tensors("reward."),
            **supervised.expert.tensors("supervised."),
            "reward kl": torch.tensor(rewarded.kl),
            "supervised kl": torch.tensor(supervised.kl),
            "rewards": torch.tensor(rewarded.curve("reward")["reward"], dtype=torch.float64),
            "rival.bytes": torch.tensor(rival.num_bytes),
            "rival.matrices": torch.tensor([names.index(name) for name in rival.layers]),
            "rival.validation": self._expected(rival.model, self.validation(profile)),
            "rival.test": self._expected(rival.model, self.test(profile)),
        }

    def _gains(self, profile: ExpertProfile, experts: dict[str, Expert], rival_Q: Tensor) -> dict[str, Any]:
        asked = self.validation(profile)
        with self.scalable.using(None) as model:
            none_Q = self._expected(model, asked)
        found: dict[str, Tensor] = {}
        for method, expert in experts.items():
            with self.scalable.using(expert.multipliers()) as model:
                found[method] = self._expected(model, asked)
        found["low rank"] = rival_Q
        return {"gains": {method: gain(its_Q, none_Q, asked.questions).document() for method, its_Q in found.items()}}

    def validation(self, profile: ExpertProfile) -> AskedQuestions:
        """Questions that the better method is chosen on."""
        return self._asked(self._questions(self.bank.validation, profile, self.config.chosen_questions))

    def test(self, profile: ExpertProfile) -> AskedQuestions:
        """Questions that nothing is chosen on."""
        return self._asked(self._questions(self.bank.test, profile, self.config.measured_questions))

    def _questions(self, questions: Sequence[Question], profile: ExpertProfile, number: int) -> list[Question]:
        return of_each_family([question for question in questions if question.family in profile.families], number)

    def _asked(self, questions: Sequence[Question]) -> AskedQuestions:
        return AskedQuestions(questions, self.tokenizer, self.scalable.model.config.max_seq_len)

    def _expected(self, model: Cognate, asked: AskedQuestions) -> Tensor:
        device = next(model.parameters()).device
        return asked.likelihoods(lambda _, inputs_BS: model(inputs_BS.to(device)).logits).expected_Q()

    def _matrices(self, numbers: Tensor) -> list[str]:
        names = list(self.scalable.layers)
        return [names[number] for number in numbers.tolist()]
