"""Few-shot adaptation: mixing coefficients of experts for a task with a few solved examples, by the cross-entropy
method.

    a ~ N(mean, std), clamped to [0, 1]; the first member of a population is the best so far
    mean, std <- those of the elites: the fifth of the population with the most exact answers
    m = 1 + sum_k a_k (m_k - 1)                                                     (`nn.svf.mixture`)

References
    [1] Sun, Cetin and Tang, "Transformer^2: Self-adaptive LLMs" (2025, arXiv:2501.06252), section 3.2 C.
    [2] The authors' code, SakanaAI/self-adaptive-llms, `optim_modules.CEM`, the source of all default values.
    [3] Rubinstein and Kroese, "The Cross-Entropy Method" (2004).

**Differs from the paper.** In [2], likelihoods only break ties between the best, and are those of the sampled answers
that were right; which of several equals become elites is left to the sort. Here, members are ranked by (exact answers,
mean log-likelihood per token of the known answers), and of equals the earlier comes first, because with a handful of
shots most of a population ties. The coefficients apply to all layers; in [2] every layer can have its own.

**Does not cover**: a guaranteed optimum. With six elites the standard deviation can vanish before the mean has
converged, as in about one of ten runs on a smooth score of three coefficients.

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

Score = tuple[float, float]  # exact answers, mean log-likelihood of the known answers; compared lexicographically


class FewShotConfig(BaseModel):
    """Settings of the cross-entropy method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(32, ge=4, description="Mixtures of experts evaluated per round")
    elites: float = Field(0.2, gt=0, le=1, description="Share of the population from which the next round is drawn")
    rounds: int = Field(10, ge=1, description="Rounds of the few-shot search")


@dataclass(frozen=True, slots=True)
class FewShot:
    """The best coefficients (experts,), their score, and the best score after each round."""

    weights_K: Tensor
    score: Score
    history: tuple[Score, ...]

    def document(self) -> dict[str, Any]:
        """Return the coefficients and scores as JSON, for the cache."""
        return {
            "weights": self.weights_K.tolist(),
            "exact": self.score[0],
            "log_likelihood": self.score[1],
            "history": [list(score) for score in self.history],
        }


def cross_entropy_method(
    score: Callable[[Tensor], Score], num_experts: int, config: FewShotConfig, generator: torch.Generator
) -> FewShot:
    """Search for the coefficients in [0, 1] (experts,) float32 with the highest score.

    Raises:
        ValueError: for no experts, or fewer than two elites, which have no standard deviation.
    """
    elites = int(config.elites * config.population)
    if num_experts < 1 or elites < 2:
        raise ValueError(
            f"the search needs an expert and two elites, got {num_experts} experts and {elites} elites: raise "
            "few_shot.population or few_shot.elites"
        )
    mean_K, std_K = torch.full((num_experts,), 1 / num_experts), torch.full((num_experts,), 0.5)
    best_K = mean_K
    history: list[Score] = []
    for _ in range(config.rounds):
        drawn_NK = torch.randn(config.population, num_experts, generator=generator)
        members_NK = (mean_K + std_K * drawn_NK).clamp(0, 1)
        members_NK[0] = best_K
        scores = [score(member_K) for member_K in members_NK]
        ranked = sorted(
            range(len(scores)), key=lambda member: scores[member], reverse=True
        )  # stable: equals stay in order
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
    """Find coefficients for the task that `shots` are examples of.

    Raises:
        ValueError: as `cross_entropy_method`.
    """
    device = next(svf.model.parameters()).device

    def score(weights_K: Tensor) -> Score:
        multipliers = {name: m_R.to(device) for name, m_R in mixture(experts, weights_K).items()}
        with svf.using(multipliers) as model:
            likelihoods = shots.likelihoods(lambda _, inputs_BS: model(inputs_BS.to(device)).logits)
        return float(likelihoods.exact_Q.sum()), float((likelihoods.log_prob_Q / likelihoods.tokens_Q).mean())

    return cross_entropy_method(score, len(experts), config, generator)
