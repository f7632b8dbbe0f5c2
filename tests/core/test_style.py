"""Statistics of style by hand, and what the comparison of sets of texts promises on texts whose style is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training_core.evaluation.intervals import RESAMPLES, resample_weights
from training_core.phases.p6_baking.style import STATISTICS, style, style_difference, style_direction, style_of_text

WORDS = ("go", "home", "now", "river", "stone", "lantern", "quiet", "a", "morning", "under", "seven", "old")


def plain(rng: np.random.Generator) -> str:
    """Two sentences of 4 to 8 words."""
    return " ".join(_sentence(rng, int(rng.integers(4, 9)), ".") for _ in range(2))


def loud(rng: np.random.Generator) -> str:
    """Three short ones in capitals."""
    return " ".join(_sentence(rng, int(rng.integers(2, 6)), "!!").upper() for _ in range(3))


def _sentence(rng: np.random.Generator, length: int, end: str) -> str:
    return " ".join(rng.choice(WORDS, length)).capitalize() + end


def mixture(rng: np.random.Generator, share: float, count: int) -> list[str]:
    return [loud(rng) if rng.random() < share else plain(rng) for _ in range(count)]


# --- one text


def test_statistics_by_hand() -> None:
    """Ten words in three sentences; 31 characters that are no space, 23 of them letters."""
    text = "It's a co-op, Ann! Go home 42\nGo HOME 7."
    found = style_of_text(text)
    assert found["words_per_text"] == 10
    assert found["words_per_sentence"] == pytest.approx(10 / 3)
    assert found["characters_per_word"] == pytest.approx((4 + 1 + 5 + 3 + 2 + 4 + 2 + 2 + 4 + 1) / 10)
    assert found["punctuation_share"] == pytest.approx(5 / 31)  # ' - , ! . of 31
    assert found["digit_share"] == pytest.approx(3 / 31)
    assert found["upper_case_share"] == pytest.approx(8 / 23)  # I A G G HOME of 31 - 5 - 3
    assert found["repeated_bigram_share"] == pytest.approx(1 / 9)  # go home, twice
    assert found["type_token_ratio"] == pytest.approx((7 + 6 + 6) / 3 / 8)
    # of eight words each: "it's ... 42 go" has go twice, "a ... go home" and "co-op ... home 7" home as well


@pytest.mark.parametrize(
    ("text", "sentences", "words"),
    [
        ("one two. three four", 2, 4),
        ("one two... three?! four", 3, 4),
        ("version 1.5 is out", 1, 5),
        ("one\n\n\ntwo", 2, 2),
        ("... one.", 1, 1),
        ("don\u2019t stop", 1, 2),
        ("snake_case -dash- end-", 1, 4),
    ],
)
def test_words_and_sentences(text: str, sentences: int, words: int) -> None:
    found = style_of_text(text)
    assert (found["words_per_text"], found["words_per_sentence"]) == (words, words / sentences)


def test_the_type_token_ratio_does_not_move_with_length() -> None:
    rng = np.random.default_rng(0)
    short = [" ".join(rng.choice(WORDS, 12)) for _ in range(2000)]
    long = [" ".join(rng.choice(WORDS, 60)) for _ in range(400)]
    expected = len(WORDS) * (1 - (1 - 1 / len(WORDS)) ** 8) / 8  # distinct of 8 draws
    for texts in (short, long):
        assert style(texts)["type_token_ratio"] == pytest.approx(expected, abs=0.006)  # 3 standard errors, about
    assert style_of_text("a b " * 10)["type_token_ratio"] == 2 / 8
    assert style_of_text("a b c d a b c d a")["type_token_ratio"] == 4 / 8


def test_symbols_count_as_punctuation() -> None:
    assert style_of_text("a+b = c")["punctuation_share"] == pytest.approx(2 / 5)


def test_repeated_bigrams() -> None:
    assert style_of_text("a b a b a b")["repeated_bigram_share"] == pytest.approx(3 / 5)
    assert style_of_text("a b c")["repeated_bigram_share"] == 0
    assert style_of_text("x X x")["repeated_bigram_share"] == pytest.approx(1 / 2), "case does not matter"


@pytest.mark.parametrize("texts", [[], [""], ["", "  \n\t"]])
def test_of_nothing_every_statistic_is_zero(texts: list[str]) -> None:
    assert style(texts) == dict.fromkeys(STATISTICS, 0.0)


def test_what_a_text_has_none_of_leaves_it_out() -> None:
    assert style_of_text("") == {"words_per_text": 0.0}
    assert style_of_text("?!") == {"words_per_text": 0.0, "punctuation_share": 1.0, "digit_share": 0.0}
    of_set = style(["ABCD ef", "", "?!"])
    assert of_set["words_per_text"] == pytest.approx(2 / 3)
    assert of_set["characters_per_word"] == 3.0
    assert of_set["upper_case_share"] == pytest.approx(4 / 6)
    assert of_set["punctuation_share"] == 0.5


# --- sets of texts


def test_differences_by_hand() -> None:
    """Shares of capitals 0, .5 and .5, 1: spread over all four sqrt(.125), so d = .5 / .3536 = sqrt(2)."""
    found = style_difference(["ab", "aB"], ["aB", "AB"])
    assert list(found.statistics) == ["upper_case_share"], "nothing else varies"
    assert found.statistics["upper_case_share"].value == pytest.approx(math.sqrt(2))
    assert found.distance.value == pytest.approx(math.sqrt(2))
    two = style_difference(["ab", "aB cd"], ["aB", "AB cd"])
    d = two.statistics
    assert d["words_per_text"].value == 0
    assert two.distance.value == pytest.approx(math.sqrt(np.mean([each.value**2 for each in d.values()])))


def test_sets_that_cannot_differ_do_not() -> None:
    same = style_difference(["a b", "a b"], ["a b", "a b"])
    assert (same.statistics, same.distance.value, same.differs) == ({}, 0.0, False)


def test_two_samples_of_one_style_seldom_differ_and_two_styles_do() -> None:
    """5 % of 100 by construction; 12 or more come up once in 200 times, and the seeds are fixed."""
    rng = np.random.default_rng(1)
    wrong = sum(style_difference(mixture(rng, 0.3, 20), mixture(rng, 0.3, 20), seed).differs for seed in range(100))
    assert 1 <= wrong <= 11
    apart = style_difference(mixture(rng, 0.0, 20), mixture(rng, 1.0, 20))
    assert apart.differs
    assert apart.statistics["upper_case_share"].low > 1.8
    assert apart.statistics["words_per_sentence"].high < -1


@pytest.mark.slow
def test_the_direction_of_a_mixture_is_its_share() -> None:
    """Means are linear in the share of texts that are written the prompt's way. Over 60 draws each: bias and cover."""
    for share in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(int(10 * share))
        values, covered = [], 0
        for seed in range(60):
            found = style_direction(mixture(rng, 0.0, 24), mixture(rng, 0.8, 24), mixture(rng, 0.8 * share, 24), seed)
            assert found is not None
            values.append(found.value)
            covered += found.low <= share <= found.high
        assert np.median(values) == pytest.approx(share, abs=0.1)
        assert covered >= 52  # of 60; 57 expected


