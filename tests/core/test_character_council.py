"""Votes: Fleiss' kappa by hand and by a naive loop, majorities and ties, equal tokens, paired gains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from training_core.phases.p5_curriculum.council import (
    ARCHETYPES,
    Session,
    agreement,
    convene,
    fleiss_kappa,
    majority,
    measure_council,
    self_consistency,
)
from training_core.tasks.questions.attempts import Attempt
from training_core.tasks.questions.question import Provenance, Question

SOURCE = Provenance("generator", "made_up", 0, "0" * 64)


def question(prompt: str = "1+1", answer: str = "2", level: int = 1, family: str = "sums") -> Question:
    return Question(level, family, prompt, answer, SOURCE, "exact")


def attempt(asked: Question, answer: str, tokens: int = 10) -> Attempt:
    return Attempt(
        asked, (1,) * (tokens - 1), (0,), ("own",), (0.0,), 0, "", answer, answer, answer == asked.answer, ()
    )


class Planned:
    """Answers from a table: (preamble, temperature above 0) to how often, in ten, the right answer comes, by tokens."""

    def __init__(self, rates: dict[str, float], tokens: dict[str, int] | None = None) -> None:
        self.rates, self.tokens = rates, tokens or {}
        self.asked: list[tuple[str, float, int]] = []

    def attempt(
        self,
        questions: Sequence[Question],
        generator: torch.Generator,
        *,
        hints: Sequence[int] | None = None,
        preamble: str = "",
        temperature: float = 0.0,
    ) -> list[Attempt]:
        self.asked.append((preamble, temperature, len(questions)))
        draws = torch.rand(len(questions), generator=generator).tolist()
        rate = self.rates.get(preamble, 0.0)
        return [
            attempt(q, q.answer if draw < rate else f"wrong {int(1e6 * draw)}", self.tokens.get(preamble, 10))
            for q, draw in zip(questions, draws, strict=True)
        ]


WIKIPEDIA = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def naive_kappa(counts: list[list[int]]) -> float:
    """Pairs of raters that agree, counted one by one."""
    observed, ratings = [], []
    for row in counts:
        raters = [category for category, n in enumerate(row) for _ in range(n)]
        pairs = [(a, b) for i, a in enumerate(raters) for j, b in enumerate(raters) if i != j]
        observed.append(sum(a == b for a, b in pairs) / len(pairs))
        ratings += raters
    chance = sum((ratings.count(c) / len(ratings)) ** 2 for c in set(ratings))
    return (sum(observed) / len(observed) - chance) / (1 - chance)


def test_kappa_by_hand_and_by_a_naive_loop() -> None:
    kappa = fleiss_kappa(torch.tensor(WIKIPEDIA))
    assert kappa == pytest.approx(0.20993070442195522, abs=1e-12)  # the worked example, 0.210
    assert kappa == pytest.approx(naive_kappa(WIKIPEDIA), abs=1e-12)
    for seed in range(5):
        drawn = torch.randint(0, 4, (7, 5), generator=torch.Generator().manual_seed(seed))
        counts = [[int((row == c).sum()) for c in range(4)] for row in drawn]
        assert fleiss_kappa(torch.tensor(counts)) == pytest.approx(naive_kappa(counts), abs=1e-12)
    assert fleiss_kappa(torch.tensor([[3, 0], [0, 3]])) == 1.0
    assert fleiss_kappa(torch.tensor([[3, 0], [3, 0]])) is None, "where all say the same there is no chance to correct"
    # no two raters agree anywhere: below chance
    assert fleiss_kappa(torch.tensor([[1, 1], [1, 1]])) == -1.0


@pytest.mark.parametrize("counts", [[[2, 1], [2, 2]], [[1, 0], [0, 1]]])
def test_kappa_needs_the_same_number_of_ratings_and_two_of_them(counts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="needs the same number of ratings, at least 2"):
        fleiss_kappa(torch.tensor(counts))


def test_majority() -> None:
    def seeded(seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    assert majority(["3", "4", "4.0", "", ""], seeded()) == "4", (
        "spelled as its first voter did; empty ones do not vote"
    )
    assert majority(["", " "], seeded()) == ""
    ties = [majority(["a", "b", "b", "a", "c"], seeded(s)) for s in range(200)]
    assert ties == [majority(["a", "b", "b", "a", "c"], seeded(s)) for s in range(200)]
    # a fair coin over 200 seeds: three standard deviations are 21
    assert set(ties) == {"a", "b"}
    assert abs(ties.count("a") - 100) <= 3 * math.sqrt(50)


def test_agreement_counts_an_empty_answer_as_a_category() -> None:
    asked = question()
    rows = [("2", "2.0", ""), ("3", "", "")]
    sessions = [Session(asked, tuple(attempt(asked, a) for a in row), "2") for row in rows]
    assert agreement(sessions) == pytest.approx(naive_kappa([[1, 2, 0], [2, 0, 1]]), abs=1e-12)


def test_council_asks_every_archetype_once_and_the_baseline_fits_into_its_tokens() -> None:
    asked = [question(f"{n}+{n}", str(2 * n)) for n in range(8)]
    slow = Planned({}, {a.preamble: 10 + n for n, a in enumerate(ARCHETYPES)})
    sessions = convene(slow, asked, 0.7, seed=1)
    assert slow.asked == [(a.preamble, 0.7, 8) for a in ARCHETYPES]
    assert [s.num_tokens for s in sessions] == [60] * 8
    plain = Planned({}, {"": 13})
    votes = self_consistency(plain, asked, 8 * 60, 0.7, seed=1)
    # four rounds of 13 tokens a question fit into 60, five do not
    assert [len(v.attempts) for v in votes] == [4] * 8
    assert [len(v.attempts) for v in self_consistency(plain, asked, 8 * 65, 0.7, seed=1)] == [5] * 8
    assert [len(v.attempts) for v in self_consistency(plain, asked, 1, 0.7, seed=1)] == [1] * 8
    different = {tuple(a.answer for a in v.attempts) for v in votes}
    assert len({answer for answers in different for answer in answers}) == 32, "every vote is drawn anew"


def test_measured_gains_are_paired_and_have_the_sign_of_the_difference() -> None:
    asked = [question(f"{n}+{n}", str(2 * n)) for n in range(100)]
    better = Planned({"": 0.2, **{a.preamble: 0.6 for a in ARCHETYPES}})
    found = measure_council(better, asked, 0.7, seed=3)
    metrics, shown = found["metrics"], found["shown"]
    gain = metrics["council_accuracy"] - metrics["self_consistency_accuracy"]
    assert metrics["council_gain_over_self_consistency"] == pytest.approx(gain)
    assert gain > 0.3
    assert metrics["council_gain_over_self_consistency_low"] > 0.1
    assert metrics["council_gain_over_single"] == pytest.approx(
        metrics["council_accuracy"] - metrics["single_accuracy"]
    )
    assert shown["tokens"] == {"single": 10.0, "self_consistency": 50.0, "council": 50.0}
    assert [len(v["votes"]) for v in shown["votes"]] == [5] * 6
    again = measure_council(Planned(better.rates), asked, 0.7, seed=3)
    assert again == found
    worse = measure_council(Planned({"": 0.6}), asked, 0.7, seed=3)["metrics"]
    assert worse["council_gain_over_self_consistency_high"] < -0.3
    same = measure_council(Planned({"": 1.0, **{a.preamble: 1.0 for a in ARCHETYPES}}), asked, 0.7, seed=3)["metrics"]
    gain = [same[f"council_gain_over_self_consistency{end}"] for end in ("_low", "", "_high")]
    assert gain == pytest.approx([-gain[2], 0.0, gain[2]])
    assert gain[2] > 0.01, "equal answers to some questions say little about a difference"
