"""A bigram model whose prompt adds a bias to all logits, so that baking has a closed form.

    prompted   P(v | w) = softmax(W_w + b)_v  while the prompt token is one of the last `window` tokens, else as
    bare       P(v | w) = softmax(W_w)_v

The unprompted model with table W + b equals the prompted one with table W, which is the optimum of baking. For a
partially baked table W + a b, each row is an exponential family in a with log-partition function A(a) = log sum_v
exp(W_wv + a b_v), so that KL(a = 1 || a) = A(a) - A(1) - (a - 1) A'(1).

The class has the interface of a language model that recurses, halts, trains and streams.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

SIZE = 12
PROMPT_TOKEN = 11


class _Config(SimpleNamespace):
    def model_dump(self) -> dict[str, object]:
        return dict(vars(self))


class PromptedBigram(nn.Module):
    """The bigram model in float64; the table W is `embedding.weight` (SIZE, SIZE)."""

    bias: Tensor

    def __init__(self, bias_scale: float = 2.0, window: int = 64, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.register_buffer("bias", bias_scale * torch.randn(SIZE, generator=generator, dtype=torch.float64))
        self.halt_head = nn.Linear(1, 1, dtype=torch.float64)
        self.window = window
        self.config = _Config(vocab_size=SIZE, max_seq_len=256, num_supervision=1)

    def encode(self, tokens_BS: Tensor) -> Tensor:
        is_prompt = (tokens_BS == PROMPT_TOKEN).long()
        seen = is_prompt.cumsum(1) - nn.functional.pad(is_prompt, (self.window, 0))[:, : -self.window].cumsum(1)
        logits: Tensor = self.embedding(tokens_BS) + (seen > 0)[..., None] * self.bias
        return logits

    def start(self, h: Tensor) -> SimpleNamespace:
        return SimpleNamespace(y=h, z=h)

    def supervise(self, h: Tensor, carry: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(y=h, z=carry.z)

    def logits(self, y: Tensor) -> Tensor:
        return y

    def halt(self, y: Tensor) -> Tensor:
        q: Tensor = self.halt_head(y.detach()[..., :1])[..., 0]
        return q

    def forward(self, tokens_BS: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.encode(tokens_BS))

    def stream(self, rows: int) -> SimpleNamespace:
        return SimpleNamespace(tokens=torch.zeros(rows, 0, dtype=torch.long))

    def step(self, tokens_B: Tensor, state: SimpleNamespace) -> Tensor:
        state.tokens = torch.cat([state.tokens, tokens_B[:, None]], 1)
        return self.encode(state.tokens)[:, -1]


def baked_table(model: PromptedBigram, scale: float = 1.0) -> Tensor:
    """Return the table W + scale b, which at scale 1 is the optimum of baking."""
    return model.embedding.weight.detach() + scale * model.bias


def closed_kl(model: PromptedBigram, row: int, scale: float) -> float:
    """Return KL(a = 1 || a = scale) of one row, from the log-partition function and its derivative, in plain floats."""
    weights = [float(w) for w in model.embedding.weight.detach()[row]]
    bias = [float(b) for b in model.bias]

    def log_partition(a: float) -> float:
        return math.log(sum(math.exp(w + a * b) for w, b in zip(weights, bias, strict=True)))

    whole = log_partition(1.0)
    mean = sum(b * math.exp(w + b - whole) for w, b in zip(weights, bias, strict=True))
    return log_partition(scale) - whole - (scale - 1) * mean


def closed_strength(model: PromptedBigram, contexts: list[int], scale: float) -> float:
    """Return 1 - sum KL(1 || scale) / sum KL(1 || 0) over the context tokens of the predictions."""
    return 1 - sum(closed_kl(model, w, scale) for w in contexts) / sum(closed_kl(model, w, 0.0) for w in contexts)
