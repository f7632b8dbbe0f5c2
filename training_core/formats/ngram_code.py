"""Encoding of pruned n-grams with quantised probabilities, together with their tokenizer, in as few bytes as we can.

A set of n-grams is a trie: each n-gram is a child of the one without its last token, which must be in the set too.
Order by order, the code holds how many children each n-gram has, which ones, and their levels (quantised
probabilities). A child is coded by its *rank* among the tokens, best first, that the context's own suffix suggests:
first the children of the longest stored suffix by level, then those of the next, at last all tokens by level. Most
children have a low rank, because what follows "the old" mostly follows "old". Differences of ranks, numbers of children
and levels are coded with ANS (`codec`), under static tables for each group of symbols that are alike; a group is a
function of what was decoded before. A value of 8 or more is a class, which is coded, and further bits, which are not.

Shape legend: N n-grams of one order, C contexts with children, K children of all contexts.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from training_core.formats.codec import CodecError, open_coder, squeeze, unsqueeze, words_to_bytes
from training_core.formats.tokenizer_codec import compact, expand

TOKEN_BITS = 16  # a token is a uint16, so that an n-gram of four fits in 64 bits
MAX_ORDER = 64 // TOKEN_BITS
STEP = 0.4  # nats of log-odds between two levels
_SMALL = 8  # smaller values are symbols of their own
_LARGEST_COST = 24  # bits; n-grams that are less probable share a table
_HEADER = struct.Struct("<IHBI")  # bytes of the tokenizer, vocabulary, highest order, bytes of the tables
Keys = NDArray[np.uint64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NGramLevels:
    """N-grams of one order: sorted `keys` (N), the last token in the lowest bits, and their `levels` (N)."""

    keys: Keys
    levels: Ints

    @property
    def contexts(self) -> Keys:
        """Every n-gram without its last token (N)."""
        return self.keys >> np.uint64(TOKEN_BITS)

    @property
    def tokens(self) -> Ints:
        """The last token of every n-gram (N)."""
        return last_tokens(self.keys, 1).astype(np.int64)


def last_tokens(keys: Keys, count: int) -> Keys:
    """Return the last `count` tokens of packed n-grams."""
    return keys & np.uint64((1 << (TOKEN_BITS * count)) - 1)


def find(keys: Keys, wanted: Keys) -> tuple[Ints, NDArray[np.bool_]]:
    """Return where each wanted key stands in sorted `keys`, and whether it does; the place is valid where it does."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


def level_of(probability: NDArray[np.float64]) -> Ints:
    """Return the levels nearest to probabilities in (0, 1), on a grid of log-odds: ln(p / (1 - p)) / STEP."""
    levels: Ints = np.rint(np.log(probability / (1 - probability)) / STEP).astype(np.int64)
    return levels


def probability_of(levels: Ints) -> NDArray[np.float64]:
    """Return the probabilities that levels stand for."""
    probability: NDArray[np.float64] = 1 / (1 + np.exp(-STEP * levels))
    return probability


def encode_ngrams(orders: Sequence[NGramLevels], tokenizer_json: str) -> bytes:
    """Return the bytes of the n-grams and their tokenizer. `orders[0]` holds every token of the vocabulary.

    Raises:
        ValueError: when an n-gram stands in the set without the one that it extends, or the tokenizer has no compact
            form.
    """
    writer = _Writer()
    _levels(writer, orders[0].levels, np.zeros(len(orders[0].keys), np.int64))
    for order in range(2, len(orders) + 1):
        below, grams = _Below(orders[: order - 1]), orders[order - 1]
        parents, known = find(orders[order - 2].keys, grams.contexts)
        if not known.all():
            raise ValueError(f"every n-gram of order {order} must extend one of order {order - 1} in the set; add it")
        ranks = below.rank(grams)
        by_rank = np.lexsort((ranks, parents))
        numbers = np.bincount(parents, minlength=len(orders[order - 2].keys))
        _numbers(writer, numbers, below)
        _ranks(writer, ranks[by_rank], numbers)
        _levels(writer, grams.levels[by_rank], below.nearest_level(grams.keys[by_rank]))
    tokenizer, tables = compact(tokenizer_json), squeeze(bytes(writer.tables))
    header = _HEADER.pack(len(tokenizer), len(orders[0].keys), len(orders), len(tables))
    return header + struct.pack("<I", len(writer.tables)) + tokenizer + tables + writer.payload()


