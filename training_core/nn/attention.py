"""Causal sliding-window attention with persistent tokens that every position sees: SW-Attn* of Titans, eq. 27.

Shape legend: B batch, S sequence, D model width, H heads, K head width, P persistent tokens, W window, N windows,
R branches, T tail of the convolution (kernel - 1 positions).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_core.nn.layers import CausalConv, RMSNorm, join_heads, rotary_table, rotate, split_heads

# Keys and values (batch, heads, positions, width); with a convolution also its inputs (batch, 1, positions, d_model).
KeyValue = tuple[Tensor, ...]
_PROJECTIONS = 3  # query, key and value
_CONV_STD = 0.2  # of the initial convolution's weights beside the identity


@dataclass(slots=True)
class WindowCache:
    """The KV cache of a stream: keys and values (batch, heads, persistent + window, width), written in place.

    The first `num_persistent` slots hold the persistent tokens; position p is in slot p % window after them. `inputs`
    (batch, kernel, d_model) holds the convolution's inputs, that of position p in slot p % kernel; zeros at the start.
    """

    keys: Tensor
    values: Tensor
    num_persistent: int
    inputs: Tensor | None = None

    @property
    def window(self) -> int:
        """Number of positions that the cache holds."""
        return self.keys.shape[2] - self.num_persistent

    def write(self, pair: KeyValue, first: int) -> None:
        """Write the positions `first`, `first` + 1, ..., of which the last `window` are kept."""
        count = pair[0].shape[2]
        if self.inputs is not None:
            kept = min(count, self.inputs.shape[1])
            ring = [position % self.inputs.shape[1] for position in range(first + count - kept, first + count)]
            self.inputs[:, ring] = pair[2][:, 0, count - kept :]
        if count == 1:  # the decoding path avoids an index tensor
            slot = self.num_persistent + first % self.window
            self.keys[:, :, slot], self.values[:, :, slot] = pair[0][:, :, 0], pair[1][:, :, 0]
            return
        slots = self._slots(max(first, first + count - self.window), first + count)
        for stored, new in zip((self.keys, self.values), pair[:2], strict=True):
            stored[:, :, slots] = new[:, :, count - len(slots) :]

    def tail(self, position: int) -> Tensor | None:
        """Return the convolution's inputs of the kernel - 1 positions before `position`, in order; None without one."""
        if self.inputs is None:
            return None
        kernel = self.inputs.shape[1]
        return self.inputs[:, [before % kernel for before in range(position - kernel + 1, position)]]

    def visible(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values that `position` sees once it is written, as views in slot order."""
        filled = self.num_persistent + min(position + 1, self.window)
        return self.keys[:, :, :filled], self.values[:, :, :filled]

    def before(self, position: int) -> KeyValue:
        """Return a copy of the last `window` - 1 positions before `position`, in order, and the convolution's tail."""
        slots = self._slots(max(0, position - self.window + 1), position)
        tail = self.tail(position)
        return self.keys[:, :, slots], self.values[:, :, slots], *(() if tail is None else (tail[:, None],))

    def _slots(self, first: int, end: int) -> list[int]:
        return [self.num_persistent + position % self.window for position in range(first, end)]


@dataclass(slots=True)
class BranchKeys:
    """The branches' own earlier positions: keys and values, each (batch, heads, branches, width), and their validity.

    `valid` entries are (batch, branches, 1): positions that a branch feeds after it has stopped are invisible. `tail`
    (batch, branches, kernel - 1, d_model) holds the convolution's inputs before each branch's next position.
    """

    tail: Tensor | None = None
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)

    def add(self, pair: KeyValue, valid_BR: Tensor) -> None:
        """Append the newest position."""
        self.keys.append(pair[0])
        self.values.append(pair[1])
        self.valid.append(valid_BR[..., None])
        if self.tail is not None:
            following = torch.cat([self.tail[:, :, 1:], pair[2][:, 0, :, None]], dim=2)
            self.tail = torch.where(valid_BR[..., None, None], following, self.tail)


