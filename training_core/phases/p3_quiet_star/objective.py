"""The training objective of phase 3: the likelihood of true text with and without thoughts, and REINFORCE for thoughts.

    L = CE(base) + w_talk (CE(alone) + CE(together)) / 2 - w_policy E[A log pi] - w_entropy H(pi) + w_kl KL(pi || pi_0)

CE(base) is the loss without thoughts, at every position; the other terms are computed at P random positions of each
sequence. `alone` mixes in each thought by itself and is averaged over the next `true_tokens` tokens, which are
teacher-forced after the thought in its own branch (Quiet-STaR, arXiv:2403.09629, section 4.4). `together` mixes in all
thoughts of a position, as at inference.

**Differs from the paper**: advantages are divided by their root mean square over the batch, so that `policy_weight`
has the same effect for every model; the paper uses a weight of 1e6 instead. The paper's gradient scale of 100 on the
delimiters is omitted, because AdamW is invariant to the scale of a gradient.

Shape legend: B batch, S sequence, P positions, N thoughts of a position, V vocabulary.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from training_core.nn.cognate import Carry, Cognate, Trace
from training_core.phases.p3_quiet_star.policy import information_gain, kl_estimate, reinforce_loss, relative_advantages
from training_core.phases.p3_quiet_star.thoughts import Thinker, ThoughtConfig, Thoughts
from training_core.training.loop import StepResult
from training_core.training.objective import HALT_WEIGHT

SMALLEST_SCALE = 1e-3  # nats: keeps advantages of a much smaller scale from being amplified to 1
Reward = Literal["relative", "information_gain", "random"]


class PolicyConfig(ThoughtConfig):
    """The reward of thoughts, and the weights of the terms of the loss."""

    positions_per_sequence: int = Field(
        32, ge=1, description="Random positions per training sequence at which the model thinks"
    )
    true_tokens: int = Field(4, ge=1, description="True tokens after a thought whose log-likelihood is the reward")
    reward: Reward = Field(
        "relative",
        description="Baseline of the reward. relative: the mean over the position's thoughts; information_gain: a slow "
        "copy (EMA) of the model that does not think; random: the reward is noise, a control",
    )
    slow_decay: float = Field(0.99, ge=0, lt=1, description="For information_gain: decay of the slow copy per step")
    talk_weight: float = Field(1.0, ge=0, description="Loss weight of true text after thoughts")
    policy_weight: float = Field(0.1, ge=0, description="Loss weight of the REINFORCE term")
    entropy_weight: float = Field(
        0.001, ge=0, description="Weight of the entropy bonus, which keeps the policy exploring"
    )
    kl_weight: float = Field(
        0.01, ge=0, description="Weight of the KL divergence from the initial policy; 0 skips its computation"
    )


class ThoughtObjective:
    """The loss of one training step of a `Thinker`; a batch is token ids (batch, seq + 1).

    `reference` is the frozen thinker of the KL term; it is not run when `kl_weight` is 0.
    """

    def __init__(self, config: PolicyConfig, reference: Thinker | None) -> None:
        self.config = config
        self.reference = reference if config.kl_weight > 0 and config.content == "sampled" else None

    def __call__(self, model: nn.Module, batch: Tensor, carry: Carry | None, generator: torch.Generator) -> StepResult:
        """Return the loss of a batch with its metrics."""
        config, thinker = self.config, cast(Thinker, model)
        inputs, targets = batch[:, :-1], batch[:, 1:]
        trace = thinker.cognate.trace(inputs)
        logits = thinker.cognate.logits(trace.y).float()
        base = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        correct = (logits.detach().argmax(-1) == targets).float()
        halting = F.binary_cross_entropy_with_logits(thinker.cognate.halt(trace.y).float(), correct)
        positions = draw_positions(inputs.shape, config, generator).to(inputs.device)
        thoughts = thinker.think(trace, positions, generator)
        likelihood, together = log_likelihoods(thinker, trace, targets, positions, thoughts, config.true_tokens)
        talk = (-likelihood.mean() / config.true_tokens + together) / 2
        loss = base + HALT_WEIGHT * halting + config.talk_weight * talk
        metrics = {
            "cross_entropy": base.detach(),
            "halt_loss": halting.detach(),
            "talk_alone": -likelihood.detach().mean() / config.true_tokens,
            "talk_together": together.detach(),
        }
        if config.content == "sampled":
            policy, measured = self._policy(thinker, inputs, targets, positions, thoughts, likelihood, generator)
            loss, metrics = loss + policy, metrics | measured
        return StepResult(loss, logits, None, metrics)

    def _policy(
        self,
        thinker: Thinker,
        inputs: Tensor,
        targets: Tensor,
        positions: Tensor,
        thoughts: Thoughts,
        likelihood: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        relative = relative_advantages(likelihood)
        advantage = relative
        if config.reward == "information_gain":
            without = slow_log_likelihood(thinker, inputs, targets, positions, config)
            advantage = information_gain(likelihood, without)
        elif (
            config.reward == "random" and likelihood.shape[-1] == 1
        ):  # a single thought has no spread to scale the noise by
            advantage = likelihood.detach() - likelihood.detach().mean()
        scale = advantage.square().mean().sqrt()
        if config.reward == "random":
            advantage = scale * torch.randn(advantage.shape, generator=generator).to(advantage)
        acted = thoughts.acted.float()
        entropy = (thoughts.entropy * acted).sum() / acted.sum().clamp_min(1)
        loss = config.policy_weight * reinforce_loss(thoughts.log_prob, advantage / (scale + SMALLEST_SCALE))
        loss = loss - config.entropy_weight * entropy
        metrics = {
            "reward_spread": relative.square().mean().sqrt(),
            "best_reward": relative.amax(-1).mean(),
            "entropy": entropy.detach(),
            "thought_tokens": thoughts.lengths().float().mean(),
        }
        if self.reference is not None:
            kl = self._divergence(self.reference, inputs, positions, thoughts)
            loss, metrics["kl"] = loss + config.kl_weight * kl, kl.detach()
        return loss, metrics

    @staticmethod
    def _divergence(reference: Thinker, inputs: Tensor, positions: Tensor, thoughts: Thoughts) -> Tensor:
        with torch.no_grad():
            reference.to(inputs.device)
            replayed = reference.think(reference.cognate.trace(inputs), positions, None, thoughts.tokens)
        acted = thoughts.acted.float()
        estimate = kl_estimate(thoughts.full_log_prob, replayed.full_log_prob)
        return (estimate * acted).sum() / acted.sum().clamp_min(1)


def draw_positions(shape: torch.Size, config: PolicyConfig, generator: torch.Generator) -> Tensor:
    """Draw distinct positions (batch, P), sorted, each followed by `true_tokens` true tokens in a batch of `shape`.

    Raises:
        ValueError: when the sequence has no such position.
    """
    check_true_tokens(shape[1], config.true_tokens)
    last = shape[1] - config.true_tokens + 1
    count = min(config.positions_per_sequence, last)
    return torch.rand(shape[0], last, generator=generator).argsort(-1)[:, :count].sort(-1).values


def check_true_tokens(seq_len: int, true_tokens: int) -> None:
    """Check that some position of a sequence is followed by `true_tokens` tokens.

    Raises:
        ValueError: when true_tokens exceeds seq_len.
    """
    if true_tokens > seq_len:
        raise ValueError(
            f"true_tokens = {true_tokens} needs sequences of at least as many tokens, seq_len is {seq_len}: lower the "
            "one or raise the other"
        )


def log_likelihoods(
    thinker: Thinker, trace: Trace, targets: Tensor, positions: Tensor, thoughts: Thoughts, true_tokens: int
) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of the true text after each thought, and the cross-entropy with all thoughts together.

    The first is of the next `true_tokens` tokens with each thought alone, (B, P, N) in nats; the second, a scalar, of
    the first of these tokens. The true tokens are fed into the thoughts' branches, which are thereby consumed.
    """
    count = thoughts.hidden.shape[2]
    hidden = thoughts.hidden
    likelihood = torch.zeros(hidden.shape[:-1], device=hidden.device)
    together = likelihood.sum()
    for ahead in range(true_tokens):
        at = positions + ahead
        base = trace.y.gather(1, at[..., None].expand(-1, -1, trace.y.shape[-1]))
        target = targets.gather(1, at)
        if ahead == 0:
            talk = thinker.talk(base, thoughts)
            alone, together = talk.alone, F.cross_entropy(talk.together.float().flatten(0, 1), target.flatten())
        else:
            alone = thinker.talk_alone(base, hidden)
        log_p = alone.float().log_softmax(-1)
        wanted = target[..., None, None].expand(-1, -1, count, 1)
        likelihood = likelihood + log_p.gather(-1, wanted).squeeze(-1)
        if ahead + 1 < true_tokens:
            fed = thinker.cognate.embed(target).repeat_interleave(count, dim=1)
            hidden = thoughts.branches.feed(fed).view_as(hidden)
    return likelihood, together


@torch.no_grad()
def slow_log_likelihood(
    thinker: Thinker, inputs: Tensor, targets: Tensor, positions: Tensor, config: PolicyConfig
) -> Tensor:
    """Return the log-likelihood (B, P) of the next true tokens under the slow copy of the model, which does not think.

    The copy, an exponential moving average, is updated first: slow <- decay slow + (1 - decay) model.

    Raises:
        ValueError: when the thinker has no slow copy.
    """
    if thinker.slow is None:
        raise ValueError("reward = information_gain needs a Thinker with a slow copy: call its keep_slow_copy")
    slow: Cognate = thinker.slow
    for mine, theirs in zip(slow.parameters(), thinker.cognate.parameters(), strict=True):
        mine.lerp_(theirs.to(mine), 1 - config.slow_decay)
    log_p = slow(inputs).logits.float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    total = torch.zeros(positions.shape, device=inputs.device)
    for ahead in range(config.true_tokens):
        total = total + log_p.gather(1, positions + ahead)
    return total