def decode_ngrams(data: bytes) -> tuple[list[NGramLevels], str]:
    """Return the n-grams and the tokenizer of `encode_ngrams`.

    Raises:
        CodecError: when `data` is not complete.
    """
    if len(data) < _HEADER.size + 4:
        raise CodecError(f"packed n-grams have at least {_HEADER.size + 4} bytes, got {len(data)}; pack them again")
    tokenizer_bytes, vocabulary, highest, table_bytes = _HEADER.unpack_from(data)
    (raw,) = struct.unpack_from("<I", data, _HEADER.size)
    start = _HEADER.size + 4
    tables = start + tokenizer_bytes
    reader = _Reader(unsqueeze(data[tables : tables + table_bytes], raw), data[tables + table_bytes :])
    tokens = np.arange(vocabulary, dtype=np.uint64)
    orders = [NGramLevels(tokens, _levels(reader, None, np.zeros(vocabulary, np.int64)))]
    for _ in range(2, highest + 1):
        below = _Below(orders)
        numbers = _numbers(reader, None, below)
        parents = np.repeat(np.arange(len(numbers)), numbers)
        contexts = orders[-1].keys[parents]
        found = below.token(contexts, _ranks(reader, None, numbers))
        keys = (contexts << np.uint64(TOKEN_BITS)) | found.astype(np.uint64)
        levels = _levels(reader, None, below.nearest_level(keys))
        ordered = np.argsort(keys)
        orders.append(NGramLevels(keys[ordered], levels[ordered]))
    if not reader.coder.is_empty():
        raise CodecError("symbols are left after the last n-gram; the bytes are damaged, pack them again")
    return orders, expand(data[start:tables])


class _Below:
    """The orders that are known when the next one is coded, and what they suggest about it."""

    def __init__(self, orders: Sequence[NGramLevels]) -> None:
        self.orders = orders
        self._best = [np.lexsort((grams.keys, -grams.levels, grams.contexts)) for grams in orders]
        self._contexts: list[tuple[Keys, Ints]] = []  # of each order: distinct contexts, and where each begins
        for grams in orders:
            contexts, first = np.unique(grams.contexts, return_index=True)
            self._contexts.append((contexts, np.append(first, len(grams.keys)).astype(np.int64)))

    def rank(self, grams: NGramLevels) -> Ints:
        """Return the rank of each n-gram's last token among those that the suffixes of its context suggest."""
        rank = np.zeros(len(grams.keys), np.int64)
        open_ = np.ones(len(rank), bool)
        for order in range(len(self.orders), 0, -1):
            keys = last_tokens(grams.keys, order)
            place, known = find(self.orders[order - 1].keys, keys)
            first, size = self._children(keys >> np.uint64(TOKEN_BITS), order)
            within = np.argsort(self._best[order - 1])  # the inverse permutation
            rank += np.where(open_, np.where(known, within[place] - first, size), 0)
            open_ &= ~known
        return rank

    def token(self, contexts: Keys, ranks: Ints) -> Ints:
        """Return the token of each rank, the inverse of `rank`."""
        token, left = np.full(len(ranks), -1), ranks.copy()
        for order in range(len(self.orders), 0, -1):
            first, size = self._children(last_tokens(contexts, order - 1), order)
            here = (token < 0) & (left < size)
            token[here] = self.orders[order - 1].tokens[self._best[order - 1][first[here] + left[here]]]
            left -= size
        if (token < 0).any():
            raise CodecError("a rank exceeds the vocabulary; the bytes are damaged, pack them again")
        return token

    def nearest_level(self, keys: Keys) -> Ints:
        """Return the level of each n-gram's longest suffix that is known, halved: levels that differ little share a
        table."""
        found = np.zeros(len(keys), np.int64)
        for order, grams in enumerate(self.orders, start=1):
            place, known = find(grams.keys, last_tokens(keys, order))
            found[known] = grams.levels[place[known]]
        return found // 2

    def cost(self) -> Ints:
        """Return -log2 of the probability of every n-gram of the highest order known, in whole bits."""
        keys, bits = self.orders[-1].keys, np.zeros(len(self.orders[-1].keys))
        for order in range(len(self.orders), 0, -1):
            place, _ = find(self.orders[order - 1].keys, keys)
            bits += np.log2(1 + np.exp(-STEP * self.orders[order - 1].levels[place]))
            keys = keys >> np.uint64(TOKEN_BITS)
        return np.minimum(bits, _LARGEST_COST).astype(np.int64)

    def _children(self, contexts: Keys, order: int) -> tuple[Ints, Ints]:
        """Return where the children of each context begin among the n-grams of an order, and how many there are."""
        keys, first = self._contexts[order - 1]
        place, known = find(keys, contexts)
        return first[place], np.where(known, first[place + 1] - first[place], 0)


class _Coder(Protocol):
    """Writes values, or reads them where `values` is None. Both sides know the groups and the widths."""

    def symbols(self, values: Ints | None, groups: Ints) -> Ints: ...

    def bits(self, values: Ints | None, widths: Ints) -> Ints: ...


def _numbers(coder: _Coder, values: Ints | None, below: _Below) -> Ints:
    """Code the number of children of every n-gram, which depends on how frequent it is."""
    return _large(coder, values, below.cost())