class SlidingWindowAttention(nn.Module):
    """Position i attends to positions i - window + 1 .. i and to all persistent tokens; cost O(S * window).

    Queries and keys are RMS-normalised per head before the rotation (Henry et al., 2020, with RMSNorm), which keeps
    the attention logits bounded under Muon's large updates. The output projection is left to the caller: the
    MAG gate sits between the heads and that projection.

    With `conv_kernel` > 0, queries, keys and values are projections of conv(x), each with a causal depthwise
    convolution of its own over the last `conv_kernel` positions, at first near the identity. A key can hold the words
    just before it, which binds a name to what was said of it within one layer ("Canon layers", Allen-Zhu, 2025, Physics
    of Language Models 4.1).

    **Differs from the paper**: Titans convolves after the projections; persistent tokens pass through the key and value
    projections of each layer, as a prefix would, but carry no rotary position.
    """

    def __init__(self, d_model: int, num_heads: int, window: int, num_persistent: int, conv_kernel: int = 0) -> None:
        super().__init__()
        self.conv = CausalConv(d_model, conv_kernel, _CONV_STD, copies=_PROJECTIONS) if conv_kernel else None
        self.num_heads, self.window = num_heads, window
        self.head_width = d_model // num_heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.query_norm = RMSNorm(self.head_width)
        self.key_norm = RMSNorm(self.head_width)
        self.persistent = nn.Parameter(torch.randn(num_persistent, d_model) * 0.02)

    def forward(
        self,
        x_BSD: Tensor,
        previous: KeyValue | None = None,
        active_BS: Tensor | None = None,
        *,
        before: KeyValue | None = None,
        first: int = 0,
        added: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue, Tensor]:
        """Attend over the whole sequence in parallel. It starts at position `first`, after the keys and values `before`
        (batch, heads, at most window - 1, width).

        Where `active_BS` is False, the keys and values of `previous` replace the position's own: a halted position
        keeps those of its last active step. `added` (batch, heads, seq, width) is added to the values.

        Returns the joined heads (batch, seq, d_model), this call's keys and values (batch, heads, seq, width), and the
        convolved inputs of queries, keys and values (batch, seq, 3 * d_model); the input itself without a convolution.
        """
        seq = x_BSD.shape[1]
        if previous is not None and active_BS is not None and self.conv is not None:
            x_BSD = torch.where(active_BS[..., None], x_BSD, previous[2][:, 0])
        convolved = self._convolved(x_BSD, self._tail(before))
        query, key, value = self._project(convolved, torch.arange(first, first + seq, device=x_BSD.device), added)
        if previous is not None and active_BS is not None:
            keep = active_BS[:, None, :, None]
            key, value = torch.where(keep, key, previous[0]), torch.where(keep, value, previous[1])
        pair = self._pair(key, value, x_BSD)
        if before is None:
            return join_heads(self._mix(query, key, value)), pair, convolved
        keys, values = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        query = F.pad(query, (0, 0, keys.shape[2] - seq, 0))  # the positions before need no answers
        return join_heads(self._mix(query, keys, values)[:, :, keys.shape[2] - seq :]), pair, convolved

    @torch.no_grad()
    def cache(self, batch: int) -> WindowCache:
        """Return the cache before position 0."""
        keys, values = (F.pad(t, (0, 0, 0, self.window)) for t in self._persistent(batch, self.persistent.dtype))
        inputs = None if self.conv is None else keys.new_zeros(batch, self.conv.kernel, self.persistent.shape[1])
        return WindowCache(keys, values, self.persistent.shape[0], inputs)

    def step(
        self, x_B1D: Tensor, cache: WindowCache, position: int, added: Tensor | None = None
    ) -> tuple[Tensor, KeyValue, Tensor]:
        """Attend from one new position; its key and value are written to `cache`. Returns what `forward` does."""
        convolved = self._convolved(x_B1D, cache.tail(position))
        query, key, value = self._project(convolved, torch.tensor([position], device=x_B1D.device), added)
        pair = self._pair(key, value, x_B1D)
        cache.write(pair, position)
        keys, values = cache.visible(position)
        return join_heads(F.scaled_dot_product_attention(query, keys, values)), pair, convolved

    def branch(
        self,
        x_BRD: Tensor,
        prefix: KeyValue,
        visible_BRS: Tensor,
        own: BranchKeys,
        positions_BR: Tensor,
        added: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue, Tensor]:
        """Attend from one position of R independent branches: each sees its part of the prefix and its own positions.

        `prefix` holds keys and values (batch, heads, seq, width) shared by all branches, `visible_BRS` which of them a
        branch sees, `own` the branches' earlier positions. Returns what `forward` does, with branches for positions.
        """
        convolved = x_BRD
        if self.conv is not None:
            assert own.tail is not None
            convolved = self.conv.last(x_BRD, own.tail)[0]
        query, key, value = self._project(convolved, positions_BR, added)
        key_P, value_P = self._persistent(query.shape[0], query.dtype)
        keys, values = torch.cat([key_P, prefix[0]], dim=2), torch.cat([value_P, prefix[1]], dim=2)
        own_keys = torch.stack([*own.keys, key], dim=3)
        own_values = torch.stack([*own.values, value], dim=3)
        shared = query @ keys.transpose(-1, -2)
        alone = (own_keys @ query[..., None]).squeeze(-1)
        persistent, itself = (visible_BRS.new_ones(*visible_BRS.shape[:2], count) for count in (key_P.shape[2], 1))
        seen = torch.cat([persistent, visible_BRS, *own.valid, itself], dim=-1)
        scores = torch.cat([shared, alone], dim=-1) * self.head_width**-0.5
        weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        on_prefix, on_own = weights.split([keys.shape[2], own_keys.shape[3]], dim=-1)
        mixed = on_prefix @ values + (on_own[..., None, :] @ own_values).squeeze(-2)
        return join_heads(mixed), self._pair(key, value, x_BRD), convolved

    def dispersion(self, x_BSD: Tensor, key: Tensor) -> Tensor:
        """Return the normalised entropy of each position's attention (1: uniform), averaged over heads, in [0, 1].

        `key` (batch, heads, seq, width) are the positions' own; a halted one has shown that of its last active step.
        Persistent tokens count as keys. A position with a single visible key has dispersion 0. (batch, seq).
        """
        i = torch.arange(x_BSD.shape[1], device=x_BSD.device)
        query, _, _ = self._project(self._convolved(x_BSD), i)
        return self._evenness(query, key, (i[:, None] >= i) & (i[:, None] - i < self.window))

    def dispersion_at(self, x_BSD: Tensor, key: Tensor, before: KeyValue, first: int) -> Tensor:
        """Return the `dispersion` of new positions from `first`, given at most `window` - 1 keys and values before
        them: (batch, seq)."""
        i = torch.arange(first, first + x_BSD.shape[1], device=x_BSD.device)
        query, _, _ = self._project(self._convolved(x_BSD, self._tail(before)), i)
        keys = torch.cat([before[0], key], dim=2)
        j = torch.arange(first - before[0].shape[2], first + x_BSD.shape[1], device=x_BSD.device)
        distance = i[:, None] - j
        return self._evenness(query, keys, (distance >= 0) & (distance < self.window))

    def _evenness(self, query: Tensor, key: Tensor, visible_SK: Tensor) -> Tensor:
        key_P, _ = self._persistent(query.shape[0], query.dtype)
        seen = torch.cat([visible_SK.new_ones(visible_SK.shape[0], key_P.shape[2]), visible_SK], dim=1)
        scores = query @ torch.cat([key_P, key], dim=2).transpose(-1, -2) * self.head_width**-0.5
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        entropy = torch.special.entr(weights).sum(-1).mean(1)
        dispersion: Tensor = entropy / seen.sum(-1, dtype=entropy.dtype).clamp_min(2).log()
        return dispersion

    def _convolved(self, x_BSD: Tensor, tail_BTD: Tensor | None = None) -> Tensor:
        """The input of each projection, one after the other in the last dimension; without a convolution only one."""
        if self.conv is None:
            return x_BSD
        mixed: Tensor = self.conv(x_BSD, tail_BTD)[0]
        return mixed

    def _tail(self, before: KeyValue | None) -> Tensor | None:
        return None if before is None or self.conv is None else before[2][:, 0]

    def _pair(self, key: Tensor, value: Tensor, inputs_BSD: Tensor) -> KeyValue:
        return (key, value) if self.conv is None else (key, value, inputs_BSD[:, None])

    def _project(self, x_BSD: Tensor, positions: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        table = rotary_table(positions, self.head_width)
        heads = (self.num_heads, self.head_width)
        asks, shows, holds = [x_BSD] * _PROJECTIONS if self.conv is None else x_BSD.chunk(_PROJECTIONS, dim=-1)
        query = rotate(self.query_norm(self.query(asks).unflatten(-1, heads)), table).transpose(1, 2)
        key = rotate(self.key_norm(self.key(shows).unflatten(-1, heads)), table).transpose(1, 2)
        value = split_heads(self.value(holds), self.num_heads)
        return query, key, value if added is None else value + added

    def _persistent(self, batch: int, dtype: torch.dtype) -> KeyValue:
        tokens = self.persistent.to(dtype)[None]
        key = self.key_norm(split_heads(self.key(tokens), self.num_heads))
        value = split_heads(self.value(tokens), self.num_heads)
        return key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seq = query.shape[2]
        if seq <= self.window:
            return self._attend(query, key, value, _causal_mask(seq, query.device))
        return self._attend_banded(query, key, value)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask_ST: Tensor) -> Tensor:
        key_P, value_P = self._persistent(query.shape[0], query.dtype)
        visible = mask_ST.new_ones(mask_ST.shape[0], key_P.shape[2])
        return F.scaled_dot_product_attention(
            query,
            torch.cat([key_P, key], dim=2),
            torch.cat([value_P, value], dim=2),
            attn_mask=torch.cat([visible, mask_ST], dim=1),
        )

    def _attend_banded(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each window of queries sees its own and the previous window of keys, masked to the exact band."""
        batch, heads, seq, width = query.shape
        window = self.window
        num = -(-seq // window)
        pad = num * window - seq
        query, key, value = (F.pad(t, (0, 0, 0, pad)) for t in (query, key, value))
        key_P, value_P = self._persistent(batch, query.dtype)

        def with_previous(t: Tensor, prefix_P: Tensor) -> Tensor:
            own = t.reshape(batch, heads, num, window, width)
            before = F.pad(own, (0, 0, 0, 0, 1, 0))[:, :, :num]
            prefix = prefix_P[:, :, None].expand(-1, -1, num, -1, -1)
            stacked = torch.cat([prefix, before, own], dim=3)
            return stacked.transpose(1, 2).reshape(batch * num, heads, -1, width)

        query = (
            query.reshape(batch, heads, num, window, width).transpose(1, 2).reshape(batch * num, heads, window, width)
        )
        band = _band_mask(window, key_P.shape[2], query.device)
        mask = band[None].repeat(num, 1, 1)
        mask[0, :, key_P.shape[2] : key_P.shape[2] + window] = False  # nothing lies before the first window
        mask = mask[None].expand(batch, -1, -1, -1).reshape(batch * num, 1, window, -1)
        mixed = F.scaled_dot_product_attention(
            query, with_previous(key, key_P), with_previous(value, value_P), attn_mask=mask
        )
        mixed = mixed.reshape(batch, num, heads, window, width).transpose(1, 2)
        return mixed.reshape(batch, heads, num * window, width)[:, :, :seq]


def _causal_mask(seq: int, device: torch.device) -> Tensor:
    return torch.ones(seq, seq, dtype=torch.bool, device=device).tril()


def _band_mask(window: int, num_persistent: int, device: torch.device) -> Tensor:
    """(window, persistent + 2 * window): query i sees key j - window of the pair iff 0 <= i - j < window."""
    i = torch.arange(window, device=device)[:, None]
    j = torch.arange(-window, window, device=device)[None, :]
    band = (i - j >= 0) & (i - j < window)
    return torch.cat([band.new_ones(window, num_persistent), band], dim=1)
