"""The first half of phase 5 end to end on a small model: what is stored and measured, the three arms at equal tokens,
harm, bad input, and going on after kill -9."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forge_resources.sandbox import open_sandbox
from tests.core.declared import assert_declared
from tests.core.small_curriculum import CONFIG, keep, practise, small_bank, small_ternary
from tests.core.test_threads import attempt, train_question
from tests.killed import KILLED, run_apart
from tests.nested import nested
from training_core.evaluation.intervals import Z95, paired_difference
from training_core.phases.p5_curriculum.dreams import consolidate
from training_core.phases.p5_curriculum.practice import LevelStanding, Practice
from training_core.store.bundle import Product
from training_core.tasks.questions.bank import QuestionBank
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.ladder import cells, in_new_wording, make
from training_core.tasks.questions.measurement import (
    Answered,
    difference,
    foreseen_fall,
    level_metrics,
    mean_difference,
    worst_fall,
)
from training_core.tasks.sandbox import Sandbox

METRICS = (
    "level_accuracy", "level_accuracy_gain_low", "edge_gain", "worst_passed_level_drop_high", "dreams_over_none_low",
    "dreams_over_replay_low", "forgetting_none", "forgetting_replay", "forgetting_dreams", "handed_on",
)  # fmt: skip


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> QuestionBank:
    return small_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def product(small_data: dict[str, Path], bank: QuestionBank, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return practise(small_data, bank, CONFIG, tmp_path_factory.mktemp("checkpoint"))


def given(
    data: dict[str, Path], bank: QuestionBank, sandbox: Sandbox, checkpoint: Path | None = None
) -> QuestionContext:
    """What practice is given."""
    return QuestionContext(folders=data, bank=bank, sandbox=sandbox, checkpoint=checkpoint)


def answered(right: dict[int, list[bool]]) -> Answered:
    question = train_question()
    return Answered({level: tuple(attempt(question, 0, r) for r in values) for level, values in right.items()})


def test_what_is_measured_and_shown(product: Product, bank: QuestionBank) -> None:
    assert_declared("practised_model", product)
    assert set(METRICS) <= product.metrics.keys()
    assert product.kind == "ternary"
    assert product.metrics["rehearsed_tokens"] == CONFIG.consolidation.steps * CONFIG.consolidation.memory_tokens
    shown = product.exhibits["practice"]
    assert [level["level"] for level in shown["levels"]] == list(range(1, 11))
    assert all(level["asked"] == CONFIG.measured_questions for level in shown["levels"])
    assert len(shown["rounds"]) == CONFIG.practice.rounds
    first = shown["rounds"][0]["levels"]
    assert {row["level"] for row in first} == {1, 2}, "an untrained model begins at the first levels"
    assert sum(row["attempts"] for row in first) == 6 * CONFIG.practice.passes
    assert all(row["shown"] > 0 and row["right_alone"] == 0 for row in first)
    assert [arm["tokens"] for arm in shown["forgetting"]["arms"]] == [0, 14, 14], "equal tokens, exactly"
    assert shown["spend"] == {"usd": 0.0, "frontier_questions": 0, "generator_questions": 120, "note": bank.note}
    from forge_assets.report.exhibits import markdown, render

    assert len(markdown("practice", shown).splitlines()) <= 30
    assert "dreams" in render("practice", shown)


def test_an_edge_that_leaps_over_what_is_compared_is_followed_no_further(
    small_data: dict[str, Path], bank: QuestionBank
) -> None:
    """Everything up to the last compared level is mastered at once: the next level is that last one."""
    with open_sandbox("embedded") as sandbox:
        practice = Practice(small_ternary(320), given(small_data, bank, sandbox), CONFIG)
        result = practice.run(LevelStanding({1: 0}, {1: 10}, 0.75))
        mastered = answered({level: [True] * 3 for level in (1, 2, 3, 4)})
        found = consolidate(practice, result, LevelStanding({1: 0}, {1: 10}, 0.75), CONFIG, lambda model: mastered)
    assert found.following == (4,)
    assert found.earlier == (1, 2)
    assert found.arms["dreams"].forgetting.value == 0.0


def test_harm_to_text_hands_the_parent_on(small_data: dict[str, Path], bank: QuestionBank) -> None:
    """At a thousand times the rate every candidate forgets its text; what is stored then is the parent."""
    violent = nested(CONFIG, **{"muon_lr": 1.0, "adamw_lr": 1.0, "rounds": 1, "text_weight": 0.0})
    product = practise(small_data, bank, violent)
    assert_declared("practised_model", product)
    assert product.metrics["handed_on"] == 1.0
    assert product.metrics["worst_passed_level_drop_high"] == 0.0
    assert product.metrics["level_accuracy_gain"] == 0.0
    parent = small_ternary(320).state_dict()
    tensors = product.tensors or pytest.fail("a ternary model keeps its latents")
    assert all(torch.equal(t.half(), tensors[name].half()) for name, t in parent.items())
    assert product.exhibits["practice"]["forgetting"]["chosen"] == "parent"


def test_level_metrics_by_hand() -> None:
    before = answered({1: [True] * 9 + [False], 2: [True] * 5 + [False] * 5, 3: [False] * 10})
    after = answered({1: [True] * 8 + [False] * 2, 2: [True] * 10, 3: [False] * 10})
    metrics = level_metrics(before, after, 0.75)
    assert metrics["level_1_accuracy_before"] == 0.9
    assert metrics["level_2_accuracy"] == 1.0
    assert (metrics["edge_before"], metrics["edge"], metrics["edge_gain"]) == (1.0, 2.0, 1.0)
    assert metrics["num_passed_levels"] == 1.0
    assert metrics["worst_passed_level_drop_high"] == pytest.approx(
        paired_difference(torch.eye(10)[0], torch.zeros(10)).high
    ), "one of ten fell"
    assert metrics["level_accuracy_gain"] == pytest.approx((-0.1 + 0.5 + 0.0) / 3)
    assert difference(before, after, 2).value == pytest.approx(0.5)
    unequal = mean_difference(
        answered({1: [True] * 4, 2: [False] * 40}), answered({1: [False] * 4, 2: [True] * 40}), [1, 2]
    )
    assert unequal.value == pytest.approx(0.0), "each level counts the same, whatever its number of questions"
    four = [True] * 4 + [False] * 6
    none = level_metrics(answered({1: four, 2: four}), answered({1: four, 2: [False] * 10}), 0.75)
    assert none["num_passed_levels"] == 0.0
    fall = mean_difference(answered({1: four, 2: [False] * 10}), answered({1: four, 2: four}), [1, 2])
    assert fall.value == pytest.approx(0.2)
    assert none["worst_passed_level_drop_high"] == pytest.approx(fall.high), "the mean, where no level was passed"
    lucky = level_metrics(
        answered({1: [False] * 40, 2: [True] + [False] * 39}), answered({1: [True] * 40, 2: [False] * 40}), 0.75
    )
    assert lucky["worst_passed_level_drop_high"] < 0, "one lucky answer is not a level that was lost"


def test_accuracy_in_wordings_that_training_never_has() -> None:
    made = [make(cells(2)[0], seed) for seed in range(300)]
    new, known = [q for q in made if in_new_wording(q)][:4], [q for q in made if not in_new_wording(q)][:10]
    attempts = [attempt(question, 0, place == 0) for place, question in enumerate(new)]
    attempts += [attempt(question, 0, place < 7) for place, question in enumerate(known)]
    both = Answered({2: tuple(attempts)})
    metrics = level_metrics(answered({2: [True] * 14}), both, 0.75)
    assert (metrics["new_wordings_accuracy"], metrics["known_wordings_accuracy"]) == (1 / 4, 7 / 10)
    assert metrics["known_wordings_accuracy_before"] == 1.0
    assert "new_wordings_accuracy_before" not in metrics, "none was asked"


@pytest.mark.slow
def test_a_fall_that_is_foreseen_is_not_exceeded_on_other_questions() -> None:
    """Four of a hundred answers change, as often to the better: what 200 questions say of 200 others, 400 times."""
    draw = np.random.default_rng(0)

    def fall(measure: Callable[[Answered, Answered, float], float]) -> float:
        kind = draw.choice(4, 200, p=[0.02, 0.02, 0.85, 0.11])  # lost, gained, right and wrong as before
        before, after = answered({1: list(kind % 2 == 0)}), answered({1: list((kind == 1) | (kind == 2))})
        return measure(before, after, 0.75)

    foreseen = [fall(foreseen_fall) for _ in range(400)]
    found = [fall(worst_fall) for _ in range(400)]
    exceeded = np.mean([other > said for other, said in zip(found, foreseen, strict=True)])
    assert exceeded <= 0.08
    exceeded_by_the_interval = np.mean([other > fall(worst_fall) for other in found])
    assert exceeded_by_the_interval > 0.3, "one interval says nothing of the next one's end"
    right = [True] * 20
    assert foreseen_fall(answered({1: right}), answered({1: right}), 0.75) == 0.0
    lost = foreseen_fall(answered({1: right}), answered({1: [False] * 4 + right[4:]}), 0.75)
    high = worst_fall(answered({1: right}), answered({1: [False] * 4 + right[4:]}), 0.75)
    assert lost == pytest.approx(high + Z95 * (2 * 0.2 * 0.8 / 20) ** 0.5)
    lines = answered({1: [True] * 15 + [False] * 5})
    other = Answered({1: tuple(replace(attempt, log_probs=(-2.0,)) for attempt in lines.attempts[1])})
    assert worst_fall(lines, other, 0.75) == pytest.approx(Z95**2 / (20 + Z95**2)), "equal answers of another model"


def test_bad_input_says_what_to_change(small_data: dict[str, Path], bank: QuestionBank) -> None:
    with pytest.raises(ValueError, match=r"level 1 has 6 held-out questions and 7 are to be measured"):
        practise(small_data, bank, nested(CONFIG, **{"measured_questions": 7}))
    with pytest.raises(ValueError, match=r"level 1 has 6 questions for assessment, and up to 50 may be asked"):
        practise(small_data, bank, nested(CONFIG, **{"most_questions": 50}))
    without = QuestionBank([q for q in bank.train if q.level != 2], bank.validation, bank.test, 0.0, "")
    with pytest.raises(ValueError, match="level 2 has no questions for training"):
        practise(small_data, without, CONFIG)


@pytest.mark.slow
def test_group_relative_rounds_follow(small_data: dict[str, Path], bank: QuestionBank, tmp_path: Path) -> None:
    """A model that is never right has no group to learn from: the round is made, and teaches nothing."""
    config = nested(CONFIG, **{"rounds": 1, "policy_rounds": 1, "group_size": 2, "questions_per_round": 4})
    product = practise(small_data, bank, config)
    assert len(product.exhibits["practice"]["rounds"]) == 2
    second = product.exhibits["practice"]["rounds"][1]["levels"]
    assert sum(row["attempts"] for row in second) == 8
    assert sum(row["shown"] for row in second) == 0


def test_only_groups_of_both_kinds_teach(small_data: dict[str, Path], bank: QuestionBank) -> None:
    """The attempts of a question stand together; the reward counts against the others of the same question alone."""
    config = nested(CONFIG, **{"group_size": 2})
    with open_sandbox("embedded") as sandbox:
        practice = Practice(small_ternary(320), given(small_data, bank, sandbox), config)
        made = practice.attempt_round(0, [1], grouped=True)
        asked = [attempt.question.prompt for attempt in made]
        assert len(asked) == 12
        assert asked[::2] == asked[1::2]
        assert len(set(asked)) == 6
        told = [replace(attempt, right=place < 2) for place, attempt in enumerate(made)]  # one group right, five wrong
        before = {name: tensor.clone() for name, tensor in practice.model.state_dict().items()}
        assert practice._reinforce(0, told) is None
        assert all(torch.equal(tensor, before[name]) for name, tensor in practice.model.state_dict().items())
        told[1] = replace(told[1], right=False)
        assert practice._reinforce(0, told) is not None
        assert any(not torch.equal(tensor, before[name]) for name, tensor in practice.model.state_dict().items())


def test_no_round_reads_the_text_of_another(
    small_data: dict[str, Path], bank: QuestionBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounds are parts of one schedule, by gradient of rewards or not."""
    drawn: list[int] = []
    with open_sandbox("embedded") as sandbox:
        practice = Practice(small_ternary(320), given(small_data, bank, sandbox), CONFIG)
        monkeypatch.setattr(practice, "text", lambda g: drawn.append(g.initial_seed()) or Practice.text(practice, g))
        told = [replace(one, right=place < 1) for place, one in enumerate(practice.attempt_round(0, [1]))]
        practice._imitate(0, told[:1])
        practice._imitate(1, told[:1])
        practice._reinforce(2, told[: CONFIG.practice.group_size])
    assert len(set(drawn)) == len(drawn) == 3 * CONFIG.training.steps


