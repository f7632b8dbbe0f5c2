"""Learning from attempts by their reward: the group-relative policy gradient, without a value function.

    A_i    = (r_i - mean(r)) / (std(r) + 1e-4)        r_1 .. r_G the rewards of one question's attempts
    rho_it = pi(o_it | q, o_i,<t) / pi_old(o_it | q, o_i,<t)
    J      = 1 / sum_i |o_i|  sum_i sum_t  min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i)

Advantages and ratios as in DeepSeekMath (arXiv:2402.03300, section 4.1 and eq. 3), with the mean over all tokens that
DAPO takes (arXiv:2503.14476, eq. 8): a long attempt weighs more than a short one. `t` runs over the tokens that the
model drew itself; what a hint or a tool put in is read, and not learned from.

**Differs from the papers**: the 1e-4 in the denominator, and the unbiased standard deviation, are those of TRL 1.16
(`GRPOTrainer`). There is no KL term, as in DAPO, but both bounds of the clipping are alike, where DAPO raises the upper
one. With several supervision steps every step's prediction is held against the same `pi_old`, the finished one's.

**Does not cover**: attempts that were drawn at another temperature than 1 or from a nucleus. `Attempt.log_probs` are
the model's own, so that what was never drawn would not be missed by the ratios.

Shape legend: G groups, K attempts in a group, B attempts of a batch, S positions, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Carry, Cognate
from training_core.tasks.questions.attempts import Attempt
from training_core.training.loop import StepResult
from training_core.training.objective import HALT_WEIGHT

Scale = Literal["group", "none"]
STD_OFFSET = 1e-4


class PolicyGradientConfig(BaseModel):
    """How far one batch may move the policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: float = Field(0.2, gt=0, lt=1, description="Ratios of probabilities count up to this far from 1")


def group_advantages(rewards_GK: Tensor, scale: Scale = "group") -> Tensor:
    """Rewards relative to those of the same group, (groups, group_size) like the rewards.

    scale: "group" divides by the group's standard deviation; "none" does not (Dr. GRPO, arXiv:2503.20783). A group of
        equal rewards says nothing about what is better and gets exactly 0.

    Raises:
        ValueError: when the rewards are not (groups, 2 or more) finite numbers.
    """
    if rewards_GK.ndim != 2 or rewards_GK.shape[1] < 2 or not bool(torch.isfinite(rewards_GK).all()):
        raise ValueError(
            f"rewards must be finite and of shape (groups, 2 or more), got {tuple(rewards_GK.shape)} with "
            f"{int((~torch.isfinite(rewards_GK)).sum())} not finite: attempt every question at least twice"
        )
    advantages_GK = rewards_GK - rewards_GK.mean(1, keepdim=True)
    if scale == "group":
        advantages_GK = advantages_GK / (rewards_GK.std(1, keepdim=True) + STD_OFFSET)
    equal_G1 = rewards_GK.amax(1, keepdim=True) == rewards_GK.amin(1, keepdim=True)
    return advantages_GK.masked_fill(equal_G1, 0.0)


def clipped_objective(
    log_probs_N: Tensor,
    old_log_probs_N: Tensor,
    advantages_N: Tensor,
    clip: float = 0.2,
    normaliser: float | None = None,
) -> Tensor:
    """J, a scalar that is to be maximised: eq. 3 of arXiv:2402.03300 over tokens, divided by `normaliser`.

    Log-probabilities are natural ones. `normaliser` is the number of tokens, N, unless the tokens given are a part of
    a larger batch. No tokens at all give 0.
    """
    ratios_N = (log_probs_N - old_log_probs_N).exp()
    clipped_N = ratios_N.clamp(1 - clip, 1 + clip)
    total = torch.minimum(ratios_N * advantages_N, clipped_N * advantages_N).sum()
    return total / max(1.0, float(log_probs_N.numel()) if normaliser is None else normaliser)


