"""How a set of texts is written, as numbers: a persona is a measured behaviour.

Eight statistics are counted in each text, and a set of texts has the mean of each over its texts. Sets a and b are
compared in units of the spread s_k of statistic k over all texts of both:

    d_k = (mean_bk - mean_ak) / s_k                    standardised mean difference, at most 2 for sets of equal size
    distance^2 = mean over k of d_k^2

Two samples of one style are never at distance 0: `chance` says what is exceeded once in 20 times when the texts of both
sets are shuffled. How far baking went along the way of its prompt is the projection

    direction = sum_k (baked_k - base_k)(prompted_k - base_k) / s_k^2  /  sum_k (prompted_k - base_k)^2 / s_k^2

with the s_k of base and prompted: 0 is the base, 1 all the way. As they stand, both sums count the error of a mean as a
move where it is squared: they are freed of it by subtracting the estimated variances, that of the base's means above,
of the base's and the prompted below.

A word is a run of letters or digits, with apostrophes or hyphens inside; a sentence ends at ". ! ?" before a space, at
a line's end, or at the text's. Shares of punctuation and digits are of the characters that are no space, that of
upper case of the letters. The type-token ratio is its mean over all windows of `WINDOW` words (Covington and McFall,
2010), which the length of a text does not move. What a text has none of (words per sentence in a text without words,
the ratio in one that is shorter than the window) leaves it out of that mean; a set in which no text has it is at 0
there and is not compared.

**Does not cover** what a text says, and languages without spaces.

Shapes: T texts, K statistics, R resamples; a text has NaN for what it does not have.
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
    """How two sets of texts differ.

    `statistics` are the d_k, `distance` their root mean square, each with the 95 % interval of a bootstrap over texts;
    `chance` is the distance that shuffled texts exceed once in 20 times.
    """

    statistics: dict[str, Estimate]
    distance: Estimate
    chance: float

    @property
    def differs(self) -> bool:
        """Whether the sets are further apart than chance."""
        return self.distance.value > self.chance


def style(texts: Sequence[str]) -> dict[str, float]:
    """The mean of each of `STATISTICS` over the texts that have it; 0 where none has."""
    values_TK = _table(texts)
    means_K = _means(torch.ones(1, len(texts), dtype=torch.float64), values_TK)[0]
    return {name: float(mean) for name, mean in zip(STATISTICS, means_K.nan_to_num(0.0), strict=True)}


def style_of_text(text: str) -> dict[str, float]:
    """The statistics that `text` has."""
    words = [word.lower() for word in _WORD.findall(text)]
    inked = [c for c in text if not c.isspace()]
    letters = [c for c in inked if c.isalpha()]
    found = {"words_per_text": float(len(words))}
    if words:
        sentences = sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))
        found["characters_per_word"] = sum(map(len, words)) / len(words)
        found["words_per_sentence"] = len(words) / sentences
    if inked:
        found["punctuation_share"] = sum(unicodedata.category(c)[0] in "PS" for c in inked) / len(inked)
        found["digit_share"] = sum(c.isdigit() for c in inked) / len(inked)
    if letters:
        found["upper_case_share"] = sum(c.isupper() for c in letters) / len(letters)
    if len(words) >= 2:
        bigrams = list(itertools.pairwise(words))
        found["repeated_bigram_share"] = 1 - len(set(bigrams)) / len(bigrams)
    if len(words) >= WINDOW:
        types = [len(set(words[i : i + WINDOW])) for i in range(len(words) - WINDOW + 1)]
        found["type_token_ratio"] = sum(types) / len(types) / WINDOW
    return found


def style_difference(texts: Sequence[str], others: Sequence[str], seed: int = 0) -> StyleDifference:
    """How far the style of `others` is from that of `texts`: a bootstrap over texts, and a permutation of them.

    Statistics that do not vary over all these texts, or that fewer than two texts on a side have, are not compared.

    Raises:
        ValueError: with fewer than two texts on a side.
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
    """How far `baked` went from `base` towards `prompted`: 0 not at all, 1 all the way; 95 % bootstrap over texts.

    None where the prompted texts are no further from the base's than chance, or only in what baked texts do not have:
    then there is no way to go.

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
    samples_R2 = sums(means[0], means[1], means[2]) - 2 * too_much  # a resample adds the errors a second time
    return percentile_interval(above / below, samples_R2[:, 0] / samples_R2[:, 1])


def _table(texts: Sequence[str]) -> Tensor:
    """(T, K): the statistics of each text."""
    found = [style_of_text(text) for text in texts]
    rows = [[of_text.get(name, float("nan")) for name in STATISTICS] for of_text in found]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(texts), len(STATISTICS))


def _comparable(sets: Sequence[Sequence[str]], spread_of: int | None = None) -> tuple[list[Tensor], Tensor, list[str]]:
    """The tables of `sets`, the spread over the first `spread_of` of them, and names: of what can be compared."""
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
    """(R, K): weighted means over the texts that have a statistic; NaN where none has."""
    had_TK = (~values_TK.isnan()).double()
    return (weights_RT @ values_TK.nan_to_num(0.0)) / (weights_RT @ had_TK)


def _mean(values_TK: Tensor) -> Tensor:
    """(K,): plain means."""
    return _means(torch.ones(1, len(values_TK), dtype=torch.float64), values_TK)[0]


def _resampled_means(values_TK: Tensor, seed: int) -> Tensor:
    """(R, K): means of bootstrap samples; where no text drawn has a statistic, its plain mean."""
    means_RK = _means(resample_weights(len(values_TK), seed), values_TK)
    return torch.where(means_RK.isnan(), _mean(values_TK), means_RK)


def _variance_of_mean(values_TK: Tensor) -> Tensor:
    """(K,): s^2 / n over the texts that have a statistic."""
    had_K = (~values_TK.isnan()).sum(0)
    centred_TK = (values_TK - _mean(values_TK)).nan_to_num(0.0)
    return centred_TK.square().sum(0) / (had_K - 1) / had_K


def _root_mean_square(d_RK: Tensor) -> Tensor:
    return d_RK.square().mean(-1).sqrt()
