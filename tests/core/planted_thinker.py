"""A thinker with hand-written weights, so that the value of its thoughts is known in advance.

The text is a cycle of eight tokens, x_{j+1} = (x_j + 1) mod 8. The model's attention averages the last two tokens, so
that it predicts x_j and x_{j-1}, never x_{j+1}. A thought sampled after x_j repeats x_j, and the mixing head maps the
last token of the thought to its successor and adds it `strength` times: with a positive strength, thoughts make the
true token certain; with a negative one, they make it impossible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training_core.evaluation.windows import Windows
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phases.p3_quiet_star.thoughts import Thinker, ThoughtConfig

FIRST, CYCLE = 40, 8  # token ids 40 .. 47
LENGTH = 4


@torch.no_grad()
def planted(strength: float, copies: bool = False) -> Thinker:
    """Return the thinker; with `copies`, its head adds the thought's own token instead of the successor."""
    shape = {"d_model": 32, "num_layers": 1, "num_core_layers": 1, "num_heads": 4, "d_ff": 48, "window": 2}
    config = CognateConfig(vocab_size=320, max_seq_len=256, memory_layers=[], conv_kernel=0, num_persistent=0, **shape)  # type: ignore[arg-type]
    model = Cognate(config)
    units = torch.eye(32)
    model.embedding.weight.zero_()
    model.embedding.weight[FIRST : FIRST + CYCLE] = 2 * units[:CYCLE]
    block = model.core[0]
    block.attention.query.weight.zero_()  # uniform attention
    block.attention.value.weight.copy_(units)
    block.output.weight.copy_(8 * units)
    block.mlp.down.weight.zero_()
    thoughts = ThoughtConfig(num_thoughts=2, min_length=LENGTH, max_length=LENGTH, mixing_heads=4, top_p=0.9)
    thinker = Thinker(model, thoughts)
    thinker.delimiter_embedding.weight.zero_()
    head = thinker.head
    successor = torch.zeros(32, 32)
    successor[[(i + (not copies)) % CYCLE for i in range(CYCLE)], range(CYCLE)] = 1.0
    head.value.weight.copy_(successor)
    head.gates.weight.zero_()
    head.gates.bias.fill_(30.0)
    head.output.weight.copy_(strength * units)
    return thinker.eval()


def cycling_text(rows: int = 4, length: int = 32) -> Windows:
    """Return windows of the cycle with two documents each; the last three positions of the last window are padding."""
    starts = torch.tensor([3, 0, 6, 5, 1, 2])[:rows]
    tokens = FIRST + (starts[:, None] + torch.arange(length + 1)) % CYCLE
    targets = tokens[:, 1:].clone()
    documents = 2 * torch.arange(rows)[:, None] + (torch.arange(length) >= length // 2)
    targets[-1, -3:], documents[-1, -3:] = -1, -1
    return Windows(tokens[:, :-1], targets, documents, torch.full((2 * rows,), 40))


def true_thoughts(windows: Windows, window: Tensor, position: Tensor) -> Tensor:
    """Return for each position two thoughts that repeat the true next token, (M, 2, LENGTH)."""
    return windows.targets[window, position][:, None, None].expand(-1, 2, LENGTH).contiguous()
