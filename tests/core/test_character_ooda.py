"""The loop: posteriors by hand, decisions that follow them, no look at right answers, budgets, equal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models

from tests.core.small_data import SHAPE
from tests.core.test_character_council import Planned, attempt, question
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phases.p5_curriculum.config import DecisionConfig
from training_core.phases.p5_curriculum.council import ARCHETYPES
from training_core.phases.p5_curriculum.ooda import (
    TOOLS_PREAMBLE,
    Controller,
    Experience,
    Observation,
    _draw_beta,
    direct_answers,
    earliest_majority,
    measure_ooda,
    observe,
)
from training_core.tasks.questions.question import Question

HERE = ("sums", True)


def look(questions: Sequence[Question]) -> list[Observation]:
    return [Observation(q.family, 0.1, 5) for q in questions]


def sums(count: int, **changes: object) -> list[Question]:
    return [replace(question(f"{n}+{n}", str(2 * n)), **changes) for n in range(count)]  # type: ignore[arg-type]


def test_posteriors_by_hand() -> None:
    experience = Experience()
    for right in (True, True, False):
        experience.count(HERE, "tools", right, 12)
    assert experience.share("tools") == pytest.approx(3 / 5)
    assert experience.posterior(HERE, "tools") == (pytest.approx(1 + 0.6 + 2), pytest.approx(2 - 0.6 + 1))
    # a family that was never met is judged by the others
    assert experience.posterior(("words", False), "tools") == (pytest.approx(1.6), pytest.approx(1.4))
    assert experience.posterior(HERE, "council") == (1.5, 1.5)
    assert experience.expected_tokens("tools") == 12.0
    assert Observation("sums", 0.69, 5).situation == ("sums", True)
    assert Observation("sums", 0.70, 5).situation == ("sums", False)


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 1.5), (3.6, 2.4), (40.0, 2.0), (1.02, 30.0)])
def test_draws_have_the_moments_of_the_beta_distribution(alpha: float, beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([_draw_beta(alpha, beta, generator) for _ in range(4000)], dtype=torch.float64)
    mean = alpha / (alpha + beta)
    variance = mean * (1 - mean) / (alpha + beta + 1)
    assert float(draws.mean()) == pytest.approx(mean, abs=4 * (variance / 4000) ** 0.5)
    assert float(draws.var()) == pytest.approx(variance, rel=0.2)


def test_majority_is_the_earliest() -> None:
    assert earliest_majority(["b", "a", "A", "b", "c"]) == "b"
    assert earliest_majority(["", "a", "b", "B."]) == "b"
    assert earliest_majority(["", " "]) == ""


def taught(answerer: Planned, config: DecisionConfig, seed: int = 0, questions: int = 60) -> Controller:
    controller = Controller(answerer, look, config, seed)
    controller.learn(sums(questions))
    return controller


def test_the_loop_takes_the_option_that_gives_most_for_its_tokens() -> None:
    costs = {"": 10, TOOLS_PREAMBLE: 14, **{a.preamble: 14 for a in ARCHETYPES}}
    config = DecisionConfig(ooda_budget_tokens=1000, ooda_accept=0.8)
    useful = taught(Planned({"": 0.1, TOOLS_PREAMBLE: 0.97}, costs), config)
    first = [episode.actions[0] for episode in useful.run(sums(50))]
    assert first.count("tools") >= 48
    useless = taught(Planned({"": 0.97, TOOLS_PREAMBLE: 0.1}, costs), config)
    first = [episode.actions[0] for episode in useless.run(sums(50))]
    assert first.count("direct") >= 48
    # as good, but dearer: the cheaper one
    equal = taught(Planned({"": 0.97, TOOLS_PREAMBLE: 0.97}, costs | {TOOLS_PREAMBLE: 40}), config)
    first = [episode.actions[0] for episode in equal.run(sums(50))]
    assert first.count("direct") >= 48


@pytest.mark.parametrize("accept", [0.2, 1.0])
def test_measuring_never_sees_the_right_answers(accept: float) -> None:
    config = DecisionConfig(ooda_budget_tokens=200, ooda_accept=accept)

    class Deaf(Planned):
        """Its answers do not depend on the right ones."""

        def attempt(self, questions, generator, **settings):  # type: ignore[no-untyped-def]
            drawn = torch.randint(0, 3, (len(questions),), generator=generator).tolist()
            return [attempt(q, f"guess {n}") for q, n in zip(questions, drawn, strict=True)]

    courses = []
    for answers in ("guess 0", "guess 1", "else"):
        controller = Controller(Deaf({}), look, config, 7)
        controller.learn(sums(30, answer="guess 2"))
        before = (dict(controller.experience.right), dict(controller.experience.tried))
        episodes = controller.run(sums(40, answer=answers))
        assert before == (controller.experience.right, controller.experience.tried), "nothing is learned from them"
        courses.append([(e.answers, e.actions, e.steps, e.tokens) for e in episodes])
    assert courses[0] == courses[1] == courses[2]
    accepted = ["mostly right" in steps[-1][1] for _, _, steps, _ in courses[0]]
    assert any(accepted) == (accept < 1), "a first answer is accepted as well, whether it is right or not"


def test_it_is_deterministic_for_a_seed_and_differs_between_seeds() -> None:
    rates = {"": 0.4, TOOLS_PREAMBLE: 0.5, ARCHETYPES[0].preamble: 0.5}
    courses = []
    for seed in (0, 0, 1):
        controller = taught(Planned(rates), DecisionConfig(ooda_budget_tokens=120), seed)
        courses.append([(e.answers, e.actions, e.steps) for e in controller.run(sums(30))])
    assert courses[0] == courses[1]
    assert courses[0] != courses[2]


def test_episodes_end_by_agreement_by_acceptance_or_by_the_budget() -> None:
    sure = taught(Planned({"": 1.0}), DecisionConfig(ooda_accept=0.9)).run(sums(10))
    assert [e.actions for e in sure] == [["direct"]] * 10
    assert all(e.tokens == 5 + 10 for e in sure), "the reading for the entropy counts"
    twice = taught(Planned({"": 1.0}), DecisionConfig(ooda_accept=1.0, ooda_agreeing=2)).run(sums(10))
    assert all(len(e.answers) >= 2 and e.right for e in twice)
    hopeless = taught(Planned({}), DecisionConfig(ooda_budget_tokens=45)).run(sums(10))
    assert all(e.over and 15 <= e.tokens <= 45 for e in hopeless)
    assert all("nothing fits" in e.steps[-1][1] for e in hopeless)
    poor = taught(Planned({}), DecisionConfig(ooda_budget_tokens=1)).run(sums(3))
    assert [len(e.answers) for e in poor] == [1] * 3, "one direct answer is always given"
    assert [stage for stage, _ in poor[0].steps][:4] == ["observe", "orient", "decide", "act"]


def test_first_answer_each_way_is_greedy_and_later_ones_are_drawn() -> None:
    answerer = Planned({}, {ARCHETYPES[0].preamble: 1000})  # so that no council fits
    controller = taught(answerer, DecisionConfig(ooda_budget_tokens=75, answer_temperature=0.7))
    learned = len(answerer.asked)
    assert [heat for _, heat, _ in answerer.asked] == [0.0, 0.0] + [0.7] * len(ARCHETYPES)
    (episode,) = controller.run(sums(1))
    assert len(episode.actions) == len(answerer.asked) - learned == 7, "one attempt a decision"
    for preamble in ("", TOOLS_PREAMBLE):
        heats = [heat for asked, heat, _ in answerer.asked[learned:] if asked == preamble]
        assert heats == [0.0, *[0.7] * (len(heats) - 1)]


def test_direct_answers_spend_no_fewer_tokens() -> None:
    answerer = Planned({"": 0.5})
    answers, spent = direct_answers(answerer, sums(10), 250, 0.7, seed=0)
    assert (len(answers), spent) == (10, 300)
    assert [heat for _, heat, _ in answerer.asked] == [0.0, 0.7, 0.7]
    _, exactly = direct_answers(answerer, sums(10), 200, 0.7, seed=0)
    assert exactly == 200


def test_measured_gain_has_the_sign_of_the_difference() -> None:
    config = DecisionConfig(ooda_budget_tokens=60)
    found = measure_ooda(taught(Planned({"": 0.1, TOOLS_PREAMBLE: 0.95}), config), sums(80))
    metrics = found["metrics"]
    assert metrics["ooda_gain_over_direct_low"] > 0.3
    assert metrics["ooda_gain_over_direct"] == pytest.approx(metrics["ooda_accuracy"] - metrics["ooda_direct_accuracy"])
    assert metrics["direct_tokens"] >= metrics["ooda_tokens"]
    assert len(found["shown"]["episodes"]) == 4
    # tools that do worse are left alone
    worse = measure_ooda(taught(Planned({"": 0.9, TOOLS_PREAMBLE: 0.1}), config), sums(80))["metrics"]
    assert worse["ooda_tools_actions"] <= 4
    assert abs(worse["ooda_gain_over_direct"]) < 0.15


def test_entropy_is_that_of_the_first_answer_token() -> None:
    vocab = {chr(n): n for n in range(320)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=320, **SHAPE)).eval()  # type: ignore[arg-type]
    asked = [question("1+1", "2"), question("a much longer question", "3", family="words")]
    found = observe(model, tokenizer, asked)
    for seen, one in zip(found, asked, strict=True):
        text = f"Question: {one.prompt}\nAnswer:"
        with torch.no_grad():
            p = model(torch.tensor([[0, *map(ord, text)]])).logits[0, -1].double().softmax(-1)
        assert seen.entropy == pytest.approx(-float((p * p.log()).sum()), abs=1e-5)
        assert (seen.family, seen.num_tokens) == (one.family, len(text))