def test_the_direction_by_hand() -> None:
    """Shares of capitals: base 0 and .5, mean .25, variance of the mean 1/112; prompted 1; baked .5."""
    base, prompted = ["ab", "aB"] * 4, ["AB"] * 8
    found = style_direction(base, prompted, ["aB"] * 8)
    assert found is not None
    assert found.value == pytest.approx((0.25 * 0.75 - 1 / 112) / (0.75**2 - 1 / 112), rel=1e-9)


def test_direction_and_interval_are_those_of_a_plain_computation() -> None:
    """The module's formulas in numpy on texts that have all statistics, with the same draws of the bootstrap."""
    rng = np.random.default_rng(6)
    sets = [
        [text for text in mixture(rng, share, 90) if len(text.split()) >= 8][:count]
        for share, count in ((0.0, 8), (1.0, 9), (0.5, 7))
    ]
    base, prompted, baked = (np.array([[style_of_text(t)[k] for k in STATISTICS] for t in texts]) for texts in sets)
    varies = np.concatenate([base, prompted]).std(0) > 1e-9
    spread = np.concatenate([base, prompted]).std(0)[varies]
    base, prompted, baked = (values[:, varies] / spread for values in (base, prompted, baked))
    of_base, of_prompted = base.var(0, ddof=1).sum() / len(base), prompted.var(0, ddof=1).sum() / len(prompted)

    def ratio(means: list[np.ndarray], times: int) -> float:
        gone, way = means[2] - means[0], means[1] - means[0]
        return float((gone @ way - times * of_base) / (way @ way - times * (of_base + of_prompted)))

    found = style_direction(*sets, seed=2)
    assert found is not None
    assert found.value == pytest.approx(ratio([values.mean(0) for values in (base, prompted, baked)], 1), rel=1e-9)
    drawn = [
        resample_weights(len(values), 6 + i).numpy() @ values / len(values)
        for i, values in enumerate((base, prompted, baked))
    ]
    samples = [ratio([means[r] for means in drawn], 2) for r in range(RESAMPLES)]
    assert [found.low, found.high] == pytest.approx(np.quantile(samples, [0.025, 0.975]).tolist(), rel=1e-9)


def test_chance_by_hand() -> None:
    """One text of six in capitals: drawn into the two with probability 1/3, and then their means differ by a half."""
    found = style_difference(["AB", "ab"], ["ab"] * 4)
    assert found.chance == pytest.approx(0.5 / math.sqrt(5 / 36), rel=1e-9)
    assert not found.differs


def test_a_prompt_without_an_effect_has_no_direction() -> None:
    rng = np.random.default_rng(3)
    base, prompted, baked = (mixture(rng, 0.0, 20) for _ in range(3))
    assert style_direction(base, prompted, baked) is None
    assert style_direction(["a b", "a b"], ["a b", "a b"], ["A", "B"]) is None


def test_baked_texts_without_what_the_prompt_changed_have_no_direction() -> None:
    base, prompted = ["ab cd", "ab ef"] * 8, ["AB CD", "AB EF"] * 8
    assert style_direction(base, prompted, base) is not None
    assert style_direction(base, prompted, ["", ""]) is None


def test_ends_of_the_way() -> None:
    rng = np.random.default_rng(4)
    base, prompted = mixture(rng, 0.0, 200), mixture(rng, 1.0, 200)
    for baked, expected in ((base, 0.0), (prompted, 1.0)):
        found = style_direction(base, prompted, baked)
        assert found is not None
        assert found.value == pytest.approx(expected, abs=0.02)


def test_equal_seeds_give_equal_intervals() -> None:
    rng = np.random.default_rng(5)
    sets = mixture(rng, 0.1, 8), mixture(rng, 0.9, 8)
    assert style_difference(*sets, seed=3) == style_difference(*sets, seed=3)
    assert style_difference(*sets, seed=3).distance != style_difference(*sets, seed=4).distance


def test_one_text_is_no_set() -> None:
    for compare in (style_difference, lambda a, b: style_direction(b, b, a)):
        with pytest.raises(ValueError, match=r"at least two texts a set, got \[.*1.*\]: sample more"):
            compare(["one"], ["ab", "AB"] * 8 + ["a b c"])
