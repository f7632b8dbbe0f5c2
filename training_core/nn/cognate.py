"""The Cognate language model: Titans-MAG blocks, TRM recursion over the last blocks, ACT halting by correctness.

    tokens -> embedding -> prelude (blocks, some with memory) -> h
    y, z   -> T cycles of [ n times z <- core(h + y + z);  y <- core(y + z) ] -> y, z     (one supervision step)
    logits = E y,  halt = q(y)                                                            (after every step)

The core is the last `num_core_layers` blocks with one closing RMSNorm; it is the single network of the Tiny
Recursive Model (Jolicoeur-Martineau, 2025, arXiv:2510.04871, section 4 and figure 3). With T = 1, n = 0 and one
supervision step the model is an ordinary decoder with num_layers layers.

**Differs from the paper**: everything is causal and per position; y starts at h instead of a learned vector, so that
recursion refines a working language model; halting is decided for each token.

Shape legend: B batch, S sequence, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Self, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from training_core.nn.attention import KeyValue, SlidingWindowAttention, WindowCache
from training_core.nn.block import BlockState, Halted, LayerRecord, Roots, TitansBlock
from training_core.nn.layers import RMSNorm
from training_core.nn.memory import NeuralMemory

Place = tuple[int, int, int]  # supervision step, pass, core layer
Attend = Callable[[TitansBlock, Tensor, Place, Halted | None], tuple[Tensor, KeyValue]]


class ShapeConfig(BaseModel):
    """Shape of a Cognate model except for its vocabulary. `num_layers` counts prelude and core blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = Field(128, ge=8, le=1 << 14, description="Width of the residual stream")
    num_layers: int = Field(4, ge=1, le=256, description="Blocks in all: prelude + core")
    num_core_layers: int = Field(2, ge=1, le=256, description="Final blocks, shared by all recursion steps")
    num_heads: int = Field(4, ge=1, le=1024, description="Attention heads; must divide d_model into even widths")
    d_ff: int = Field(320, ge=8, le=1 << 16, description="Hidden width of SwiGLU")
    window: int = Field(64, ge=1, le=1 << 20, description="Attention window in tokens, including the current one")
    max_seq_len: int = Field(256, ge=2, le=1 << 20, description="Longest training sequence in tokens")
    num_persistent: int = Field(4, ge=0, le=1 << 16, description="Learned tokens that every position attends to")
    conv_kernel: int = Field(
        8,
        ge=0,
        le=64,
        description="Positions that the causal depthwise convolution before each attention sees; 0: none",
    )
    memory_layers: list[int] = Field(
        [0], max_length=256, description="Indices of the prelude blocks with a neural memory"
    )
    memory_heads: int = Field(2, ge=1, le=1024, description="Heads of the memory; must divide d_model")
    memory_rank: int = Field(32, ge=1, le=1 << 14, description="Inner rank of the memory's projections")
    memory_chunk: int = Field(
        64, ge=1, le=1 << 20, description="Tokens that the memory writes at once; changes speed, not results"
    )
    embedding_rank: int = Field(0, ge=0, le=1 << 14, description="Rank of a factorised embedding; 0 for a full table")
    cycles: int = Field(1, ge=1, le=16, description="T: recursion cycles in one supervision step")
    latent_steps: int = Field(0, ge=0, le=32, description="n: updates of z in a cycle")
    grad_cycles: int = Field(1, ge=1, le=16, description="Final cycles of a supervision step with backpropagation")
    num_supervision: int = Field(1, ge=1, le=32, description="N_sup: supervision steps, each an optimizer step")
    halt_threshold: float = Field(1.0, gt=0, le=1, description="A token stops when q exceeds this; 1 never stops")
    use_memory: bool = Field(True, description="Whether the neural memory is written and read")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            raise ValueError(
                f"num_heads = {self.num_heads} must divide d_model = {self.d_model} into even head widths "
                "(rotary positions work on pairs); choose d_model as a multiple of 2 * num_heads"
            )
        if self.num_core_layers > self.num_layers:
            raise ValueError(f"num_core_layers = {self.num_core_layers} exceeds num_layers = {self.num_layers}")
        prelude = self.num_layers - self.num_core_layers
        outside = [layer for layer in self.memory_layers if not 0 <= layer < prelude]
        if outside:
            raise ValueError(
                f"memory_layers {outside} lie outside the prelude: with num_layers = {self.num_layers} and "
                f"num_core_layers = {self.num_core_layers} they must be in 0 .. {prelude - 1} (or empty)"
            )
        if self.memory_layers and not self.conv_kernel:
            raise ValueError(
                f"memory_layers = {self.memory_layers} need the convolution before the attention, whose outputs a "
                "memory reads: set conv_kernel, to 8 for instance, or memory_layers to an empty list"
            )
        if self.memory_layers and self.d_model % self.memory_heads:
            raise ValueError(f"memory_heads = {self.memory_heads} must divide d_model = {self.d_model}")
        return self


