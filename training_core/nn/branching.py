"""Short continuations from many positions at once, which read the model's state there and never write it.

A branch starts after a true position j and is fed its own tokens, one for each branch in a step. At every step it sees

    * the last window - 1 true tokens up to j, exactly those that the true token j + 1 will see, and persistent tokens,
    * what the branch itself fed before (never another branch),
    * each neural memory as it is after token j, which it reads and does not write.

This is the diagonal attention of Quiet-STaR (Zelikman et al., 2024, arXiv:2403.09629, section 4.2 and figure 3) on a
model that has a window, a memory and recursion besides.

**Differs from the paper**: the window counts true tokens only, so that a long thought does not push the text out.

Shape legend: B batch, S sequence, D model width, H heads, K head width, R branches of one sequence.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from training_core.nn.attention import BranchKeys, KeyValue, WindowCache
from training_core.nn.block import BranchLayer, Halted, LayerRecord, Roots, TitansBlock
from training_core.nn.cognate import Cognate, Place, StreamState, Trace
from training_core.nn.memory import MemoryRecord, MemoryState, NeuralMemory, Read


class Branches:
    """R branches of every sequence of a batch. Advance them with `feed`; the state that they read is not changed."""

    def __init__(
        self,
        model: Cognate,
        prelude: list[BranchLayer],
        core: list[list[list[BranchLayer]]],
        visible_BRS: Tensor,
        next_position_BR: Tensor,
    ) -> None:
        self._model, self._prelude, self._core = model, prelude, core
        self._visible = visible_BRS
        self.next_position = next_position_BR

    @property
    def shape(self) -> torch.Size:
        """Shape of the branches, (batch, branches)."""
        return self.next_position.shape

    @classmethod
    def from_trace(cls, model: Cognate, trace: Trace, positions_BR: Tensor) -> Branches:
        """Start branches after the true positions `positions_BR` of a traced batch; a position may have several.

        Raises:
            ValueError: when a position lies outside the sequence.
        """
        seq = trace.y.shape[1]
        if positions_BR.numel() and not 0 <= int(positions_BR.min()) <= int(positions_BR.max()) < seq:
            raise ValueError(
                f"branches must start at positions 0 .. {seq - 1} of the sequence, got {int(positions_BR.min())} .. "
                f"{int(positions_BR.max())}"
            )
        window = model.config.window
        first = max(0, int(positions_BR.min()) - window + 2) if positions_BR.numel() else 0
        last = int(positions_BR.max()) + 1 if positions_BR.numel() else 0
        keys = torch.arange(first, last, device=positions_BR.device)
        distance = positions_BR[..., None] - keys
        visible = (distance >= 0) & (distance < window - 1)

        def layer(block: TitansBlock, record: LayerRecord) -> BranchLayer:
            prefix = (record.pair[0][:, :, first:last], record.pair[1][:, :, first:last])
            branch = BranchLayer(prefix, BranchKeys())
            if block.attention.conv is not None:
                branch.own.tail = _tails(record.pair[2][:, 0], positions_BR, block.attention.conv.kernel - 1)
            if block.memory is not None and record.memory is not None:
                branch.read = _reader(block.memory, record.memory, positions_BR)
            return branch

        supervisions = trace.core + [trace.core[-1]] * (model.config.num_supervision - len(trace.core))
        return cls(
            model,
            [layer(cast(TitansBlock, b), r) for b, r in zip(model.prelude, trace.prelude, strict=True)],
            [
                [[layer(cast(TitansBlock, b), r) for b, r in zip(model.core, p, strict=True)] for p in passes]
                for passes in supervisions
            ],
            visible,
            positions_BR + 1,
        )

    @classmethod
    def from_stream(cls, model: Cognate, state: StreamState, count: int) -> Branches:
        """Start `count` branches of every sequence after the last streamed token.

        Raises:
            ValueError: when nothing was streamed yet.
        """
        if state.position == 0:
            raise ValueError("branches continue from a token: feed at least END_OF_TEXT to the stream first")

        def layer(cache: WindowCache, memory: MemoryState | None) -> BranchLayer:
            branch = BranchLayer(cache.before(state.position)[:2], BranchKeys())
            if (tail := cache.tail(state.position)) is not None:
                branch.own.tail = tail[:, None].expand(-1, count, -1, -1)
            if memory is not None:
                weight = memory.weight
                branch.read = lambda query: query @ weight.mT
            return branch

        prelude = [layer(s.attention, s.memory) for s in state.prelude]
        core = [[[layer(cache, None) for cache in layers] for layers in passes] for passes in state.core]
        keys = core[0][0][0].prefix[0]
        visible = torch.ones(keys.shape[0], count, keys.shape[2], dtype=torch.bool, device=keys.device)
        following = torch.full((keys.shape[0], count), state.position, device=keys.device)
        return cls(model, prelude, core, visible, following)

    def feed(self, x_BRD: Tensor, valid_BR: Tensor | None = None) -> Tensor:
        """Feed one embedded token (batch, branches, d_model) to every branch; returns y (batch, branches, d_model).

        Where `valid_BR` is False the branch stands still: what it was fed is seen by nothing later and its position
        does not advance (its output means nothing).
        """
        valid = torch.ones(self.shape, dtype=torch.bool, device=x_BRD.device) if valid_BR is None else valid_BR
        model, positions = self._model, self.next_position
        x, roots = x_BRD, None
        for module, layer in zip(model.prelude, self._prelude, strict=True):
            x, pair = cast(TitansBlock, module).branch(x, layer, self._visible, positions, roots)
            roots = roots or Roots.of(x_BRD, pair)
            layer.own.add(pair, valid)

        def attend(block: TitansBlock, x: Tensor, place: Place, _: Halted | None) -> tuple[Tensor, KeyValue]:
            supervision, index, number = place
            return block.branch(x, self._core[supervision][index][number], self._visible, positions)

        y, pairs, _ = model.recur(model.prelude_norm(x), attend)
        for passes, fresh in zip(self._core, pairs, strict=True):
            for layers, own in zip(passes, fresh, strict=True):
                for layer, pair in zip(layers, own, strict=True):
                    layer.own.add(pair, valid)
        self.next_position = positions + valid
        return y


def _tails(inputs_BSD: Tensor, positions_BR: Tensor, length: int) -> Tensor:
    """The `length` inputs up to each position, zeros before the start: (batch, branches, length, d_model)."""
    offsets = torch.arange(1 - length, 1, device=positions_BR.device)
    index = positions_BR[..., None] + offsets  # (B, R, T)
    width = inputs_BSD.shape[-1]
    flat = index.clamp_min(0).flatten(1)[..., None].expand(-1, -1, width)
    gathered = inputs_BSD.gather(1, flat).view(*index.shape, width)
    tails: Tensor = torch.where((index >= 0)[..., None], gathered, 0.0)
    return tails


def _reader(memory: NeuralMemory, record: MemoryRecord, positions_BR: Tensor) -> Read:
    """Reads each branch's queries at the weights that its position has; branches are sorted by chunk once."""
    chunk = positions_BR // memory.chunk
    rows = positions_BR % memory.chunk
    present = sorted(set(chunk.flatten().tolist()))

    def read(query_BHRK: Tensor) -> Tensor:
        if len(present) == 1:
            only: Tensor = record.chunks[present[0]].read(query_BHRK, rows)
            return only
        out: Tensor = torch.zeros_like(query_BHRK)
        for number in present:
            writes = record.chunks[number]
            inside = chunk == number
            local = torch.where(inside, rows, 0).clamp_max(writes.key.shape[2] - 1)
            out = torch.where(inside[:, None, :, None], writes.read(query_BHRK, local), out)
        return out

    return read
