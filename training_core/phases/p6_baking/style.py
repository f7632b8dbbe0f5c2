"""Style statistics of texts, by which the effect of a persona is measured.

Eight statistics are computed for each text, and averaged over the texts of a set. Sets a and b are compared in units of
the standard deviation s_k of statistic k over all texts of both:

    d_k = (mean_bk - mean_ak) / s_k                    standardised mean difference, at most 2 for sets of equal size
    distance^2 = mean over k of d_k^2

Two samples of one style never have distance 0, so `chance` is the 95th percentile of the distance under permutation of
the texts of both sets. How far baking moved in the direction of its prompt is the projection

    direction = sum_k (baked_k - base_k)(prompted_k - base_k) / s_k^2  /  sum_k (prompted_k - base_k)^2 / s_k^2

with the s_k of base and prompted: 0 is the base, 1 the prompted style. The sampling error of a mean biases both sums
upwards where it enters squared. This is corrected by subtracting the estimated variances: that of the base's means from
the numerator, those of the base's and the prompted means from the denominator.

A word is a run of letters or digits, with apostrophes or hyphens inside; a sentence ends at ". ! ?" before a space, at
the end of a line, or at the end of the text. Punctuation and digits are shares of the non-space characters, upper case
of the letters. The type-token ratio is a mean over all windows of `WINDOW` words (Covington and McFall, 2010), which
makes it independent of the length of the text. A text for which a statistic is undefined (words per sentence without
words, the ratio of a text shorter than the window) is left out of the mean; if it is undefined for all texts of a set,
the mean is 0 and the statistic is not compared.

**Does not cover** what a text says, and languages without spaces.

Shapes: T texts, K statistics, R resamples; undefined statistics of a text are NaN.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training_core.evaluation.intervals import RESAMPLES, percentile_interval, resample_weights
from training_core.record import Estimate

STATISTICS = (
    "characters_per_word",
    "words_per_sentence",
    "words_per_text",
    "punctuation_share",
    "upper_case_share",
    "digit_share",
    "type_token_ratio",
    "repeated_bigram_share",
)
WINDOW = 8
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n+")


@dataclass(frozen=True, slots=True)
class StyleDifference:
    """The difference in style between two sets of texts.

    `statistics` are the d_k, `distance` their root mean square, each with a 95 % CI by bootstrap over texts; `chance`
    is the distance that permuted texts exceed with a probability of 5 %.
    """

    statistics: dict[str, Estimate]
    distance: Estimate
    chance: float

    @property
    def differs(self) -> bool:
        """Whether the sets differ significantly (permutation test at the 5 % level)."""
        return self.distance.value > self.chance


def style(texts: Sequence[str]) -> dict[str, float]:
    """Return the mean of each of `STATISTICS` over the texts for which it is defined, or 0 if there are none."""
    values_TK = _table(texts)
    means_K = _means(torch.ones(1, len(texts), dtype=torch.float64), values_TK)[0]
    return {name: float(mean) for name, mean in zip(STATISTICS, means_K.nan_to_num(0.0), strict=True)}


def style_of_text(text: str) -> dict[str, float]:
    """Return the statistics that are defined for `text`."""
    words = [word.lower() for word in _WORD.findall(text)]
    inked = [c for c in text if not c.isspace()]
    letters = [c for c in inked if c.isalpha()]
    statistics = {"words_per_text": float(len(words))}
    if words:
        sentences = sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))
        statistics["characters_per_word"] = sum(map(len, words)) / len(words)
        statistics["words_per_sentence"] = len(words) / sentences
    if inked:
        statistics["punctuation_share"] = sum(unicodedata.category(c)[0] in "PS" for c in inked) / len(inked)
        statistics["digit_share"] = sum(c.isdigit() for c in inked) / len(inked)
    if letters:
        statistics["upper_case_share"] = sum(c.isupper() for c in letters) / len(letters)
    if len(words) >= 2:
        bigrams = list(itertools.pairwise(words))
        statistics["repeated_bigram_share"] = 1 - len(set(bigrams)) / len(bigrams)
    if len(words) >= WINDOW:
        types = [len(set(words[i : i + WINDOW])) for i in range(len(words) - WINDOW + 1)]
        statistics["type_token_ratio"] = sum(types) / len(types) / WINDOW
    return statistics


def style_difference(texts: Sequence[str], others: Sequence[str], seed: int = 0) -> StyleDifference:
    """Return how far the style of `others` is from that of `texts`, with bootstrap CIs and a permutation test.

    Statistics that are constant over all texts, or defined for fewer than two texts of a set, are not compared.

    Raises:
        ValueError: with fewer than two texts in a set.
    """
    (a_TK, b_TK), spread_K, names = _comparable([texts, others])
    if not names:
        zero = Estimate(0.0, 0.0, 0.0)
        return StyleDifference({}, zero, 0.0)
    num_a, num_b = len(a_TK), len(b_TK)
    d_K = (_mean(b_TK) - _mean(a_TK)) / spread_K
    samples_RK = _resampled_means(b_TK, 2 * seed + 1) - _resampled_means(a_TK, 2 * seed)
    samples_RK = samples_RK / spread_K
    generator = torch.Generator().manual_seed(seed)
    order_RT = torch.rand(RESAMPLES, num_a + num_b, generator=generator).argsort(dim=1)
    first_RT = (order_RT < num_a).double()
    both_TK = torch.cat([a_TK, b_TK])
    shuffled_RK = (_means(1 - first_RT, both_TK) - _means(first_RT, both_TK)) / spread_K
    return StyleDifference(
        {name: percentile_interval(float(d_K[k]), samples_RK[:, k]) for k, name in enumerate(names)},
        percentile_interval(float(_root_mean_square(d_K)), _root_mean_square(samples_RK)),
        float(torch.quantile(_root_mean_square(shuffled_RK), 0.95)),
    )


def style_direction(
    base: Sequence[str], prompted: Sequence[str], baked: Sequence[str], seed: int = 0
) -> Estimate | None:
    """Return how far `baked` moved from `base` (0) towards `prompted` (1), with a 95 % CI by bootstrap over texts.

    The result is None if the prompted style does not differ significantly from the base, or differs only in statistics
    that are undefined for the baked texts: then there is no direction to measure.

    Raises:
        ValueError: with fewer than two texts in a set.
    """
    (base_TK, prompted_TK, baked_TK), spread_K, _ = _comparable([base, prompted, baked], spread_of=2)
    if not style_difference(base, prompted, seed).differs:
        return None
    of_base_K = _variance_of_mean(base_TK) / spread_K**2
    of_prompted_K = _variance_of_mean(prompted_TK) / spread_K**2
    too_much = torch.stack([of_base_K.sum(), (of_base_K + of_prompted_K).sum()])

    def sums(base_RK: Tensor, prompted_RK: Tensor, baked_RK: Tensor) -> Tensor:
        way_RK = (prompted_RK - base_RK) / spread_K
        gone_RK = (baked_RK - base_RK) / spread_K
        return torch.stack([(gone_RK * way_RK).sum(-1), (way_RK**2).sum(-1)], dim=-1)

    above, below = (sums(_mean(base_TK), _mean(prompted_TK), _mean(baked_TK)) - too_much).tolist()
    if below <= 0:
        return None
    means = [_resampled_means(x_TK, 3 * seed + i) for i, x_TK in enumerate((base_TK, prompted_TK, baked_TK))]
    samples_R2 = sums(means[0], means[1], means[2]) - 2 * too_much  # resampling adds the same variances once more
    return percentile_interval(above / below, samples_R2[:, 0] / samples_R2[:, 1])


def _table(texts: Sequence[str]) -> Tensor:
    """Return the statistics of each text, (T, K)."""
    rows = [[values.get(name, float("nan")) for name in STATISTICS] for values in map(style_of_text, texts)]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(texts), len(STATISTICS))


def _comparable(sets: Sequence[Sequence[str]], spread_of: int | None = None) -> tuple[list[Tensor], Tensor, list[str]]:
    """Return the tables of `sets`, the spread over the first `spread_of` of them, and the names of the statistics.

    All are restricted to the statistics that can be compared.
    """
    if any(len(texts) < 2 for texts in sets):
        raise ValueError(
            f"styles are compared over at least two texts a set, got {[len(texts) for texts in sets]}: sample more"
        )
    tables = [_table(texts) for texts in sets]
    together_TK = torch.cat(tables[:spread_of])
    had_TK = ~together_TK.isnan()
    centred_TK = (together_TK - _mean(together_TK)).nan_to_num(0.0)
    spread_K = (centred_TK.square().sum(0) / had_TK.sum(0)).sqrt()
    enough_K = torch.stack([(~table.isnan()).sum(0) >= 2 for table in tables]).all(0) & (spread_K > 1e-9)
    names = [name for name, enough in zip(STATISTICS, enough_K.tolist(), strict=True) if enough]
    return [table[:, enough_K] for table in tables], spread_K[enough_K], names


def _means(weights_RT: Tensor, values_TK: Tensor) -> Tensor:
    """Return weighted means over the texts for which a statistic is defined, (R, K); NaN if there are none."""
    had_TK = (~values_TK.isnan()).double()
    return (weights_RT @ values_TK.nan_to_num(0.0)) / (weights_RT @ had_TK)


def _mean(values_TK: Tensor) -> Tensor:
    """Return unweighted means over the texts for which a statistic is defined, (K,)."""
    return _means(torch.ones(1, len(values_TK), dtype=torch.float64), values_TK)[0]


def _resampled_means(values_TK: Tensor, seed: int) -> Tensor:
    """Return means of bootstrap samples, (R, K); the plain mean replaces one that is undefined in a sample."""
    means_RK = _means(resample_weights(len(values_TK), seed), values_TK)
    return torch.where(means_RK.isnan(), _mean(values_TK), means_RK)


def _variance_of_mean(values_TK: Tensor) -> Tensor:
    """Return s^2 / n over the texts for which a statistic is defined, (K,)."""
    had_K = (~values_TK.isnan()).sum(0)
    centred_TK = (values_TK - _mean(values_TK)).nan_to_num(0.0)
    return centred_TK.square().sum(0) / (had_K - 1) / had_K


def _root_mean_square(d_RK: Tensor) -> Tensor:
    return d_RK.square().mean(-1).sqrt()
