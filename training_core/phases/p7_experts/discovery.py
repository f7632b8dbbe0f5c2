"""Discovery of how many experts a model needs, and for which task families, from the gradients of their questions.

    u_q      = g_q / |g_q|                                 of each question (`gradient_profile`)
    mu_f     = mean of u_q over the questions of family f
    d_c      = sum of mu_f over the families of cluster c, normalised to length 1
    gain_q   = <u_q, d_c>                                  c is the cluster of q's family, found without q
    G(k)     = mean over families of the mean of gain_q over their questions, with the families in k clusters

To first order, gain_q is the decrease of q's loss from a step along its cluster's direction, as a share of that from an
equal step along its own gradient. The questions of each family are split into two halves. Families are clustered on one
half (average linkage on 1 - cosine of their mu), gains are measured on the other, and then the halves are swapped. With
too few clusters, a direction fits none of its families; with too many, each direction is estimated from fewer questions
and its noise lowers the gain on held-out ones.

**The criterion.** `wanted` is the smallest k whose G is within one standard error of the best k's (the rule of Breiman
et al., "Classification and Regression Trees", 1984, section 3.4.3). The standard error is that of the paired difference
over questions. N is `wanted`, raised to 3 or lowered to 10 or to the number of families. The families are then
clustered once more, on all questions, into N clusters.

**Stability** is measured, never enforced: questions are resampled with replacement within each half of a family, and
the whole procedure is repeated.

**Differs from the paper** (Transformer^2, arXiv:2501.06252): its experts are given, one for each data set.

**Does not cover**: whether families help each other beyond a first step, and families with fewer than 4 questions,
which are left out and reported.

Shape legend: Q questions, F families, K numbers of clusters 1 .. most, P all multipliers of all matrices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training_core.phases.p7_experts.gradient_profile import FamilyBaseline, GradientProfile

FEWEST_EXPERTS, MOST_EXPERTS = 3, 10
LEAST_QUESTIONS = 4  # per family: two in each half, the fewest that have a variance
RESAMPLES = 100
STABLE = 0.8  # share of resamples with the same N below which a remark is made
STRONGEST = 3

Clusters = list[list[int]]


@dataclass(frozen=True, slots=True)
class LinkageStep:
    """A candidate number of clusters: G(k), its distance to the best one, and the standard error of that distance."""

    k: int
    gain: float
    behind: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class ExpertProfile:
    """An expert to be trained: its families, the model's baseline on their questions, and where it would act.

    number: from 1; 0 is the model without an expert. nearest, farthest: the other expert with the largest and the
    smallest cosine between directions, or None if there is no other. strongest: matrices by their share of the
    direction's squared length.
    """

    number: int
    families: tuple[str, ...]
    before: FamilyBaseline
    nearest: tuple[int, float] | None
    farthest: tuple[int, float] | None
    strongest: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """A readable name: the first of its families."""
        return self.families[0]


@dataclass(frozen=True, slots=True)
class Discovery:
    """The experts to train and the evidence for their number.

    `families` names the rows of `similarity` (cosines of mu) and of `together` (share of resamples in which two
    families share an expert).

    wanted: N before it was clamped to the allowed range. same_number: share of resamples with the same N.
    pair_agreement: mean over pairs of families of the share of resamples that agree with the result on whether they
    share an expert; None for a single family. left_out: families with too few questions, and how many they have.
    """

    families: tuple[str, ...]
    experts: tuple[ExpertProfile, ...]
    wanted: int
    curve: tuple[LinkageStep, ...]
    standings: Mapping[str, FamilyBaseline]
    similarity: Tensor
    together: Tensor
    same_number: float
    pair_agreement: float | None
    resamples: int
    left_out: Mapping[str, int]

    @property
    def num_experts(self) -> int:
        """The number of experts, N."""
        return len(self.experts)

    @property
    def expert_of(self) -> dict[str, int]:
        """The number of each family's expert, from 1. Families that are not listed have none."""
        return {family: expert.number for expert in self.experts for family in expert.families}

    def remarks(self) -> list[str]:
        """Return remarks about N for the report: clamping, lack of structure, instability, families left out."""
        remarks = []
        if self.wanted < self.num_experts:
            remarks.append(
                f"{self.wanted} would do: N was raised to {self.num_experts}, the smallest allowed for "
                f"{len(self.families)} families"
            )
        if self.wanted > self.num_experts:
            remarks.append(f"{self.wanted} are wanted: N was lowered to {self.num_experts}, the most that were allowed")
        if self.wanted == 1 and len(self.families) > 1:
            remarks.append("no structure was found: one direction serves all families as well as several do")
        if len(self.families) <= FEWEST_EXPERTS:
            remarks.append(f"with {len(self.families)} families there was no choice: each has an expert of its own")
        if self.same_number < STABLE:
            remarks.append(f"N is not stable: {self.same_number:.0%} of {self.resamples} resamples gave the same")
        if self.left_out:
            names = ", ".join(f"{family} ({number})" for family, number in self.left_out.items())
            remarks.append(f"left out, fewer than {LEAST_QUESTIONS} questions: {names}")
        return remarks


