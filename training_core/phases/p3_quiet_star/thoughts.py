"""A model that thinks: it samples thoughts at many positions in parallel and predicts the next tokens with them.

    x_0 .. x_j  <start> t_1 .. t_m <end>  x_{j+1} ..        one branch for each position j and thought

Algorithm: Quiet-STaR (Zelikman et al., 2024, arXiv:2403.09629, algorithm 1): think in parallel, talk by mixing the
hidden state at the end of the thought into that of the position, learn by REINFORCE (`policy`).

Shape legend: B batch, S sequence, P positions, N thoughts of a position, R = P N branches, L thought length, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.branching import Branches
from training_core.nn.cognate import Cognate, ShapeConfig, Trace
from training_core.phases.p3_quiet_star.mixing import MixingHead, coherence
from training_core.phases.p3_quiet_star.policy import act

ENDED = -1
Content = Literal["sampled", "pause"]


class ThoughtConfig(BaseModel):
    """Number, length and sampling of thoughts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_thoughts: int = Field(4, ge=1, le=8, description="N: thoughts sampled per position")
    min_length: int = Field(10, ge=0, description="Minimum length of a thought in tokens, without delimiters")
    max_length: int = Field(20, ge=1, description="Maximum length of a thought in tokens, without delimiters")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of thoughts")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus sampling of thoughts: total probability to keep")
    mixing_heads: int = Field(8, ge=1, description="Attention heads of the mixing head; must divide d_model")
    content: Content = Field(
        "sampled",
        description="sampled: thoughts from the model; pause: learned tokens without content, a control of equal "
        "compute",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length = {self.min_length} exceeds max_length = {self.max_length}")
        return self


@dataclass(slots=True)
class Thoughts:
    """The thoughts of P positions.

    `tokens` (B, P, N, L) are padded with ENDED after the end of a thought. `log_prob` (B, P, N) is the total of all
    actions under the sampling distribution; `full_log_prob` and `entropy` (B, P, N, L) refer to each action at
    temperature 1, and `acted` marks the actions taken. `hidden` (B, P, N, D) is the output at <end>, from which
    `branches` can be fed further tokens.
    """

    tokens: Tensor
    log_prob: Tensor
    full_log_prob: Tensor
    entropy: Tensor
    acted: Tensor
    hidden: Tensor
    branches: Branches

    def mean_log_prob(self) -> Tensor:
        """Return the mean log-probability of each thought's actions at temperature 1, (B, P, N)."""
        return (self.full_log_prob * self.acted).sum(-1) / self.acted.sum(-1).clamp_min(1)

    def lengths(self) -> Tensor:
        """Return the number of tokens in each thought, (B, P, N)."""
        return (self.tokens != ENDED).sum(-1)


@dataclass(slots=True)
class Talk:
    """Next-token logits with thoughts mixed in.

    `alone` (B, P, N, V) uses each thought by itself, `together` (B, P, V) all of them; `score` (B, P, N) is coherence.
    """

    alone: Tensor
    together: Tensor
    score: Tensor


class Thinker(nn.Module):
    """A Cognate model with learned thought delimiters and a mixing head.

    After `keep_slow_copy` it holds a copy of the model that receives no gradient; `objective.slow_log_likelihood`
    updates it as a moving average.
    """

    def __init__(self, cognate: Cognate, config: ThoughtConfig) -> None:
        super().__init__()
        check_length(cognate.config, config)
        self.config = config
        self.cognate = cognate
        width = cognate.embedding.weight.shape[1]
        self.delimiter_embedding = nn.Embedding(2, width)
        self.head = MixingHead(cognate.config.d_model, config.mixing_heads)
        self.slow: Cognate | None = None
        self.pause_embedding = nn.Embedding(config.num_thoughts, width) if config.content == "pause" else None

    def keep_slow_copy(self) -> None:
        """Keep a copy of the current model as the slow copy."""
        self.slow = copy.deepcopy(self.cognate).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def initialise_delimiters(self, like: list[int], generator: torch.Generator) -> None:
        """Initialise <start> and <end> with the mean embedding of the tokens `like` (the paper uses an em dash).

        Pause tokens start there too, with noise of a tenth of the embeddings' standard deviation to set them apart.
        """
        table = self.cognate.embedding.weight
        mean = table[like].mean(0)
        self.delimiter_embedding.weight.copy_(mean.expand(2, -1))
        if self.pause_embedding is not None:
            noise = torch.randn(self.pause_embedding.weight.shape, generator=generator).to(table)
            self.pause_embedding.weight.copy_(mean + 0.1 * table.std() * noise)

    def think(
        self, trace: Trace, positions_BP: Tensor, generator: torch.Generator | None, given: Tensor | None = None
    ) -> Thoughts:
        """Sample thoughts after each of `positions_BP`, or replay the `given` tokens (B, P, N, L)."""
        count = self.config.num_thoughts if given is None else given.shape[2]
        rows = positions_BP.repeat_interleave(count, dim=1)
        return self.think_on(Branches.from_trace(self.cognate, trace, rows), count, generator, given)

    def think_on(
        self, branches: Branches, count: int, generator: torch.Generator | None, given: Tensor | None = None
    ) -> Thoughts:
        """Do as `think`, on branches (B, P * count) that are already at the positions."""
        batch, rows = branches.shape
        config, vocab = self.config, self.cognate.config.vocab_size
        length = config.max_length if given is None else given.shape[3]
        flat = None if given is None else given.reshape(batch, rows, length)
        start, end = self._delimiters(batch, rows)
        answer = branches.feed(start)
        is_open = torch.ones(batch, rows, dtype=torch.bool, device=answer.device)
        steps: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        for step in range(length):
            if self.pause_embedding is not None:
                answer = branches.feed(self._pause(batch, rows))
                nothing = torch.zeros(batch, rows, device=answer.device)
                still = torch.full((batch, rows), ENDED, device=answer.device)
                steps.append((still, nothing, nothing, nothing, torch.zeros_like(is_open)))
                continue
            wanted = None if flat is None else torch.where(flat[..., step] == ENDED, vocab, flat[..., step])
            logits = self._action_logits(answer, may_end=step >= config.min_length)
            actions = act(logits, config.temperature, config.top_p, generator, wanted)
            goes_on = is_open & (actions.index != vocab)
            token = torch.where(goes_on, actions.index, ENDED)
            log_prob = torch.where(is_open, actions.log_prob, 0.0)
            steps.append((token, log_prob, torch.where(is_open, actions.full_log_prob, 0.0), actions.entropy, is_open))
            answer = branches.feed(self.cognate.embed(token.clamp_min(0)), goes_on)
            is_open = goes_on
        hidden = branches.feed(end)
        tokens, log_probs, full, entropy, acted = (torch.stack(column, dim=2) for column in zip(*steps, strict=True))
        shape = (batch, rows // count, count)
        return Thoughts(
            tokens.view(*shape, length),
            log_probs.sum(-1).view(shape),
            full.view(*shape, length),
            entropy.view(*shape, length),
            acted.view(*shape, length),
            hidden.view(*shape, -1),
            branches,
        )

    def talk(self, base_BPD: Tensor, thoughts: Thoughts, hidden: Tensor | None = None) -> Talk:
        """Predict the next token at the positions whose outputs without thoughts are `base_BPD`.

        `hidden` (B, P, N, D) replaces the thoughts' own after the branches have been fed further true tokens.
        """
        hidden = thoughts.hidden if hidden is None else hidden
        alone = self.talk_alone(base_BPD, hidden)
        score = coherence(base_BPD, hidden, thoughts.mean_log_prob().detach(), alone)
        together = self.cognate.logits(self.head(base_BPD, hidden, score))
        return Talk(alone, together, score)

    def talk_alone(self, base_BPD: Tensor, hidden_BPND: Tensor) -> Tensor:
        """Return the logits (B, P, N, V) with each thought by itself."""
        base = base_BPD[..., None, :].expand_as(hidden_BPND)
        nothing_to_weigh = hidden_BPND.new_zeros(*hidden_BPND.shape[:-1], 1)
        return self.cognate.logits(self.head(base, hidden_BPND[..., None, :], nothing_to_weigh))

    def _action_logits(self, answer: Tensor, *, may_end: bool) -> Tensor:
        """Return the logits of the vocabulary and, last, of ending the thought; end-of-text is masked out."""
        logits = self.cognate.logits(answer)
        ending = self.cognate.readout(answer) @ self.delimiter_embedding.weight[1].to(answer.dtype)
        if not may_end:
            ending = torch.full_like(ending, float("-inf"))
        banned = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        banned[END_OF_TEXT_ID] = True
        return torch.cat([logits.masked_fill(banned, float("-inf")), ending[..., None]], dim=-1)

    def _delimiters(self, batch: int, rows: int) -> tuple[Tensor, Tensor]:
        start, end = self.cognate.widen(self.delimiter_embedding.weight)
        return start.expand(batch, rows, -1), end.expand(batch, rows, -1)

    def _pause(self, batch: int, rows: int) -> Tensor:
        assert self.pause_embedding is not None
        slots = self.cognate.widen(self.pause_embedding.weight)
        return slots.repeat(rows // slots.shape[0], 1).expand(batch, -1, -1)


def check_length(shape: ShapeConfig, config: ThoughtConfig) -> None:
    """Check that a thought and its delimiters leave room for text.

    Raises:
        ValueError: when a thought and its delimiters are longer than max_seq_len.
    """
    if config.max_length + 2 >= shape.max_seq_len:
        raise ValueError(
            f"a thought of max_length = {config.max_length} tokens and its two delimiters does not fit "
            f"max_seq_len = {shape.max_seq_len}: shorten the thoughts"
        )
