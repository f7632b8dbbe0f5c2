"""Mixing coefficients of experts for a task of which a few solved examples are known: the cross-entropy method.

    a ~ N(mean, std), clamped to [0, 1]; the first of a population is the best so far
    mean, std <- of the elites: the fifth of the population with the most exact answers
    m = 1 + sum_k a_k (m_k - 1)                                                     (`singular.mixture`)

References
    [1] Sun, Cetin and Tang, "Transformer^2: Self-adaptive LLMs" (2025, arXiv:2501.06252), section 3.2 C.
    [2] The authors' code, SakanaAI/self-adaptive-llms, `optim_modules.CEM`, from which all numbers are.
    [3] Rubinstein and Kroese, "The Cross-Entropy Method" (2004).

**Differs from the paper.** In [2] likelihoods break ties between the best alone, and are those of the drawn answers
that were right; which of equals are elites is left to the sorting. Here everything is ranked by (exact answers, mean
log-likelihood per token of the known answers), and of equals the earlier comes first: with a handful of shots most of
a population ties. The coefficients hold for all layers; in [2] every layer can have its own.

**Does not cover**: an optimum for certain. With six elites the spread can be gone before the mean has arrived, as in
about one of ten runs on a smooth score of three coefficients.

Shape legend: N members of a population, K experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from training_core.nn.svf import Expert, SVFModel, mixture
from training_core.tasks.questions.likelihood import AskedQuestions

Score = tuple[float, float]  # exact answers, mean log-likelihood of the known answers: compared in this order


class FewShotConfig(BaseModel):
    """The cross-entropy method's numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(32, ge=4, description="Mixtures of experts tried in each round of few-shot search")
    elites: float = Field(0.2, gt=0, le=1, description="Share of them that the next round is drawn around")
    rounds: int = Field(10, ge=1, description="Rounds of few-shot search")


@dataclass(frozen=True, slots=True)
class FewShot:
    """The best coefficients (experts,), their score, and the best score after each round."""

    weights_K: Tensor
    score: Score
    history: tuple[Score, ...]

    def document(self) -> dict[str, Any]:
        """As part of an exhibit."""
        return {
            "weights": self.weights_K.tolist(),
            "exact": self.score[0],
            "log_likelihood": self.score[1],
            "history": [list(score) for score in self.history],
        }


def cross_entropy_method(
    score: Callable[[Tensor], Score], num_experts: int, config: FewShotConfig, generator: torch.Generator
) -> FewShot:
    """The coefficients in [0, 1] (experts,) float32 with the highest score that were found.

    Raises:
        ValueError: for no experts, or fewer than two elites, which have no spread.
    """
    elites = int(config.elites * config.population)
    if num_experts < 1 or elites < 2:
        raise ValueError(
            f"the search takes an expert and two elites, got {num_experts} experts and {elites} elites: raise "
            "few_shot_population or few_shot_elites"
        )
    mean_K, std_K = torch.full((num_experts,), 1 / num_experts), torch.full((num_experts,), 0.5)
    best_K = mean_K
    history: list[Score] = []
    for _ in range(config.rounds):
        drawn_NK = torch.randn(config.population, num_experts, generator=generator)
        members_NK = (mean_K + std_K * drawn_NK).clamp(0, 1)
        members_NK[0] = best_K
        scores = [score(member_K) for member_K in members_NK]
        ranked = sorted(range(len(scores)), key=lambda member: scores[member], reverse=True)  # equals stay in order
        best_K = members_NK[ranked[0]].clone()
        history.append(scores[ranked[0]])
        mean_K, std_K = members_NK[ranked[:elites]].mean(0), members_NK[ranked[:elites]].std(0)  # unbiased
    return FewShot(best_K, history[-1], tuple(history))


def few_shot_weights(
    svf: SVFModel,
    experts: Sequence[Expert],
    shots: AskedQuestions,
    config: FewShotConfig,
    generator: torch.Generator,
) -> FewShot:
    """Coefficients for the task that `shots` are examples of.

    Raises:
        ValueError: as `cross_entropy_method`.
    """
    device = next(svf.model.parameters()).device

    def score(weights_K: Tensor) -> Score:
        multipliers = {name: m_R.to(device) for name, m_R in mixture(experts, weights_K).items()}
        with svf.using(multipliers) as model:
            told = shots.likelihoods(lambda _, inputs_BS: model(inputs_BS.to(device)).logits)
        return float(told.exact_Q.sum()), float((told.log_prob_Q / told.tokens_Q).mean())

    return cross_entropy_method(score, len(experts), config, generator)
