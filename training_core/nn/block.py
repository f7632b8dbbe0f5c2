"""A Titans-MAG block: sliding-window attention gated by the neural memory, then SwiGLU (Titans, eqs. 26-28)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.attention import BranchKeys, KeyValue, SlidingWindowAttention, WindowCache
from training_core.nn.layers import RMSNorm, SwiGLU
from training_core.nn.memory import MemoryRecord, MemoryState, NeuralMemory, Read

Halted = tuple[KeyValue, Tensor]  # keys and values of the step before, and where (batch, seq) a position is active


@dataclass(slots=True)
class Roots:
    """What later blocks of the prelude mix in, at the same positions: the RMS-normalised embedding (batch, seq,
    d_model) and the values of the first block's attention (batch, heads, seq, width)."""

    embedding: Tensor
    value: Tensor

    @classmethod
    def of(cls, embedded: Tensor, pair: KeyValue) -> Roots:
        """Return the roots of positions whose tokens were `embedded`, and whose keys and values in the first block are
        `pair`."""
        return cls(F.rms_norm(embedded, embedded.shape[-1:]), pair[1])


@dataclass(slots=True)
class BlockState:
    """Streaming state of one block: the KV cache of the window, updated in place, and the memory, if there is one."""

    attention: WindowCache
    memory: MemoryState | None = None


@dataclass(slots=True)
class LayerRecord:
    """Activations of a block over a sequence that branches can read: keys and values, normalised inputs, memory.

    A halted position keeps the keys, values and inputs of its last active step.
    """

    pair: KeyValue
    inputs: Tensor
    memory: MemoryRecord | None


@dataclass(slots=True)
class BranchLayer:
    """One block's state for branches: the shared prefix, their own keys and values, the memory at their position."""

    prefix: KeyValue
    own: BranchKeys
    read: Read | None = None


class TitansBlock(nn.Module):
    """x + W_o (y * M) and then x + SwiGLU(x), both on RMS-normalised inputs.

    With a memory, y = SW-Attn*(x~) and the gate is o = norm_y(y) * sigmoid(norm_m(M(x~)))            # eq. 28
    where the norms' gains are the paper's "learnable vector-valued weights". Attention and memory read the same
    input: they are parallel branches. Without a memory, o = y. A memory that is not used is as if it were empty: its
    gate is 1/2.

    A block that `mixes` takes a x + b x_0 for x, where x_0 is the embedding (as modded-nanogpt does, Jordan et al.,
    2024), and adds c v_0 to its values, where v_0 are those of the first block (Zhou et al., 2024, Value Residual
    Learning, arXiv:2410.17897). a, b and c are learned, at first 1, 0 and 0.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        attention: SlidingWindowAttention,
        memory: NeuralMemory | None,
        use_memory: bool = True,
        mixes: bool = False,
    ) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = RMSNorm(d_model), RMSNorm(d_model)
        self.attention, self.memory, self.use_memory = attention, memory, use_memory
        if memory is not None:
            self.attention_gain, self.memory_gain = RMSNorm(d_model), RMSNorm(d_model)
        # Weights of the input, of the embedding, and of the first block's values beside this block's own
        self.residual = nn.Parameter(torch.tensor([1.0, 0.0, 0.0])) if mixes else None
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.mlp = SwiGLU(d_model, d_ff)

    def forward(
        self,
        x_BSD: Tensor,
        previous: LayerRecord | None = None,
        active_BS: Tensor | None = None,
        roots: Roots | None = None,
    ) -> tuple[Tensor, LayerRecord]:
        """Process the whole sequence in parallel. Where `active_BS` is False the record is taken from `previous`."""
        x_BSD, added = self._mixed(x_BSD, roots)
        inputs = self.mixer_norm(x_BSD)
        shown_pair = None if previous is None else previous.pair
        heads, key_value, convolved = self.attention(inputs, shown_pair, active_BS, added=added)
        shown = inputs
        if previous is not None and active_BS is not None:
            shown = torch.where(active_BS[..., None], inputs, previous.inputs)
        read = record = None
        if (memory := self._used) is not None:
            read, record = memory(inputs, convolved)
        return self._finish(x_BSD, self._gate(heads, read)), LayerRecord(key_value, shown, record)

    def read(
        self, x_BSD: Tensor, state: BlockState, first: int, halted: Halted | None = None, roots: Roots | None = None
    ) -> tuple[Tensor, LayerRecord]:
        """Process the positions from `first` in parallel, after those of `state`, which is not changed."""
        x_BSD, added = self._mixed(x_BSD, roots)
        inputs = self.mixer_norm(x_BSD)
        previous, active = halted or (None, None)
        before = state.attention.before(first)
        heads, key_value, convolved = self.attention(inputs, previous, active, before=before, first=first, added=added)
        read = record = None
        if (memory := self._used) is not None:
            read, record = memory(inputs, convolved, state.memory)
        return self._finish(x_BSD, self._gate(heads, read)), LayerRecord(key_value, inputs, record)

    def step(
        self, x_B1D: Tensor, state: BlockState, position: int, roots: Roots | None = None
    ) -> tuple[Tensor, BlockState, KeyValue]:
        """Process one position; return the output, the next state and this position's own key and value."""
        x_B1D, added = self._mixed(x_B1D, roots)
        inputs = self.mixer_norm(x_B1D)
        heads, key_value, convolved = self.attention.step(inputs, state.attention, position, added)
        read, memory_state = None, state.memory
        if (memory := self._used) is not None:
            read, memory_state = memory.step(inputs, convolved, memory_state or memory.initial_state(x_B1D))
        return self._finish(x_B1D, self._gate(heads, read)), BlockState(state.attention, memory_state), key_value

    def branch(
        self,
        x_BRD: Tensor,
        layer: BranchLayer,
        visible_BRS: Tensor,
        positions_BR: Tensor,
        roots: Roots | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Process one position of R independent branches, which read attention and memory and write neither. Returns
        the output and the position's key and value."""
        x_BRD, added = self._mixed(x_BRD, roots)
        inputs = self.mixer_norm(x_BRD)
        heads, pair, convolved = self.attention.branch(
            inputs, layer.prefix, visible_BRS, layer.own, positions_BR, added
        )
        read = None
        if (memory := self._used) is not None:
            assert layer.read is not None
            read = memory.branch(convolved, layer.read)
        return self._finish(x_BRD, self._gate(heads, read)), pair

    def _mixed(self, x: Tensor, roots: Roots | None) -> tuple[Tensor, Tensor | None]:
        """The block's input with the embedding mixed in, and what is added to its values."""
        if self.residual is None or roots is None:
            return x, None
        stays, embedding, value = self.residual
        return stays * x + embedding * roots.embedding, value * roots.value

    @property
    def _used(self) -> NeuralMemory | None:
        return self.memory if self.use_memory else None

    def _gate(self, heads: Tensor, read: Tensor | None) -> Tensor:
        if self.memory is None:
            return heads
        gate = 0.5 if read is None else self.memory_gain(read).sigmoid()
        gated: Tensor = self.attention_gain(heads) * gate  # eq. 28
        return gated

    def _finish(self, x: Tensor, heads: Tensor) -> Tensor:
        x = x + self.output(heads)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out
