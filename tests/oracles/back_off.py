"""A pruned back-off model with dictionaries, one n-gram at a time, from the equations of Katz (1987) and a pruning rule
in the manner of Stolcke (1998)."""

from __future__ import annotations

import math
from collections import Counter

Gram = tuple[int, ...]
STEP = 0.4


class BackOff:
    """p(w | h) from the level of each stored n-gram; every token is stored as an n-gram of one."""

    def __init__(self, levels: dict[Gram, int], vocab_size: int) -> None:
        self.levels, self.vocab_size = levels, vocab_size

    def stored(self, context: Gram) -> dict[int, float]:
        """q of every token that is stored after a context."""
        found = {g[-1]: 1 / (1 + math.exp(-STEP * level)) for g, level in self.levels.items() if g[:-1] == context}
        total = sum(found.values())
        limit = 1.0 if not context else max([0.995, *found.values()])
        if not context or total > limit:
            return {token: limit * q / total for token, q in found.items()}
        return found

    def probability(self, context: Gram, token: int) -> float:
        stored = self.stored(context)
        if token in stored:
            return stored[token]
        shorter = [self.probability(context[1:], other) for other in stored]
        weight = (1 - sum(stored.values())) / (1 - sum(shorter))
        return weight * self.probability(context[1:], token)


def discounts(counts: Counter[Gram]) -> tuple[float, ...]:
    """0, D1, D2, D3+ of Chen & Goodman (1998), eq. 26."""
    of = Counter(counts.values())
    if not (of[1] and of[2] and of[3]):
        return (0.0, 0.5, 0.75, 0.9)
    y = of[1] / (of[1] + 2 * of[2])
    found = (1 - 2 * y * of[2] / of[1], 2 - 3 * y * of[3] / of[2], 3 - 4 * y * of[4] / of[3])
    return (0.0, *(min(max(d, 0.05), bound) for d, bound in zip(found, (0.99, 1.99, 2.99), strict=True)))


def level(p: float) -> int:
    return round(math.log(p / (1 - p)) / STEP)


def grow(tokens: list[int], vocab_size: int, z: float) -> dict[Gram, int]:
    """The levels of the n-grams that are kept."""
    fours = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    single = Counter(g[-1] for g in fours)
    total = sum(single.values()) + 0.5 * (vocab_size - len(single))
    levels: dict[Gram, int] = {(t,): level(single.get(t, 0.5) / total) for t in range(vocab_size)}
    for order in (2, 3, 4):
        counts = Counter(g[4 - order :] for g in fours)
        cut, below, new = discounts(counts), BackOff(dict(levels), vocab_size), {}
        for context in {g[:-1] for g in counts if g[:-1] in levels}:
            after = {g[-1]: c for g, c in counts.items() if g[:-1] == context}
            size = sum(after.values())
            gamma = sum(cut[min(c, 3)] for c in after.values()) / size
            kept = {}
            for token, c in after.items():
                lower = below.probability(context[1:], token)
                q = (c - cut[min(c, 3)]) / size + gamma * lower
                gain = (c - z * math.sqrt(c)) * math.log2(q / lower)
                if c > 1 and c - z * math.sqrt(c) > 0 and gain > z / 4:
                    kept[token] = (q, lower, gain, c)
            rest = max(size - sum(k[3] for k in kept.values()), 0.5)
            mass, shorter = sum(k[0] for k in kept.values()), sum(k[1] for k in kept.values())
            change = rest * math.log2(max(1 - mass, 1e-6) / (1 - shorter))
            if sum(k[2] for k in kept.values()) + change > len(kept) * z / 4:
                new |= {(*context, token): level(k[0]) for token, k in kept.items()}
        levels |= new
    return levels