def _ranks(coder: _Coder, values: Ints | None, numbers: Ints) -> Ints:
    """Code the ascending ranks of every n-gram's children as differences, which depend on their number."""
    sizes = numbers[numbers > 0]
    first = np.cumsum(sizes) - sizes
    groups = 2 * np.repeat(np.log2(np.maximum(sizes, 1)).astype(np.int64), sizes)
    groups[first] += 1
    steps = None
    if values is not None:
        steps = np.diff(values, prepend=0) - 1
        steps[first] = values[first]
    steps = _large(coder, steps, groups) + 1
    steps[first] -= 1
    running = np.cumsum(steps)
    ranks: Ints = running - np.repeat(running[first] - steps[first], sizes)
    return ranks


def _levels(coder: _Coder, values: Ints | None, groups: Ints) -> Ints:
    """Code levels, which may be negative."""
    zigzag = None if values is None else np.where(values < 0, -2 * values - 1, 2 * values)
    found = coder.symbols(zigzag, groups)
    levels: Ints = np.where(found % 2 == 1, -(found + 1) // 2, found // 2)
    return levels


def _large(coder: _Coder, values: Ints | None, groups: Ints) -> Ints:
    """Code values of any size: those below _SMALL as symbols, others as their two leading bits and the rest."""
    symbols = rest = None
    if values is not None:
        shift = np.maximum(np.log2(np.maximum(values, 1)).astype(np.int64) - 1, 0)  # bits after the leading two
        symbols = np.where(values < _SMALL, values, _SMALL + 2 * (shift - 2) + ((values >> shift) & 1))
        rest = values & ((1 << shift) - 1)
    symbols = coder.symbols(symbols, groups)
    above = symbols >= _SMALL
    widths = np.where(above, 2 + (symbols - _SMALL) // 2, 0)
    found = coder.bits(rest, widths)
    return np.where(above, ((2 + (symbols & 1)) << widths) + found, symbols)


class _Writer:
    """Collects symbols and their tables; `payload` codes them. A table is the alphabet's size and a byte a symbol."""

    def __init__(self) -> None:
        self.tables = bytearray()
        self._parts: list[tuple[NDArray[np.int32], Any]] = []

    def symbols(self, values: Ints | None, groups: Ints) -> Ints:
        """Code values below 256, each under the table of its group."""
        assert values is not None
        for group in np.unique(groups):
            part = values[groups == group]
            counts = np.bincount(part)
            table = np.where(counts, np.maximum(1, 255 * counts // counts.max()), 0)
            self.tables += bytes([len(table) - 1, *table.tolist()])
            present = np.flatnonzero(table)
            if len(present) > 1:
                self._parts.append((np.searchsorted(present, part).astype(np.int32), _categorical(table[present])))
        return values

    def bits(self, values: Ints | None, widths: Ints) -> Ints:
        """Code integers of `widths` bits each, all values alike."""
        assert values is not None
        for width in np.unique(widths[widths > 0]):
            self._parts.append((values[widths == width].astype(np.int32), _uniform(int(width))))
        return np.where(widths > 0, values, 0)

    def payload(self) -> bytes:
        """Return the coded symbols."""
        import constriction

        coder = constriction.stream.stack.AnsCoder()
        for symbols, model in reversed(self._parts):  # ANS is a stack: what is encoded last is decoded first
            coder.encode_reverse(symbols, model)
        return words_to_bytes(coder.get_compressed())


class _Reader:
    """Reads what `_Writer` wrote, in the same order."""

    def __init__(self, tables: bytes, payload: bytes) -> None:
        self._tables, self._position = tables, 0
        self.coder = open_coder(payload)

    def symbols(self, values: Ints | None, groups: Ints) -> Ints:
        """Return the symbols, each decoded under the table of its group."""
        del values
        found = np.zeros(len(groups), np.int64)
        for group in np.unique(groups):
            size, start = self._tables[self._position] + 1, self._position + 1
            table = np.frombuffer(self._tables[start : start + size], np.uint8)
            self._position = start + size
            where, present = np.flatnonzero(groups == group), np.flatnonzero(table)
            drawn = np.zeros(len(where), np.int64)
            if len(present) > 1:
                drawn = self.coder.decode(_categorical(table[present]), len(where))
            found[where] = present[drawn]
        return found

    def bits(self, values: Ints | None, widths: Ints) -> Ints:
        """Return the integers of `widths` bits."""
        del values
        found = np.zeros(len(widths), np.int64)
        for width in np.unique(widths[widths > 0]):
            where = np.flatnonzero(widths == width)
            found[where] = self.coder.decode(_uniform(int(width)), len(where))
        return found


def _categorical(table: NDArray[Any]) -> Any:
    import constriction

    return constriction.stream.model.Categorical(table.astype(np.float64), perfect=False)


def _uniform(width: int) -> Any:
    import constriction

    return constriction.stream.model.Uniform(1 << width)