class PolicyGradientObjective:
    """-J on attempts that were drawn before, for `training.loop.train`; a batch is attempt numbers (batch,).

    The halting head goes on learning whether the current argmax is right, where that is known: at the own tokens of
    right attempts. As in `next_token_objective`, that does not reach the rest of the model.

    Args:
        attempts: drawn at temperature 1 by the model that is trained, before its first step.
        advantages: (attempts,), each of all own tokens of its attempt.

    Raises:
        ValueError: when nothing can be learned: no attempt has a token of the model's own, or advantages and attempts
            are not as many, or an advantage is not finite.
    """

    def __init__(self, attempts: Sequence[Attempt], advantages: Tensor, config: PolicyGradientConfig) -> None:
        if advantages.shape != (len(attempts),) or not bool(torch.isfinite(advantages).all()):
            raise ValueError(
                f"there must be one finite advantage for each of {len(attempts)} attempts, got shape "
                f"{tuple(advantages.shape)} with {int((~torch.isfinite(advantages)).sum())} not finite: flatten those "
                "of group_advantages in the order of the attempts"
            )
        if not any("own" in attempt.roles for attempt in attempts):
            raise ValueError(
                f"none of {len(attempts)} attempts has a token of the model's own: pass attempts that were not shown "
                "to the end"
            )
        self.attempts, self.advantages, self.config = tuple(attempts), advantages.float(), config

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Compute the loss; the carry is that of the supervision step before, None for the first."""
        policy = cast(Cognate, model)
        numbers = batch.tolist()
        tokens_BT, own_BS, right_BS, old_BS = self._rows(numbers, batch.device)
        targets_BS = tokens_BT[:, 1:]
        h_BSD = policy.encode(tokens_BT[:, :-1])
        after = policy.supervise(h_BSD, carry if carry is not None else policy.start(h_BSD))
        logits_BSV = policy.logits(after.y).float()
        log_probs_BS = -F.cross_entropy(logits_BSV.transpose(1, 2), targets_BS, reduction="none")
        advantages_BS = self.advantages[numbers].to(batch.device)[:, None].expand_as(old_BS)
        log_probs_N, old_N, advantages_N = log_probs_BS[own_BS], old_BS[own_BS], advantages_BS[own_BS]
        objective = clipped_objective(log_probs_N, old_N, advantages_N, self.config.clip)
        correct_N = (logits_BSV.detach().argmax(-1) == targets_BS)[right_BS].float()
        halting = F.binary_cross_entropy_with_logits(
            policy.halt(after.y)[right_BS].float(), correct_N, reduction="sum"
        ) / max(1, correct_N.numel())
        metrics = {"objective": objective.detach(), "halt_loss": halting.detach()}
        metrics |= _course(log_probs_N.detach() - old_N, advantages_N, self.config.clip)
        loss = HALT_WEIGHT * halting - objective
        return StepResult(loss, logits_BSV, Carry(after.y.detach(), after.z.detach()), metrics)

    def _rows(self, numbers: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """END_OF_TEXT, prompt, completion, padded on the right (B, S + 1); and over targets (B, S): which are the
        model's own, which of these are of right attempts, and their old log-probabilities, 0 elsewhere."""
        chosen = [self.attempts[number] for number in numbers]
        length = max(attempt.num_tokens for attempt in chosen)
        tokens_BT = torch.full((len(chosen), length + 1), END_OF_TEXT_ID)
        own_BS = torch.zeros(len(chosen), length, dtype=torch.bool)
        old_BS = torch.zeros(len(chosen), length)
        for row, attempt in enumerate(chosen):
            start, end = len(attempt.prompt_ids), attempt.num_tokens
            tokens_BT[row, 1 : end + 1] = torch.tensor([*attempt.prompt_ids, *attempt.completion_ids])
            own_BS[row, start:end] = torch.tensor([role == "own" for role in attempt.roles])
            old_BS[row, start:end] = torch.tensor(attempt.log_probs)
        right_BS = own_BS & torch.tensor([attempt.right for attempt in chosen])[:, None]
        return tokens_BT.to(device), own_BS.to(device), right_BS.to(device), old_BS.to(device)


def _course(log_ratios_N: Tensor, advantages_N: Tensor, clip: float) -> dict[str, Tensor]:
    """What is reported of a batch's tokens: their share whose gradient the clipping takes away, and how far the policy
    has moved from the old one (the k3 estimate of KL(old || new) in nats per token, Schulman, 2020)."""
    ratios_N = log_ratios_N.exp()
    clipped_N = ((ratios_N > 1 + clip) & (advantages_N > 0)) | ((ratios_N < 1 - clip) & (advantages_N < 0))
    count = max(1, ratios_N.numel())
    moved = (ratios_N - 1 - log_ratios_N).sum() / count
    return {"clipped": clipped_N.float().sum() / count, "moved": moved}
