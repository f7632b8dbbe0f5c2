"""The best n-gram model that fits a given number of bytes: pruned, quantised, entropy-coded, and decoded again.

It is the control of equal bytes for a compressed model: counting needs no training, so a file that is worse bought
nothing with its. The model backs off (Katz, 1987): with S(h) the tokens stored after the context h,

    p(w | h) = q(h w) if w in S(h), else b(h) p(w | h')
    b(h) = (1 - sum_{S(h)} q(h w)) / (1 - sum_{S(h)} p(w | h'))

so that only the probabilities q are stored. They are estimated by absolute discounting with one discount for counts of
1, 2 and more, as in `counting`, but of the counts themselves at every order: continuation counts, which Kneser-Ney
smoothing has at lower orders, are wrong once most of the longer n-grams are pruned (Chelba et al., 2010).

Orders grow from below. An n-gram is kept if what it gains over the pruned model so far,

    (c - z sqrt(c)) log2(q(h w) / p(w | h')) > z / 4    bits,

and if its context as a whole gains, back-off included. This is entropy pruning (Stolcke, 1998) with a lower bound of
the count in place of the count, because n-grams are stored for text to come: at equal bytes it was better by 2 %
on validation documents. The largest file within the budget is found by bisection over z.

Shape legend: N n-grams of one order, C contexts, P positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training_core.data.packing import TokenStream
from training_core.evaluation.counting import NGrams, Numbers, fit_stream, measure_predictions, packed
from training_core.evaluation.windows import Windows
from training_core.formats.ngram_code import (
    MAX_ORDER,
    TOKEN_BITS,
    Ints,
    Keys,
    NGramLevels,
    decode_ngrams,
    encode_ngrams,
    find,
    last_tokens,
    level_of,
    probability_of,
)

STRICTEST, LOOSEST = 256.0, 0.05  # range of z
CLOSE_ENOUGH = 0.995  # of the budget
LARGEST_SUM = 0.995  # of stored probabilities after one context, unless one alone is larger


@dataclass(frozen=True, slots=True)
class _Order:
    """The n-grams stored of one order, their probabilities `q` (N), and for each context (C) its first n-gram and b."""

    keys: Keys
    q: Numbers
    contexts: Keys
    first: Ints
    backoff: Numbers


class BackoffModel:
    """A back-off model, made from levels as they are stored."""

    def __init__(self, orders: Sequence[NGramLevels]) -> None:
        self.levels: list[NGramLevels] = []
        self._orders: list[_Order] = []
        for grams in orders:
            self.add(grams)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.levels[0].keys)

    def add(self, grams: NGramLevels) -> None:
        """Add the n-grams of the next order."""
        q = probability_of(grams.levels)
        contexts, first = np.unique(grams.contexts, return_index=True)
        if not self._orders:
            backoff, q = np.zeros(1), q / q.sum()
        else:
            total = _sums(q, first)
            limit = np.maximum(LARGEST_SUM, np.maximum.reduceat(q, first) if len(q) else total)
            q = q * np.repeat(np.minimum(1.0, limit / total), np.diff(np.append(first, len(q))))
            lower = self.probability(last_tokens(grams.keys, len(self._orders)), len(self._orders))
            backoff = (1 - _sums(q, first)) / (1 - _sums(lower, first))
        self.levels.append(grams)
        self._orders.append(_Order(grams.keys, q, contexts, np.append(first, len(q)), backoff))

    def probability(self, keys: Keys, order: int) -> Numbers:
        """Return p(w | h) of n-grams of `order` (N), whether they are stored or not."""
        stored = self._orders[order - 1]
        place, known = find(stored.keys, keys)
        if order == 1:
            return stored.q[place]
        found = self.probability(last_tokens(keys, order - 1), order - 1)
        owner, extends = find(stored.contexts, keys >> np.uint64(TOKEN_BITS))
        found[extends] *= stored.backoff[owner[extends]]
        found[known] = stored.q[place[known]]
        return found

    def probabilities(self, contexts: NDArray[np.int64]) -> Numbers:
        """Return the next-token distributions (P, V) after `contexts` (P, order - 1), the nearest token last."""
        found = np.repeat(self._orders[0].q[None], len(contexts), axis=0)
        for order, stored in enumerate(self._orders[1:], start=2):
            place, known = find(stored.contexts, packed(contexts[:, contexts.shape[1] - order + 1 :]))
            rows = np.flatnonzero(known)
            place = place[rows]
            found[rows] *= stored.backoff[place][:, None]
            sizes = stored.first[place + 1] - stored.first[place]
            within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            entries = np.repeat(stored.first[place], sizes) + within
            found[np.repeat(rows, sizes), last_tokens(stored.keys[entries], 1).astype(np.int64)] = stored.q[entries]
        return found

    def measure(self, windows: Windows) -> dict[str, torch.Tensor]:
        """Return the `nats` and the `correct` argmax predictions of each document, (documents,) float64."""
        return measure_predictions(self.probabilities, len(self._orders) - 1, windows)


def grow(counted: Sequence[NGrams], vocab_size: int, z: float) -> BackoffModel:
    """Return the pruned and quantised model of n-grams that were `counted` at every order; the larger z, the smaller.

    Tokens that never occur count half.
    """
    frequency = np.full(vocab_size, 0.5)
    frequency[counted[0].keys.astype(np.int64)] = counted[0].counts
    tokens = np.arange(vocab_size, dtype=np.uint64)
    model = BackoffModel([NGramLevels(tokens, level_of(frequency / frequency.sum()))])
    for order, grams in enumerate(counted[1:], start=2):
        model.add(_kept(model, grams, order, z))
    return model


def pack(stream: TokenStream, tokenizer_json: str, vocab_size: int, budget: int) -> bytes:
    """Return the bytes of the largest pruned model of the training `stream` that, with its tokenizer, fits `budget`.

    Raises:
        ValueError: when the budget does not even hold the probabilities of single tokens.
    """
    counted = real_counts(fit_stream(stream, vocab_size).orders[-1])
    strict, loose = math.log(STRICTEST), math.log(LOOSEST)
    best = b""
    z = strict
    for _ in range(12):
        data = encode_ngrams(grow(counted, vocab_size, math.exp(z)).levels, tokenizer_json)
        if len(data) > budget:
            loose = z
        else:
            best, strict = max(best, data, key=len), z
        if not best:
            raise ValueError(
                f"{budget} bytes hold no n-gram model: the tokenizer and the probabilities of its {vocab_size} tokens "
                f"take {len(data)}; use a smaller vocabulary"
            )
        if len(best) > CLOSE_ENOUGH * budget:
            break
        z = (strict + loose) / 2
    return best


def unpack(data: bytes) -> BackoffModel:
    """Return the model in the bytes of `pack`."""
    return BackoffModel(decode_ngrams(data)[0])


def _kept(model: BackoffModel, grams: NGrams, order: int, z: float) -> NGramLevels:
    """Choose the n-grams of `order` that gain over the model of lower orders, and quantise their probabilities."""
    sizes = np.diff(grams.first)
    owner, total = np.repeat(np.arange(len(sizes)), sizes), grams.totals()
    discounted = grams.discounted() / total[owner]
    left = 1 - np.add.reduceat(discounted, grams.first[:-1])  # gamma(h)
    extends = find(model.levels[-1].keys, grams.contexts)[1]
    bound = grams.counts - z * np.sqrt(grams.counts)
    chosen = np.flatnonzero(extends[owner] & (bound > 0) & (grams.counts > 1))
    lower = model.probability(last_tokens(grams.keys[chosen], order - 1), order - 1)
    q = discounted[chosen] + left[owner[chosen]] * lower
    gain = bound[chosen] * np.log2(q / lower)
    gains = gain > z / 4
    chosen, lower, q, gain = chosen[gains], lower[gains], q[gains], gain[gains]
    if len(chosen):
        context, first = np.unique(owner[chosen], return_index=True)
        number = np.diff(np.append(first, len(chosen)))
        rest = np.maximum(total[context] - _sums(grams.counts[chosen].astype(np.float64), first), 0.5)
        lost = rest * np.log2((1 - _sums(lower, first)) / np.maximum(1 - _sums(q, first), 1e-6))
        whole = np.repeat(_sums(gain, first) - lost > number * z / 4, number)
        chosen, q = chosen[whole], q[whole]
    return NGramLevels(grams.keys[chosen], level_of(q))


def real_counts(highest: NGrams) -> list[NGrams]:
    """Return the n-grams of every order with their counts, from those of the highest order."""
    orders = [highest]
    for order in range(MAX_ORDER - 1, 0, -1):
        keys, place = np.unique(last_tokens(highest.keys, order), return_inverse=True)
        orders.insert(0, NGrams.of(keys, np.bincount(place, highest.counts).astype(np.int64)))
    return orders


def _sums(values: Numbers, first: Ints) -> Numbers:
    """Return the sums of the runs of `values` that begin at `first`."""
    sums: Numbers = np.add.reduceat(values, first) if len(first) else np.zeros(0)
    return sums
