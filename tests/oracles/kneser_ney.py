"""Interpolated modified Kneser-Ney of Chen & Goodman (1998) with dictionaries, one n-gram at a time."""

from __future__ import annotations

from collections import Counter, defaultdict

Gram = tuple[int, ...]


class KneserNey:
    """The model of order `order` of a token sequence."""

    def __init__(self, tokens: list[int], order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.counts: dict[int, Counter[Gram]] = {
            order: Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
        }
        for n in range(order - 1, 0, -1):
            before: dict[Gram, set[int]] = defaultdict(set)
            for gram in self.counts[n + 1]:  # N1+(. v): the distinct tokens seen before v
                before[gram[1:]].add(gram[0])
            self.counts[n] = Counter({gram: len(tokens_before) for gram, tokens_before in before.items()})

    def discount(self, n: int, count: int) -> float:
        """D(c) of order n, eq. 26."""
        of = Counter(self.counts[n].values())
        if not (of[1] and of[2] and of[3]):
            return (0.0, 0.5, 0.75, 0.9)[min(count, 3)]
        y = of[1] / (of[1] + 2 * of[2])
        estimates = (0.0, 1 - 2 * y * of[2] / of[1], 2 - 3 * y * of[3] / of[2], 3 - 4 * y * of[4] / of[3])
        bounds = (0.0, 0.99, 1.99, 2.99)
        index = min(count, 3)
        return 0.0 if count == 0 else min(max(estimates[index], 0.05), bounds[index])

    def probability(self, context: Gram, token: int) -> float:
        """p(token | the last order - 1 tokens of context)."""
        return self._probability(context[max(0, len(context) - self.order + 1) :], token)

    def _probability(self, context: Gram, token: int) -> float:
        n = len(context) + 1
        lower = self._probability(context[1:], token) if context else 1 / self.vocab_size
        after = {gram[-1]: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        total = sum(after.values())
        if total == 0:
            return lower
        gamma = sum(self.discount(n, count) for count in after.values()) / total
        seen = after.get(token, 0)
        return max(seen - self.discount(n, seen), 0) / total + gamma * lower