def discover(
    profile: GradientProfile, generator: torch.Generator, resamples: int = RESAMPLES, most: int = MOST_EXPERTS
) -> Discovery:
    """Decide the number of experts N and assign families to them.

    `generator` splits the questions into halves and draws the resamples. `most` limits N further, for when 10 experts
    are too expensive.

    Raises:
        ValueError: when no family has enough questions, or `resamples` or `most` is out of range.
    """
    if not 1 <= most <= MOST_EXPERTS:
        raise ValueError(f"the maximum number of experts must lie in 1 .. {MOST_EXPERTS}, got {most}")
    if resamples < 1:
        raise ValueError(f"stability takes at least one resample, got {resamples}")
    counted = Counter(profile.families)
    families = tuple(sorted(family for family, number in counted.items() if number >= LEAST_QUESTIONS))
    left_out = {family: counted[family] for family in sorted(counted) if family not in families}
    if not families:
        raise ValueError(
            f"a family takes {LEAST_QUESTIONS} questions, the most that one has is {max(counted.values())}"
        )
    kept = torch.tensor([family in families for family in profile.families])
    u_QP = profile.directions()[kept]
    family_Q = torch.tensor([families.index(family) for family in profile.families if family in families])
    problem = _Problem(u_QP @ u_QP.T, family_Q, _halves(family_Q, generator), len(families), most)
    solution = problem.solve(torch.ones(len(family_Q), dtype=torch.float64))
    again = [problem.solve(problem.resample(generator)) for _ in range(resamples)]
    together_FF = torch.stack([_together(other.clusters, len(families)) for other in again]).mean(0)
    standings = {
        family: FamilyBaseline.of(profile.told, torch.tensor([other == family for other in profile.families]))
        for family in families
    }
    return Discovery(
        families,
        _experts(profile, families, solution.clusters, problem.means(u_QP)),
        solution.wanted,
        solution.curve,
        standings,
        solution.similarity_FF,
        together_FF,
        sum(len(other.clusters) == len(solution.clusters) for other in again) / resamples,
        _agreement(solution.clusters, together_FF),
        resamples,
        left_out,
    )


def average_linkage(distance_FF: Tensor) -> list[Clusters]:
    """Return the clusterings into every number of clusters, from most to fewest (Sokal and Michener, 1958).

    Each step joins the two clusters with the smallest mean distance between their members. Clusters are ordered by
    their first members.
    """
    from scipy.cluster.hierarchy import linkage  # phase 1 reaches this module and runs without scipy

    count = len(distance_FF)
    clusters = {f: [f] for f in range(count)}  # by scipy's numbering: row i creates cluster count + i
    clusterings = [list(clusters.values())]
    above = torch.triu_indices(count, count, 1)
    joined = linkage(distance_FF[above[0], above[1]].cpu().numpy(), "average") if count > 1 else []
    for row, (left, right, *_) in enumerate(joined):
        clusters[count + row] = sorted(clusters.pop(int(left)) + clusters.pop(int(right)))
        clusterings.append(sorted(clusters.values()))
    return clusterings


