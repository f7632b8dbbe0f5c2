"""The policy that samples thoughts, and its gradient: REINFORCE (Williams, 1992) with a baseline.

An action is a vocabulary token or, as the last index, the end of the thought. The gradient uses the log-probability
under the sampling distribution (with temperature and nucleus), so the estimator is unbiased for that distribution. The
nucleus itself is piecewise constant in the logits and contributes no gradient.

Shape legend: A actions (vocabulary + 1), N thoughts of one position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Actions:
    """Sampled actions, all fields of shape (...).

    `index` is the action taken and `log_prob` its log-probability under the sampling distribution; `full_log_prob` and
    `entropy` (in nats) refer to the plain softmax at temperature 1.
    """

    index: Tensor
    log_prob: Tensor
    full_log_prob: Tensor
    entropy: Tensor


def sampling_log_probs(logits_A: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return log-probabilities (..., actions) of nucleus sampling (Holtzman et al., 2020, section 3.1).

    The nucleus is the smallest set of most likely actions, at `temperature`, whose total probability reaches `top_p`;
    all other actions get -inf.
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
    """Sample one index per row, by inverting the cumulative distribution at a uniform number from `generator`.

    The uniform numbers are always drawn on the CPU, so that a seed gives the same thoughts on every device.
    """
    uniform = torch.rand(log_p_A.shape[:-1], generator=generator, dtype=torch.float64).to(log_p_A.device)
    cumulative = log_p_A.double().exp().cumsum(-1)
    target = (uniform * cumulative[..., -1])[..., None]
    index = torch.searchsorted(cumulative.contiguous(), target, right=True).squeeze(-1)
    # Rounding may select an index after the last action with non-zero probability.
    last = log_p_A.shape[-1] - 1 - (log_p_A > float("-inf")).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)


def relative_advantages(log_likelihood_N: Tensor) -> Tensor:
    """Return Quiet-STaR's advantage (arXiv:2403.09629, eq. 8), detached.

    It is the log-likelihood (..., thoughts) minus its mean over the thoughts of the position. The mean includes the
    thought itself, which scales the gradient by (N - 1) / N.
    """
    rewards = log_likelihood_N.detach()
    return rewards - rewards.mean(-1, keepdim=True)


def information_gain(log_likelihood_N: Tensor, without: Tensor) -> Tensor:
    """Return RLP's reward (arXiv:2510.01265, eq. 1), detached.

    It is the log-likelihood (..., thoughts) minus `without` (...), the log-likelihood under a slow copy of the model
    that does not think.
    """
    return log_likelihood_N.detach() - without.detach()[..., None]


def reinforce_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Return -E[advantage log pi], whose gradient is the negative policy gradient; both arguments are (...).

    Raises:
        ValueError: when an advantage is not finite.
    """
    if not bool(torch.isfinite(advantage).all()):
        bad = int((~torch.isfinite(advantage)).sum())
        raise ValueError(
            f"{bad} of {advantage.numel()} rewards are not finite: the likelihood of the text is not finite; lower "
            "muon_lr and adamw_lr"
        )
    return -(advantage.detach() * log_prob).mean()


def kl_estimate(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(pi || reference) from samples of pi by r - 1 - log r with r = reference / pi (Schulman, 2020, "k3").

    The estimate is never negative. Sampling from a nucleus or at another temperature biases it.
    """
    log_ratio = reference - log_prob
    return log_ratio.exp() - 1 - log_ratio


def _pick(log_p: Tensor, index: Tensor) -> Tensor:
    return log_p.gather(-1, index[..., None]).squeeze(-1)