def test_what_another_parent_learned_is_not_taken_over(
    small_data: dict[str, Path], bank: QuestionBank, tmp_path: Path
) -> None:
    """The same lessons and the same folder: its own training is found again, that of another parent is not."""
    told = [replace(attempt(train_question(), 0, True), completion_ids=(65, 0), roles=("own", "own"))]

    def trained(shift: float) -> torch.Tensor:
        parent = small_ternary(320)
        with torch.no_grad():
            parent.embedding.weight.add_(shift)
        with open_sandbox("embedded") as sandbox:
            practice = Practice(parent, given(small_data, bank, sandbox, tmp_path), CONFIG)
            practice._imitate(0, told)
        return practice.model.embedding.weight.detach()

    first = trained(0.0)
    assert torch.equal(trained(0.0), first)
    assert float((trained(0.5) - first).mean()) > 0.4


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_weights(
    product: Product, small_data: dict[str, Path], bank: QuestionBank, tmp_path: Path
) -> None:
    """Killed in the second round of training: the first one's attempts and weights are found again."""
    attempts: list[int] = []

    for at in ("practice 1 2", ""):
        assert run_apart(keep, tmp_path, at, data=small_data, bank=bank).status == (KILLED if at else 0)
        attempts.append((tmp_path / "attempts_0.json").stat().st_mtime_ns)
    assert attempts[0] == attempts[1], "nothing was attempted again"
    undisturbed, resumed = dict(product.tensors or {}), load_file(tmp_path / "tensors")
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