@dataclass(frozen=True, slots=True)
class _Solution:
    clusters: Clusters
    wanted: int
    curve: tuple[LinkageStep, ...]
    similarity_FF: Tensor


class _Problem:
    """The Gram matrix of all questions' directions, their families and halves: the input of clustering and gains."""

    def __init__(self, gram_QQ: Tensor, family_Q: Tensor, half_Q: Tensor, num_families: int, afforded: int) -> None:
        self.gram_QQ, self.half_Q, self.num_families = gram_QQ, half_Q, num_families
        self.member_FQ = torch.arange(num_families)[:, None] == family_Q
        self.most, self.afforded = min(MOST_EXPERTS, num_families), afforded

    def means(self, u_QP: Tensor) -> Tensor:
        """Return mu of every family, (families, multipliers)."""
        return _weights(self.member_FQ.double()) @ u_QP

    def resample(self, generator: torch.Generator) -> Tensor:
        """Draw a bootstrap sample within each half of each family; return the count of every question, (questions,)."""
        counts_Q = torch.zeros(len(self.half_Q), dtype=torch.float64)
        for member_Q in self.member_FQ:
            for half in range(2):
                places = (member_Q & (self.half_Q == half)).nonzero().flatten()
                drawn = places[torch.randint(len(places), (len(places),), generator=generator)]
                counts_Q.index_add_(0, drawn, torch.ones(len(places), dtype=torch.float64))
        return counts_Q

    def solve(self, counts_Q: Tensor) -> _Solution:
        """Apply the criterion with each question weighted by its count in `counts_Q` (questions,)."""
        gains_KQ = self._gains(counts_Q)
        weights_FQ = _weights(self.member_FQ * counts_Q)
        mean_K = (gains_KQ @ weights_FQ.T).mean(1)
        best = int(mean_K.argmax())
        behind_KQ = gains_KQ[best] - gains_KQ
        errors_K = _standard_errors(behind_KQ, weights_FQ, (self.member_FQ * counts_Q).sum(1))
        columns = zip(mean_K.tolist(), (mean_K[best] - mean_K).tolist(), errors_K.tolist(), strict=True)
        curve = [LinkageStep(k, gain, behind, error) for k, (gain, behind, error) in enumerate(columns, 1)]
        wanted = next(step.k for step in curve if step.behind <= step.standard_error)
        similarity_FF, _ = self._similarity(counts_Q)
        number = min(max(wanted, min(FEWEST_EXPERTS, self.num_families)), self.afforded)
        return _Solution(average_linkage(1 - similarity_FF)[-number], wanted, tuple(curve), similarity_FF)

    def _gains(self, counts_Q: Tensor) -> Tensor:
        """Return gain_q for every number of clusters, each question's from clusters found on the other half."""
        gains_KQ = torch.zeros(self.most, len(counts_Q), dtype=torch.float64)
        for half in range(2):
            fitted_Q, held_Q = self.half_Q == half, self.half_Q != half
            similarity_FF, products_QF = self._similarity(counts_Q * fitted_Q)
            means_FF = _weights(self.member_FQ * counts_Q * fitted_Q) @ products_QF
            held_FQ = (self.member_FQ & held_Q).double()
            for k, clusters in enumerate(reversed(average_linkage(1 - similarity_FF)[-self.most :])):
                in_FC = _members(clusters, self.num_families)
                lengths_C = _length((in_FC * (means_FF @ in_FC)).sum(0))
                # products with every cluster's direction, of which each question keeps that of its own cluster
                gains_KQ[k] += ((products_QF @ in_FC / lengths_C) * (held_FQ.T @ in_FC)).sum(1)
        return gains_KQ

    def _similarity(self, counts_Q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines between the weighted mu (families, families), and <u_q, mu_f> (questions, families)."""
        weights_FQ = _weights(self.member_FQ * counts_Q)
        products_QF = self.gram_QQ @ weights_FQ.T
        means_FF = weights_FQ @ products_QF
        lengths_F = _length(means_FF.diagonal())
        return means_FF / (lengths_F[:, None] * lengths_F), products_QF


def _weights(counts_FQ: Tensor) -> Tensor:
    return counts_FQ / counts_FQ.sum(1, keepdim=True)


def _length(squared: Tensor) -> Tensor:
    """Return norms from squared norms, clamped above zero so that a zero vector gets cosine 0."""
    return squared.clamp(min=torch.finfo(torch.float64).tiny).sqrt()


def _standard_errors(values_KQ: Tensor, weights_FQ: Tensor, number_F: Tensor) -> Tensor:
    """Return the standard error of the mean over families of means over questions, for each number of clusters."""
    means_KF = values_KQ @ weights_FQ.T
    around_KQ = values_KQ - means_KF @ (weights_FQ > 0).double()
    spread_KF = around_KQ**2 @ weights_FQ.T / (number_F - 1)  # unbiased variance / number of questions
    return spread_KF.sum(1).sqrt() / len(weights_FQ)


def _halves(family_Q: Tensor, generator: torch.Generator) -> Tensor:
    """Assign each question to half 0 or 1, alternately within its family in random order."""
    half_Q = torch.zeros(len(family_Q), dtype=torch.long)
    for family in range(int(family_Q.max()) + 1):
        places = (family_Q == family).nonzero().flatten()
        half_Q[places[torch.randperm(len(places), generator=generator)]] = torch.arange(len(places)) % 2
    return half_Q


def _members(clusters: Clusters, num_families: int) -> Tensor:
    """Return the membership matrix, 1 where a family is in a cluster, (families, clusters) float64."""
    cluster_of = {family: number for number, cluster in enumerate(clusters) for family in cluster}
    return F.one_hot(torch.tensor([cluster_of[family] for family in range(num_families)]), len(clusters)).double()


def _together(clusters: Clusters, num_families: int) -> Tensor:
    in_FC = _members(clusters, num_families)
    return in_FC @ in_FC.T


def _agreement(clusters: Clusters, together_FF: Tensor) -> float | None:
    if len(together_FF) < 2:
        return None
    same_FF = _together(clusters, len(together_FF))
    agree_FF = same_FF * together_FF + (1 - same_FF) * (1 - together_FF)
    return float(agree_FF[torch.ones_like(agree_FF).triu(1) > 0].mean())


def _experts(
    profile: GradientProfile, families: Sequence[str], clusters: Clusters, means_FP: Tensor
) -> tuple[ExpertProfile, ...]:
    directions_NP = torch.stack([means_FP[cluster].sum(0) for cluster in clusters])
    directions_NP = directions_NP / _length((directions_NP**2).sum(1))[:, None]
    cosines_NN = directions_NP @ directions_NP.T
    widths = [g_QR.shape[1] for g_QR in profile.gradients.values()]
    experts = []
    for index, cluster in enumerate(clusters):
        own_families = tuple(families[family] for family in cluster)
        others = [other for other in range(len(clusters)) if other != index]
        ends = sorted(((other + 1, float(cosines_NN[index, other])) for other in others), key=lambda end: end[1])
        shares = [float((part**2).sum()) for part in directions_NP[index].split_with_sizes(widths)]
        strongest = sorted(zip(profile.gradients, shares, strict=True), key=lambda pair: -pair[1])[:STRONGEST]
        own_Q = torch.tensor([family in own_families for family in profile.families])
        before = FamilyBaseline.of(profile.told, own_Q)
        nearest, farthest = ends[-1] if ends else None, ends[0] if ends else None
        experts.append(ExpertProfile(index + 1, own_families, before, nearest, farthest, tuple(strongest)))
    return tuple(experts)
