"""Group-relative policy gradient (GRPO): learning from the rewards of attempts, without a value function.

    A_i    = (r_i - mean(r)) / (std(r) + 1e-4)        r_1 .. r_G the rewards of one question's attempts
    rho_it = pi(o_it | q, o_i,<t) / pi_old(o_it | q, o_i,<t)
    J      = 1 / sum_i |o_i|  sum_i sum_t  min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i)

Advantages and ratios follow DeepSeekMath (arXiv:2402.03300, section 4.1 and eq. 3), with DAPO's mean over all tokens
(arXiv:2503.14476, eq. 8), by which a long attempt has more weight than a short one. `t` runs over the tokens that the
model sampled itself; tokens of hints and tool outputs are context only.

**Differs from the papers**: the 1e-4 in the denominator, and the unbiased standard deviation, are those of TRL 1.16
(`GRPOTrainer`). As in DAPO, there is no KL term; unlike in DAPO, which raises the upper bound, clipping is symmetric.
With several supervision steps, the prediction of each step is compared with the same `pi_old`, that of the last step.

**Does not cover**: attempts sampled at a temperature other than 1 or from a nucleus. `Attempt.log_probs` are those of
the plain softmax, so the ratios would not account for a different sampling distribution.

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
    """Clipping, which limits how far one batch can move the policy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: float = Field(0.2, gt=0, lt=1, description="Clip probability ratios to 1 - clip .. 1 + clip, as in PPO")


def group_advantages(rewards_GK: Tensor, scale: Scale = "group") -> Tensor:
    """Return the advantages of rewards within their group, (groups, group_size) like the rewards.

    scale: "group" divides by the group's standard deviation; "none" does not (Dr. GRPO, arXiv:2503.20783). A group of
        equal rewards carries no signal and gets exactly 0.

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
    """Return J, a scalar to maximise: eq. 3 of arXiv:2402.03300 summed over tokens and divided by `normaliser`.

    Log-probabilities are in nats. `normaliser` defaults to the number of tokens, N; pass the total if the tokens are
    only a part of a batch. Without tokens the result is 0.
    """
    ratios_N = (log_probs_N - old_log_probs_N).exp()
    clipped_N = ratios_N.clamp(1 - clip, 1 + clip)
    total = torch.minimum(ratios_N * advantages_N, clipped_N * advantages_N).sum()
    return total / max(1.0, float(log_probs_N.numel()) if normaliser is None else normaliser)


class PolicyGradientObjective:
    """The loss -J on attempts sampled in advance, for `training.loop.train`; a batch is attempt indices (batch,).

    The halting head continues to learn whether the current argmax is right, at the tokens where the right one is
    known: those that the model sampled itself in correct attempts. As in `next_token_objective`, its gradient does not
    reach the rest of the model.

    Args:
        attempts: sampled at temperature 1 from the model to be trained, before its first step.
        advantages: (attempts,); each applies to all tokens that the model sampled itself in its attempt.

    Raises:
        ValueError: when no attempt contains a token of the model's own, when the numbers of advantages and attempts
            differ, or when an advantage is not finite.
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
                f"none of {len(attempts)} attempts has a token of the model's own: pass attempts whose hint did "
                "not show the whole solution"
            )
        self.attempts, self.advantages, self.config = tuple(attempts), advantages.float(), config

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Return the loss; `carry` comes from the previous supervision step, and is None for the first."""
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
        """Return the rows of a batch: END_OF_TEXT, prompt and completion, padded on the right, (B, S + 1).

        Three more tensors (B, S) refer to the targets: which are the model's own, which of these belong to correct
        attempts, and their old log-probabilities (0 elsewhere).
        """
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
    """Return the metrics of a batch's tokens.

    `clipped` is the share of tokens whose gradient is removed by clipping; `moved` is the k3 estimate of
    KL(old || new) in nats per token (Schulman, 2020).
    """
    ratios_N = log_ratios_N.exp()
    clipped_N = ((ratios_N > 1 + clip) & (advantages_N > 0)) | ((ratios_N < 1 - clip) & (advantages_N < 0))
    count = max(1, ratios_N.numel())
    moved = (ratios_N - 1 - log_ratios_N).sum() / count
    return {"clipped": clipped_N.float().sum() / count, "moved": moved}