class CognateConfig(ShapeConfig):
    """Shape and vocabulary, all that is needed to construct a model."""

    vocab_size: int = Field(1024, ge=258, le=65535, description="Tokens, at most 65535 (uint16 shards)")


class RecursionConfig(BaseModel):
    """Inference settings of fixed weights: recursion, halting, and whether the memory is used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cycles: int = Field(1, ge=1, description="T: recursion cycles in one supervision step")
    latent_steps: int = Field(0, ge=0, description="n: updates of z in a cycle")
    num_supervision: int = Field(1, ge=1, description="N_sup: supervision steps, each an optimizer step")
    halt_threshold: float = Field(1.0, gt=0, le=1, description="A token stops when q exceeds this; 1 never stops")
    use_memory: bool = Field(True, description="Whether the neural memory is written and read")


@dataclass(slots=True)
class Carry:
    """The answer y and the latent z of every position, each (batch, seq, d_model)."""

    y: Tensor
    z: Tensor


@dataclass(slots=True)
class Prediction:
    """`logits` (batch, seq, vocab), `halt` logits (batch, seq), and the supervision steps used (batch, seq)."""

    logits: Tensor
    halt: Tensor
    steps: Tensor


@dataclass(slots=True)
class Trace:
    """The final answers y of a sequence (batch, seq, d_model), its supervision steps (batch, seq), and the records of
    all blocks: `prelude` [layer], `core` [supervision step][pass][layer]."""

    y: Tensor
    steps: Tensor
    prelude: list[LayerRecord]
    core: list[list[list[LayerRecord]]]


@dataclass(slots=True)
class StreamState:
    """The state carried from token to token during generation. Core caches are [supervision step][pass][layer].

    For the newest position, each (batch, 1, d_model): its `answer` y, and the input `given` to the last core block in
    the last pass of its last supervision step.
    """

    prelude: list[BlockState]
    core: list[list[list[WindowCache]]]
    position: int = 0
    steps_used: list[int] = field(default_factory=list)
    answer: Tensor | None = None
    given: Tensor | None = None


@dataclass(slots=True)
class Reading:
    """What `Cognate.read` computed at the positions that it fed: the final answers y and, as `StreamState` has it, the
    input `given` to the last core block, each (batch, seq, d_model); that block's keys `key` (batch, heads, seq,
    width); the `surprise` of each memory, (batch, seq)."""

    y: Tensor
    given: Tensor
    key: Tensor
    surprise: list[Tensor]


class Cognate(nn.Module):
    """The Cognate model of shape `config`. Parameters are initialised from torch's global generator."""

    def __init__(self, config: CognateConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_rank or config.d_model
        self.embedding = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.embedding_out = (
            nn.Linear(config.embedding_rank, config.d_model, bias=False) if config.embedding_rank else None
        )
        blocks = [self._block(layer) for layer in range(config.num_layers)]
        split = config.num_layers - config.num_core_layers
        self.prelude, self.core = nn.ModuleList(blocks[:split]), nn.ModuleList(blocks[split:])
        self.prelude_norm, self.core_norm = RMSNorm(config.d_model), RMSNorm(config.d_model)
        self.latent = nn.Parameter(torch.zeros(config.d_model))
        self.halt_head = nn.Linear(config.d_model, 1)
        nn.init.zeros_(self.halt_head.weight)
        nn.init.constant_(self.halt_head.bias, -2.0)
        self._scale_residuals()

    def _block(self, layer: int) -> TitansBlock:
        config = self.config
        memory = None
        if layer in config.memory_layers:
            memory = NeuralMemory(
                config.d_model,
                config.memory_heads,
                config.memory_rank,
                config.memory_chunk,
            )
        attention = SlidingWindowAttention(
            config.d_model, config.num_heads, config.window, config.num_persistent, config.conv_kernel
        )
        mixes = 0 < layer < config.num_layers - config.num_core_layers
        return TitansBlock(config.d_model, config.d_ff, attention, memory, config.use_memory, mixes)

    def _scale_residuals(self) -> None:
        """Scale the projections into the residual stream by 1 / sqrt(2 L) (GPT-2, section 2.3)."""
        with torch.no_grad():
            for block in [*self.prelude, *self.core]:
                for linear in (block.output, block.mlp.down):
                    linear.weight.mul_((2 * self.config.num_layers) ** -0.5)

    # -- parallel form -------------------------------------------------------------------------------------------

    def encode(self, tokens_BS: Tensor, records: list[LayerRecord] | None = None) -> Tensor:
        """Run the prelude: token ids (batch, seq) -> h (batch, seq, d_model), of unit root mean square.

        Each block's record is appended to `records` when given.
        """
        x = embedded = self.embed(tokens_BS)
        roots = None
        for block in self.prelude:
            x, record = block(x, roots=roots)
            roots = roots or Roots.of(embedded, record.pair)
            if records is not None:
                records.append(record)
        h: Tensor = self.prelude_norm(x)
        return h

    def start(self, h_BSD: Tensor) -> Carry:
        """Return the carry before the first supervision step: y = h, z = the learned latent."""
        return Carry(h_BSD, self.latent.to(h_BSD.dtype).expand_as(h_BSD))

    def supervise(self, h_BSD: Tensor, carry: Carry) -> Carry:
        """Run one supervision step: `cycles` cycles, of which only the last `grad_cycles` carry gradients."""
        config = self.config
        without = max(0, config.cycles - config.grad_cycles)
        with torch.no_grad():
            for _ in range(without):
                carry = self._cycle(h_BSD, carry, None, None)[0]
        for _ in range(config.cycles - without):
            carry = self._cycle(h_BSD, carry, None, None)[0]
        return carry

    def logits(self, y_BSD: Tensor) -> Tensor:
        """Return logits (batch, seq, vocab) from the tied embedding."""
        return F.linear(self.readout(y_BSD), effective_weight(self.embedding).to(y_BSD.dtype))

    def readout(self, y_BSD: Tensor) -> Tensor:
        """Return the vectors (..., embedding width) whose products with the embedding's rows are the logits."""
        if self.embedding_out is None:
            return y_BSD
        return F.linear(y_BSD, effective_weight(self.embedding_out).transpose(0, 1))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed token ids (...) into the residual stream (..., d_model)."""
        return self.widen(F.embedding(tokens, effective_weight(self.embedding)))

    def widen(self, vectors: Tensor) -> Tensor:
        """Project vectors (..., embedding width) to (..., d_model); the identity for a full embedding."""
        if self.embedding_out is None:
            return vectors
        wide: Tensor = self.embedding_out(vectors)
        return wide

    def halt(self, y_BSD: Tensor) -> Tensor:
        """Return the logit of the probability that the current argmax is right, (batch, seq). Gradients stop at y."""
        q: Tensor = self.halt_head(y_BSD.detach()).squeeze(-1)
        return q

    def forward(self, tokens_BS: Tensor) -> Prediction:
        """Predict the next token at every position, with halting as configured. For inference, not training."""
        return self.predict(self.encode(tokens_BS))

    def predict(self, h_BSD: Tensor) -> Prediction:
        """Predict from the prelude's output h: `forward` without `encode`."""
        y, steps = self._run(h_BSD, None)
        return Prediction(self.logits(y), self.halt(y), steps)

    def answers(self, tokens_BS: Tensor) -> Tensor:
        """Return the final answers y (batch, seq, d_model) of `forward`, for those who need few of the logits."""
        return self._run(self.encode(tokens_BS), None)[0]

    def trace(self, tokens_BS: Tensor) -> Trace:
        """Run `forward` and keep the records that branches need to continue from any position (`nn.branching`)."""
        trace = Trace(torch.zeros(0), torch.zeros(0), [], [])
        trace.y, trace.steps = self._run(self.encode(tokens_BS, trace.prelude), trace)
        return trace

    def _run(self, h: Tensor, trace: Trace | None) -> tuple[Tensor, Tensor]:
        carry = self.start(h)
        active = torch.ones(h.shape[:-1], dtype=torch.bool, device=h.device)
        steps = torch.zeros_like(active, dtype=torch.long)
        previous: list[list[list[LayerRecord]]] | None = None
        for _ in range(self.config.num_supervision):
            mask = None if previous is None else active
            following, used = carry, []
            for cycle in range(self.config.cycles):
                following, passes = self._cycle(h, following, None if previous is None else previous[cycle], mask)
                used.append(passes)
            keep = active[..., None]
            carry = Carry(torch.where(keep, following.y, carry.y), torch.where(keep, following.z, carry.z))
            steps = steps + active
            active = active & ~self._halted(carry.y)
            previous = used
            if trace is not None:
                trace.core.append([records for passes in used for records in passes])
            if not bool(active.any()):
                break
        return carry.y, steps

    def _halted(self, y: Tensor) -> Tensor:
        return self.halt(y).sigmoid() > self.config.halt_threshold

    def _cycle(
        self, h: Tensor, carry: Carry, previous: list[list[LayerRecord]] | None, active: Tensor | None
    ) -> tuple[Carry, list[list[LayerRecord]]]:
        """Run one latent recursion (TRM, figure 3): n updates of z, one of y. Returns the records of every pass."""
        y, z = carry.y, carry.z
        used: list[list[LayerRecord]] = []
        for index in range(self.config.latent_steps):
            z, records = self._core_pass(h + y + z, None if previous is None else previous[index], active)
            used.append(records)
        y, records = self._core_pass(y + z, None if previous is None else previous[-1], active)
        used.append(records)
        return Carry(y, z), used

    def _core_pass(
        self, x: Tensor, previous: list[LayerRecord] | None, active: Tensor | None
    ) -> tuple[Tensor, list[LayerRecord]]:
        records = []
        for index, block in enumerate(self.core):
            x, record = block(x, None if previous is None else previous[index], active)
            records.append(record)
        out: Tensor = self.core_norm(x)
        return out, records

    # -- streaming form ------------------------------------------------------------------------------------------

    def stream(self, batch: int = 1) -> StreamState:
        """Return the streaming state before the first token."""

        def caches(blocks: nn.ModuleList) -> list[WindowCache]:
            return [cast(TitansBlock, block).attention.cache(batch) for block in blocks]

        config, passes = self.config, self.config.cycles * (self.config.latent_steps + 1)
        core = [[caches(self.core) for _ in range(passes)] for _ in range(config.num_supervision)]
        return StreamState([BlockState(cache) for cache in caches(self.prelude)], core)

    def step(self, tokens_B: Tensor, state: StreamState) -> Tensor:
        """Feed one token (batch,), advance `state` in place, and return next-token logits (batch, vocab).

        Once every token has halted, the remaining supervision steps are skipped; their caches receive the keys and
        values of the last step that was computed, exactly as in the parallel form.
        """
        x = embedded = self.embed(tokens_B[:, None])
        roots = None
        for index, module in enumerate(self.prelude):
            block = cast(TitansBlock, module)
            x, state.prelude[index], pair = block.step(x, state.prelude[index], state.position, roots)
            roots = roots or Roots.of(embedded, pair)
        h: Tensor = self.prelude_norm(x)
        given: list[Tensor] = []

        def attend(block: TitansBlock, x: Tensor, place: Place, halted: Halted | None) -> tuple[Tensor, KeyValue]:
            supervision, index, layer = place
            out, _, pair = block.step(x, BlockState(state.core[supervision][index][layer]), state.position)
            given[supervision:] = [x]  # overwritten until the last block of the last pass of this supervision step
            return out, pair

        y = self._answered(state, given, *self.recur(h, attend)).y
        return self.logits(y)[:, 0]

    def read(self, tokens_BS: Tensor, state: StreamState) -> Reading:
        """Feed tokens (batch, seq) in parallel, and advance `state` as one `step` for each of them would, up to
        rounding. A long text may be fed in parts of any length; memory grows with the length of a part.

        Raises:
            ValueError: for no tokens.
        """
        if tokens_BS.shape[1] == 0:
            raise ValueError("there is nothing to read: feed at least one token")
        x = embedded = self.embed(tokens_BS)
        first, roots, surprise = state.position, None, []
        for module, block_state in zip(self.prelude, state.prelude, strict=True):
            x, record = cast(TitansBlock, module).read(x, block_state, first, roots=roots)
            roots = roots or Roots.of(embedded, record.pair)
            block_state.attention.write(record.pair, first)
            if record.memory is not None:
                block_state.memory = record.memory.after
                surprise.append(record.memory.surprise())
        given: list[Tensor] = []

        def attend(block: TitansBlock, x: Tensor, place: Place, halted: Halted | None) -> tuple[Tensor, KeyValue]:
            supervision, index, layer = place
            out, record = block.read(x, BlockState(state.core[supervision][index][layer]), first, halted)
            given[supervision:] = [x]
            return out, record.pair

        reading = self._answered(state, given, *self.recur(self.prelude_norm(x), attend))
        reading.surprise = surprise
        return reading

    def _answered(
        self, state: StreamState, given: list[Tensor], y: Tensor, pairs: list[list[list[KeyValue]]], steps: Tensor
    ) -> Reading:
        """Write what the core computed at new positions into `state`; `given` has an entry a supervision step."""
        for caches, fresh in zip(state.core, pairs, strict=True):
            for cache, pair in zip(chain.from_iterable(caches), chain.from_iterable(fresh), strict=True):
                cache.write(pair, state.position)
        state.position += y.shape[1]
        state.steps_used += steps.amax(0).tolist()
        last = (steps - 1)[None, ..., None].expand(1, *y.shape)
        reading = Reading(y, torch.stack(given).gather(0, last)[0], pairs[-1][-1][-1][0], [])
        state.answer, state.given = y[:, -1:], reading.given[:, -1:]
        return reading

    def recur(self, h: Tensor, attend: Attend) -> tuple[Tensor, list[list[list[KeyValue]]], Tensor]:
        """Run all supervision steps for positions h (batch, positions, d_model).

        `attend(block, x, (supervision, pass, layer), halted)` runs one core block against the cached context; where
        positions attend to each other, those that `halted` tells show the keys and values of the step before. Returns
        y, the keys and values of every [supervision][pass][layer], and the number of supervision steps (batch,
        positions) that each position used. Steps after all positions have halted repeat the keys and values of the last
        computed step.
        """
        config = self.config
        carry = self.start(h)
        active = torch.ones(h.shape[:-1], dtype=torch.bool, device=h.device)
        steps = torch.zeros_like(active, dtype=torch.long)
        pairs: list[list[list[KeyValue]]] = []
        for supervision in range(config.num_supervision):
            if not bool(active.any()):
                break
            previous = pairs[-1] if pairs else None
            following, used = self._recur_once(h, carry, attend, supervision, previous, active)
            keep = active[..., None]
            carry = Carry(torch.where(keep, following.y, carry.y), torch.where(keep, following.z, carry.z))
            steps = steps + active
            active = active & ~self._halted(carry.y)
            pairs.append(used)
        return carry.y, pairs + [pairs[-1]] * (config.num_supervision - len(pairs)), steps

    def _recur_once(
        self,
        h: Tensor,
        carry: Carry,
        attend: Attend,
        supervision: int,
        previous: list[list[KeyValue]] | None,
        active: Tensor,
    ) -> tuple[Carry, list[list[KeyValue]]]:
        """Run one supervision step; halted positions keep the keys and values of the step before."""
        y, z = carry.y, carry.z
        pairs: list[list[KeyValue]] = []
        per_cycle = self.config.latent_steps + 1
        for index in range(self.config.cycles * per_cycle):
            is_answer = index % per_cycle == per_cycle - 1
            x = y + z if is_answer else h + y + z
            layer_pairs: list[KeyValue] = []
            for layer, module in enumerate(self.core):
                halted = None if previous is None else (previous[index][layer], active)
                x, pair = attend(cast(TitansBlock, module), x, (supervision, index, layer), halted)
                if halted is not None:
                    keep, old = active[:, None, :, None], halted[0]
                    pair = tuple(torch.where(keep, new, kept) for new, kept in zip(pair, old, strict=True))
                layer_pairs.append(pair)
            pairs.append(layer_pairs)
            out: Tensor = self.core_norm(x)
            y, z = (out, z) if is_answer else (y, out)
        return Carry(y, z), pairs


def effective_weight(module: nn.Module) -> Tensor:
    """Return the weight a layer computes with: `module.effective_weight()` if quantised, else `module.weight`."""
    effective = getattr(module, "effective_weight", None)
    weight: Tensor = module.weight if effective is None else effective()  # type: ignore[assignment]
    return weight


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable scalars; tied weights count once."""
    return sum(p.numel() for p in model.parameters())


_PARTS = {  # of a model, and what the names of its parameters contain; the first that fits counts
    "embedding, tied to the output": ("embedding",),
    "convolutions": (".attention.conv",),
    "neural memory": (".memory.", "attention_gain", "memory_gain"),
    "attention": (".attention.", ".output."),
    "feed-forward (SwiGLU)": (".mlp.",),
    "norms": ("norm",),
    "residuals": (".residual",),
    "recursion and halting": ("latent", "halt_head"),
}


def parameters_by_part(model: Cognate) -> dict[str, int]:
    """Return the number of trainable scalars of each part; parts without any are left out."""
    counts = dict.fromkeys(_PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[next(part for part, marks in _PARTS.items() if any(mark in name for mark in marks))] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def check_sequence(shape: ShapeConfig, seq_len: int) -> None:
    """Check that training sequences fit the model's context.

    Raises:
        ValueError: when seq_len exceeds max_seq_len.
    """
    if seq_len > shape.max_seq_len:
        raise ValueError(
            f"seq_len = {seq_len} exceeds max_seq_len = {shape.max_seq_len}: shorten the one or raise the other"
        )
