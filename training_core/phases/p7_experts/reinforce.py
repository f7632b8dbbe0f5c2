"""Training of an expert by reward: REINFORCE on its own attempts (Transformer^2, arXiv:2501.06252, eq. 1 and 2).

    y_i ~ P(. | x_i)  at temperature 1,      r_i = +1 where the answer is right, else -1
    loss = 1/B sum_i [ -(r_i - b_i) log P(y_i | x_i)  +  kl_weight * sum_t KL(P_reference || P)(x_i, y_i,<t) ]

The B attempts of each step are sampled from the current p. b_i = 0 as in the paper, or with "group" the mean reward of
the other attempts at the same question (leave-one-out, Kool et al., 2019), which keeps the gradient unbiased. t runs
over the tokens that the model sampled itself. As in the authors' code (`Reinforce.step_optimization`), the gradient is
scaled down to a norm of 1e-3, and the divergence is an expectation under the reference.

**Differs from the paper**: AdamW's second moment decays with .95, not .999, and the learning rate has warm-up and
decay; there are tens of steps, not hundreds, and the learning rate is higher accordingly.

**Does not cover**: the gradient of the divergence through the sampling of attempts; as in the authors' code, the tokens
at which it is computed are treated as fixed.

Shape legend: B attempts, N own tokens of all attempts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from training_core.nn.cognate import Carry, Cognate
from training_core.nn.svf import ScaledLinear, SVFModel
from training_core.reporting import Reporter
from training_core.svf.supervised import (
    Baseline,
    DrawNumbers,
    ExpertLearningConfig,
    Learned,
    divergence_of,
    identity_of,
    moved,
    read,
    training_config,
)
from training_core.tasks.questions.attempts import Answerer, Attempt
from training_core.tasks.questions.likelihood import example_of
from training_core.tasks.questions.question import Question
from training_core.tasks.questions.sft_objective import Example, rows_of
from training_core.tasks.questions.tools import ToolBox
from training_core.training.device import best_device
from training_core.training.loop import StepResult, train


def advantages(rewards_QK: Tensor, baseline: Baseline) -> Tensor:
    """Return the advantages r - b of the attempts at each question, (questions, attempts)."""
    attempts = rewards_QK.shape[1]
    if baseline == "none":
        return rewards_QK
    # r - (mean of the others) = (r - mean of all) * K / (K - 1)
    return (rewards_QK - rewards_QK.mean(1, keepdim=True)) * attempts / (attempts - 1)


class RewardObjective:
    """The loss on attempts sampled at every call, for `training.loop.train`; a batch is question indices.

    Raises:
        ValueError: when there are no questions.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        tokenizer: Tokenizer,
        tools: ToolBox,
        reference: Cognate,
        config: ExpertLearningConfig,
    ) -> None:
        if not questions:
            raise ValueError("there are no questions to attempt: give an expert a family with questions")
        self.questions, self.tokenizer, self.tools = tuple(questions), tokenizer, tools
        self.reference, self.config = reference, config
        self._answerer: Answerer | None = None

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Sample attempts with `generator` and return the loss; nothing is carried from one step to the next."""
        policy, config = cast(Cognate, model), self.config
        attempts = self._draw(policy, batch.tolist(), generator)
        rows = moved(rows_of([own_tokens(attempt) for attempt in attempts]), batch.device)
        scored = read(policy, rows)
        log_probs_B = scored.log_probs_N.new_zeros(len(attempts)).index_add(0, scored.row_N, scored.log_probs_N)
        rewards_B = torch.tensor([1.0 if attempt.right else -1.0 for attempt in attempts], device=batch.device)
        advantages_B = advantages(rewards_B.view(-1, config.reward_attempts), config.reward_baseline).flatten()
        loss = -(advantages_B * log_probs_B).mean()
        metrics = {"reward": rewards_B.mean(), "own_tokens": torch.tensor(len(scored.row_N) / len(attempts))}
        if config.reward_kl_weight > 0:
            kl = scored.kl(self.reference, rows).sum() / len(attempts)
            loss = loss + config.reward_kl_weight * kl
            metrics["kl"] = kl.detach()
        return StepResult(loss, scored.all_BSV, None, metrics)

    def _draw(self, policy: Cognate, numbers: Sequence[int], generator: torch.Generator) -> list[Attempt]:
        """Sample `reward_attempts` attempts at each question, those of one question in a row."""
        if self._answerer is None:
            self._answerer = Answerer(
                copy.deepcopy(policy).eval(), self.tokenizer, self.tools, self.config.reward_max_tokens
            )
        merge_multipliers_(policy, self._answerer.model)
        asked = [self.questions[i] for i in numbers for _ in range(self.config.reward_attempts)]
        return self._answerer.attempt(asked, generator, temperature=1.0)


def learn_by_reward(
    svf: SVFModel,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    tools: ToolBox,
    config: ExpertLearningConfig,
    reporter: Reporter,
    *,
    checkpoint: Path | None = None,
    label: str = "expert reward",
) -> Learned:
    """Train an expert on correct answers to questions; an interrupted run resumes from `checkpoint`.

    Raises:
        ValueError: when there are no questions, when one is too long with its answer, or as `Expert.of`.
        TrainingDivergedError: as `train`.
    """
    svf.model.to(best_device())
    trained = svf.trainable()
    decisive = config.model_dump(include={n for n in ExpertLearningConfig.model_fields if n.startswith("reward_")})
    with svf.using(None) as reference:
        result = train(
            trained,
            RewardObjective(questions, tokenizer, tools, reference, config),
            DrawNumbers(len(questions), config.reward_batch),
            training_config(config, config.reward_steps, config.reward_batch, config.reward_lr, config.reward_clip),
            reporter,
            checkpoint=checkpoint,
            label=label,
            identity=identity_of(svf, [str(questions), tokenizer.to_str(), str(decisive), tools.sandbox_name]),
        )
    expert = svf.expert_of(trained)
    examples = [example_of(question, tokenizer) for question in questions]
    return Learned(expert, result, divergence_of(svf, expert, examples))


def own_tokens(attempt: Attempt) -> Example:
    """Return an attempt as an example whose loss covers only the tokens that the model sampled itself."""
    return Example(attempt.prompt_ids, attempt.completion_ids, tuple(role == "own" for role in attempt.roles))


@torch.no_grad()
def merge_multipliers_(policy: Cognate, drawn: Cognate) -> None:
    """Write W' for the current p of `policy` into the matrices of its copy `drawn`.

    Decoding runs token by token, so W' is computed once instead of at every token.
    """
    for layer, merged in zip(policy.modules(), drawn.modules(), strict=True):
        if isinstance(layer, ScaledLinear) and isinstance(merged, ScaledLinear) and layer.p is not None:
            merged.weight, merged.p = layer.singular.compose(layer.p.sigmoid()), None
