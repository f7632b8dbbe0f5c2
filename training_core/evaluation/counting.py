"""The n-gram model that a trained model must beat: interpolated Kneser-Ney smoothing of all the training text.

With c the count of an n-gram, N1+(h .) the number of distinct tokens after a context h and D the discounts,

    p_n(w | h) = max(c(h w) - D(c(h w)), 0) / c(h) + gamma(h) p_{n-1}(w | h')
    gamma(h)   = (D1 N1(h .) + D2 N2(h .) + D3+ N3+(h .)) / c(h)

(Chen & Goodman, 1998, "An empirical study of smoothing techniques for language modeling", section 3, modified
Kneser-Ney). Orders below the highest count *continuations*: c(v) is the number of distinct tokens before v. The
recursion ends at the uniform distribution. A context that was never seen leaves p_{n-1} as it is.

Shape legend: N tokens of the training stream, P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training_core.data.packing import TokenStream
from training_core.evaluation.windows import Windows, per_document

ORDER = 4
_BITS = 16  # a token is a uint16, so that an n-gram of four fits in 64 bits
_ROWS = 1024  # positions whose whole distributions are held at once
Keys = NDArray[np.uint64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NGrams:
    """The distinct n-grams of one order: sorted `keys`, their `counts`, and the sums over each distinct context.

    `contexts` are sorted; context c owns the entries first[c] .. first[c + 1] - 1.
    """

    keys: Keys
    counts: NDArray[np.int64]
    contexts: Keys
    first: NDArray[np.int64]
    discounts: tuple[float, float, float]

    @classmethod
    def of(cls, keys: Keys, counts: NDArray[np.int64]) -> NGrams:
        """Index sorted distinct n-grams by their contexts, and estimate the discounts from counts of counts."""
        contexts, first = np.unique(keys >> np.uint64(_BITS), return_index=True)
        return cls(keys, counts, contexts, np.append(first, len(keys)), _discounts(counts))

    def discounted(self) -> Numbers:
        """Return c - D(c) of every n-gram."""
        kept: Numbers = np.maximum(self.counts - np.array([0.0, *self.discounts])[np.minimum(self.counts, 3)], 0.0)
        return kept

    def totals(self) -> Numbers:
        """Return c(h) of every context."""
        return np.add.reduceat(self.counts, self.first[:-1]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class CountingModel:
    """An interpolated Kneser-Ney model. `orders[0]` counts single tokens."""

    orders: tuple[NGrams, ...]
    vocab_size: int

    def probabilities(self, contexts: NDArray[np.int64]) -> Numbers:
        """Return the next-token distributions (P, V) after `contexts` (P, order - 1), the nearest token last."""
        found = np.full((len(contexts), self.vocab_size), 1.0 / self.vocab_size)
        for order, grams in enumerate(self.orders):
            keys = packed(contexts[:, contexts.shape[1] - order :])
            place = np.minimum(np.searchsorted(grams.contexts, keys), len(grams.contexts) - 1)
            seen = np.flatnonzero(grams.contexts[place] == keys)
            place = place[seen]
            total, kept = grams.totals()[place], grams.discounted()
            sizes = grams.first[place + 1] - grams.first[place]
            rows = np.repeat(np.arange(len(seen)), sizes)
            within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            entries = np.repeat(grams.first[place], sizes) + within
            mass = kept[entries] / np.repeat(total, sizes)
            held = np.bincount(rows, mass, minlength=len(seen))
            found[seen] *= (1.0 - held)[:, None]  # gamma(h): what the discounts took away
            tokens = (grams.keys[entries] & np.uint64((1 << _BITS) - 1)).astype(np.int64)
            found[seen[rows], tokens] += mass
        return found

    def measure(self, windows: Windows) -> dict[str, torch.Tensor]:
        """Return the `nats` and the `correct` argmax predictions of each document, (documents,) float64."""
        return measure_predictions(self.probabilities, len(self.orders) - 1, windows)


def measure_predictions(
    probabilities: Callable[[NDArray[np.int64]], Numbers], length: int, windows: Windows
) -> dict[str, torch.Tensor]:
    """Return the `nats` and the `correct` argmax predictions of each document, (documents,) float64.

    `probabilities` gives the next-token distributions (P, V) after contexts (P, length). A context is cut at the
    beginning of a window, as a model's is.
    """
    inputs, targets = windows.inputs.numpy(), windows.targets.numpy()
    contexts = np.stack([_shifted(inputs, back) for back in range(length - 1, -1, -1)], axis=-1)
    flat, wanted = contexts.reshape(-1, length), targets.reshape(-1)
    nats, correct = np.zeros(wanted.shape), np.zeros(wanted.shape)
    for start in range(0, len(wanted), _ROWS):
        part = slice(start, start + _ROWS)
        found = probabilities(flat[part])
        target = np.maximum(wanted[part], 0)
        nats[part] = -np.log(found[np.arange(len(target)), target])
        correct[part] = found.argmax(-1) == target
    valid = wanted >= 0
    shape = windows.targets.shape
    return {
        "nats": per_document(torch.from_numpy((nats * valid).reshape(shape)), windows),
        "correct": per_document(torch.from_numpy((correct * valid).reshape(shape)), windows),
    }


def fit(tokens: NDArray[np.int64], vocab_size: int, order: int = ORDER) -> CountingModel:
    """Estimate the model from a stream of tokens (N).

    Raises:
        ValueError: when the stream is shorter than `order`, or `order` is not in 1 .. 4.
    """
    if not 1 <= order <= ORDER:
        raise ValueError(f"order must be 1 to {ORDER} (an n-gram is packed in 64 bits), got {order}")
    if len(tokens) < order:
        raise ValueError(f"a model of order {order} needs at least that many tokens, got {len(tokens)}: add text")
    rows = np.lib.stride_tricks.sliding_window_view(tokens, order)
    keys, counts = np.unique(packed(rows), return_counts=True)
    orders = [NGrams.of(keys, counts)]
    for lower in range(order - 1, 0, -1):  # how many distinct tokens stand before each shorter n-gram
        mask = np.uint64((1 << (_BITS * lower)) - 1)
        keys, counts = np.unique(orders[0].keys & mask, return_counts=True)
        orders.insert(0, NGrams.of(keys, counts))
    return CountingModel(tuple(orders), vocab_size)


def fit_stream(stream: TokenStream, vocab_size: int) -> CountingModel:
    """Estimate the model of order 4 from a training stream."""
    return fit(stream.window(0, stream.num_tokens), vocab_size)


def packed(rows: NDArray[np.int64]) -> Keys:
    """Pack token rows (P, n) into one integer each, the last token in the lowest bits; 0 for n = 0."""
    keys = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        keys = (keys << np.uint64(_BITS)) | rows[:, column].astype(np.uint64)
    return keys


def _shifted(inputs: NDArray[np.int64], back: int) -> NDArray[np.int64]:
    """The token `back` positions before each input; END_OF_TEXT (0) before the window."""
    moved = np.zeros_like(inputs)
    moved[:, back:] = inputs[:, : inputs.shape[1] - back]
    return moved


def _discounts(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """D1, D2, D3+ (Chen & Goodman, 1998, eq. 26); .5, .75, .9 where counts of counts do not allow the estimate."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in range(1, 5))
    if not (n1 and n2 and n3):
        return (0.5, 0.75, 0.9)
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return tuple(min(max(d, 0.05), bound) for d, bound in zip(found, (0.99, 1.99, 2.99), strict=True))  # type: ignore[return-value]
