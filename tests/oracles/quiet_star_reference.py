"""Reference for one thought after one position, token by token: lists of keys, no masks, no batching.

It uses the layers' own projections and norms, and recomputes from the definition all that branching decides: the keys
that a thought attends to, its positions, its memory reads, and how recursion and halting continue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.titans_reference import memory_reads
from training_core.nn.attention import SlidingWindowAttention
from training_core.nn.block import TitansBlock
from training_core.nn.cognate import Cognate
from training_core.nn.layers import rotary_table, rotate
from training_core.nn.memory import NeuralMemory

Pair = tuple[Tensor, Tensor, Tensor]  # key and value of one position, (heads, width), and the input of its convolution


def continue_alone(model: Cognate, tokens_S: Tensor, fed_LD: Tensor) -> Tensor:
    """Return the outputs y (L, d_model) of the embedded tokens `fed_LD`, fed after the true tokens `tokens_S`."""
    seq = tokens_S.shape[0]
    caches: dict[tuple[object, ...], list[Pair]] = {}
    memories: dict[int, list[Tensor]] = {}
    outputs = []
    for t in range(seq + fed_LD.shape[0]):
        thinking = t >= seq
        x = fed_LD[t - seq] if thinking else model.embed(tokens_S[t])
        embedding = x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt()
        first = torch.zeros(())
        for number, block in enumerate(model.prelude):
            added = None
            if number:
                stays, root, value = block.residual
                x, added = stays * x + root * embedding, value * first
            x, pair = _block(block, x, caches.setdefault(("prelude", number), []), t, seq, memories, number, added)
            first = first if number else pair[1]
            caches["prelude", number].append(pair)
        outputs.append(_core(model, model.prelude_norm(x), caches, t, seq))
    return torch.stack(outputs[seq:])


def _core(model: Cognate, h: Tensor, caches: dict[tuple[object, ...], list[Pair]], t: int, seq: int) -> Tensor:
    config = model.config
    y, z = h, model.latent
    shown: list[Pair] = []
    halted = False
    for supervision in range(config.num_supervision):
        new_y, new_z, pairs = y, z, []
        for index in range(config.cycles * (config.latent_steps + 1)):
            answer = index % (config.latent_steps + 1) == config.latent_steps
            x = new_y + new_z if answer else h + new_y + new_z
            for number, block in enumerate(model.core):
                x, pair = _block(block, x, caches.setdefault((supervision, index, number), []), t, seq, {}, -1)
                pairs.append(pair)
            out = model.core_norm(x)
            new_y, new_z = (out, new_z) if answer else (new_y, out)
        if not halted:
            y, z, shown = new_y, new_z, pairs
        places = [
            (supervision, i, n)
            for i in range(config.cycles * (config.latent_steps + 1))
            for n in range(len(model.core))
        ]
        for place, pair in zip(places, shown, strict=True):
            caches[place].append(pair)
        halted = halted or bool(model.halt(y[None])[0].sigmoid() > config.halt_threshold)
    return y


def _block(
    block: TitansBlock,
    x: Tensor,
    earlier: list[Pair],
    t: int,
    seq: int,
    memories: dict[int, list[Tensor]],
    number: int,
    added: Tensor | None = None,
) -> tuple[Tensor, Pair]:
    inputs = block.mixer_norm(x)
    heads, pair, convolved = _attention(block.attention, inputs, earlier, t, seq, added)
    if block.memory is not None:
        history = memories.setdefault(number, [])
        history.append(torch.stack([inputs, *convolved]))
        read = _memory(block.memory, torch.stack(history, dim=1), seq)
        heads = block.attention_gain(heads) * (block.memory_gain(read).sigmoid() if block.use_memory else 0.5)
    x = x + block.output(heads)
    return x + block.mlp(block.mlp_norm(x)), pair


def _attention(
    attention: SlidingWindowAttention, x: Tensor, earlier: list[Pair], t: int, seq: int, added: Tensor | None
) -> tuple[Tensor, Pair, tuple[Tensor, Tensor, Tensor]]:
    shape = (attention.num_heads, attention.head_width)
    given = asks = shows = holds = x
    if attention.conv is not None:
        kernel = attention.conv.weight[:, 0]
        inputs = [*(pair[2] for pair in earlier), x]
        near = range(min(kernel.shape[1], len(inputs)))
        asks, shows, holds = (
            sum((own[:, -1 - back] * inputs[-1 - back] for back in near), torch.zeros_like(x))
            for own in kernel.chunk(3)
        )
    table = rotary_table(torch.tensor(t), attention.head_width)[0]
    query = rotate(attention.query_norm(attention.query(asks).view(shape)), table)
    key = rotate(attention.key_norm(attention.key(shows).view(shape)), table)
    value = attention.value(holds).view(shape)
    value = value if added is None else value + added
    if t < seq:
        seen = [*earlier, (key, value, given)][-attention.window :]
    else:  # the true tokens that the next true token would attend to, then the thought so far
        true, own = earlier[:seq], earlier[seq:]
        seen = [*true[max(0, seq - attention.window + 1) :], *own, (key, value, given)]
    heads = []
    for head in range(attention.num_heads):
        persistent_key = attention.key_norm(attention.key(attention.persistent).view(-1, *shape))[:, head]
        persistent_value = attention.value(attention.persistent).view(-1, *shape)[:, head]
        keys = torch.cat([persistent_key, torch.stack([pair[0][head] for pair in seen])])
        values = torch.cat([persistent_value, torch.stack([pair[1][head] for pair in seen])])
        heads.append(torch.softmax(keys @ query[head] / shape[1] ** 0.5, dim=0) @ values)
    return torch.cat(heads), (key, value, given), (asks, shows, holds)


def _memory(memory: NeuralMemory, inputs: Tensor, seq: int) -> Tensor:
    """Return the memory read of the last position if only the first `seq` were written; `inputs` (4, positions,
    d_model) are those of the gates, queries, keys and values."""
    written, _, shows, holds = inputs[:, :seq]
    heads = memory.num_heads
    query = memory.query(inputs[1, -1]).view(heads, -1)
    key, value = (t.view(written.shape[0], heads, -1) for t in (memory.key(shows), memory.value(holds)))
    eta, theta, alpha = memory.gates(written).sigmoid().view(written.shape[0], 3, heads).unbind(1)
    alpha = 0.999 * alpha
    theta = theta * (1 - eta)
    query, key, value = (F.normalize(v, dim=-1) for v in (query, key, value))
    reads = []
    for h in range(heads):
        asked = torch.zeros(written.shape[0], query.shape[-1], dtype=query.dtype)
        asked[-1] = query[h]  # the oracle returns M_t(q_t) for all t; only the last read is used
        gates = (eta[:, h], theta[:, h], alpha[:, h])
        with torch.enable_grad():  # the oracle differentiates the memory's own loss
            reads.append(memory_reads(asked, key[:, h], value[:, h], *gates)[-1].detach())
    return torch.cat(reads)
