"""The policy that samples thoughts, and its gradient: REINFORCE (Williams, 1992) with a baseline.

An action is a vocabulary token or, as the last index, the end of the thought. The log-probability that the gradient
uses is that of the distribution that was sampled from (temperature and nucleus included), so the estimator is unbiased
for that distribution; which actions are in the nucleus is piecewise constant in the logits.

Shape legend: A actions (vocabulary + 1), N thoughts of one position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Actions:
    """`index` (...) of the actions taken; `log_prob` under the sampling distribution; `full_log_prob` and `entropy` (in
    nats) under the plain softmax at temperature 1."""

    index: Tensor
    log_prob: Tensor
    full_log_prob: Tensor
    entropy: Tensor


def sampling_log_probs(logits_A: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log-probabilities (..., actions) of nucleus sampling (Holtzman et al., 2020, section 3.1) at `temperature`.

    The nucleus is the smallest set of most likely actions whose probability reaches `top_p`; others have -inf.
    """
    log_p = (logits_A / temperature).log_softmax(-1)
    if top_p >= 1:
        return log_p
    ordered, order = log_p.detach().sort(dim=-1, descending=True)
    probabilities = ordered.exp()
    outside_sorted = probabilities.cumsum(-1) - probabilities >= top_p
    outside = torch.zeros_like(outside_sorted).scatter(-1, order, outside_sorted)
    return log_p.masked_fill(outside, float("-inf")).log_softmax(-1)


def act(
    logits_A: Tensor,
    temperature: float,
    top_p: float,
    generator: torch.Generator | None = None,
    given: Tensor | None = None,
) -> Actions:
    """Sample an action for every row of `logits_A` (..., actions), or evaluate the `given` ones (...)."""
    logits_A = logits_A.float() if logits_A.dtype in (torch.bfloat16, torch.float16) else logits_A
    log_p = sampling_log_probs(logits_A, temperature, top_p)
    index = draw(log_p.detach(), generator) if given is None else given
    full = logits_A.log_softmax(-1)
    entropy = -(full.exp() * full.masked_fill(full == float("-inf"), 0.0)).sum(-1)  # 0 ln 0 = 0, gradient too
    return Actions(index, _pick(log_p, index), _pick(full, index), entropy)


def draw(log_p_A: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index for each row, by inversion of the cumulative distribution at a uniform number from `generator`.

    The uniform numbers come from the CPU whatever the device, so that the same seed thinks the same thoughts.
    """
    uniform = torch.rand(log_p_A.shape[:-1], generator=generator, dtype=torch.float64).to(log_p_A.device)
    cumulative = log_p_A.double().exp().cumsum(-1)
    target = (uniform * cumulative[..., -1])[..., None]
    index = torch.searchsorted(cumulative.contiguous(), target, right=True).squeeze(-1)
    # rounding may land behind the last action that has any probability
    last = log_p_A.shape[-1] - 1 - (log_p_A > float("-inf")).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)


def relative_advantages(log_likelihood_N: Tensor) -> Tensor:
    """Reward of Quiet-STaR (arXiv:2403.09629, eq. 8): log-likelihood (..., thoughts) less its mean over the thoughts of
    the position. Detached. The mean contains the thought itself, which scales the gradient by (N - 1) / N."""
    rewards = log_likelihood_N.detach()
    return rewards - rewards.mean(-1, keepdim=True)


def information_gain(log_likelihood_N: Tensor, without: Tensor) -> Tensor:
    """Reward of RLP (arXiv:2510.01265, eq. 1): log-likelihood (..., thoughts) less that of a slowly moving copy of the
    model that does not think, `without` (...). Detached."""
    return log_likelihood_N.detach() - without.detach()[..., None]


def reinforce_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-E[advantage log pi], whose gradient is minus the policy gradient; both (...).

    Raises:
        ValueError: when a reward is not finite.
    """
    if not bool(torch.isfinite(advantage).all()):
        bad = int((~torch.isfinite(advantage)).sum())
        raise ValueError(
            f"{bad} of {advantage.numel()} rewards are not finite: the likelihood of the text has broken down; lower "
            "muon_lr and adamw_lr"
        )
    return -(advantage.detach() * log_prob).mean()


def kl_estimate(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Estimates of KL(pi || reference) from samples of pi, never negative: r - 1 - log r with r = reference / pi
    (Schulman, 2020, "k3"). Samples from a nucleus or at another temperature bias it."""
    log_ratio = reference - log_prob
    return log_ratio.exp() - 1 - log_ratio


def _pick(log_p: Tensor, index: Tensor) -> Tensor:
    return log_p.gather(-1, index[..., None]).squeeze(-1)
