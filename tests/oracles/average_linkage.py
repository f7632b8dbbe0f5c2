"""Average linkage from its definition, Sokal and Michener (1958): d(A, B) = mean of d(a, b) over a in A and b in B."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def clusterings(distance: Sequence[Sequence[float]]) -> list[list[list[int]]]:
    """Return the clustering for every number of clusters, most first; ties are broken by the first pair."""
    clusters = [[f] for f in range(len(distance))]
    levels = [clusters]
    while len(clusters) > 1:
        left, right = min(
            itertools.combinations(clusters, 2),
            key=lambda pair: sum(distance[a][b] for a in pair[0] for b in pair[1]) / (len(pair[0]) * len(pair[1])),
        )
        clusters = sorted([c for c in clusters if c not in (left, right)] + [sorted(left + right)])
        levels.append(clusters)
    return levels
