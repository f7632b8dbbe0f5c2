"""The cross-entropy method against a step-by-step rewriting on the same draws, and on optima that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tests.core.small_cycles import parent
from tests.core.test_character_council import question
from training_core.data.tokenizer import load_tokenizer
from training_core.nn.svf import Expert, SVFModel, mixture
from training_core.phases.p7_experts.few_shot import FewShotConfig, Score, cross_entropy_method, few_shot_weights
from training_core.phases.p7_experts.gradient_profile import measure_gradients
from training_core.tasks.questions.likelihood import AskedQuestions, measure_likelihoods

OPTIMUM = torch.tensor([0.8, 0.0, 0.35])


def near(weights_K: Tensor) -> Score:
    """Coarse steps of a distance, and the distance itself to break ties."""
    distance = float((weights_K - OPTIMUM).norm())
    return float(-round(4 * distance)), -distance


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_planted_optimum_is_found() -> None:
    """One coefficient lies on the border. Over 20 seeds half come within .002; in a few the spread is gone before, but
    320 draws without a search, the same number, are closer in no more than two."""
    distances, at_random = [], []
    for seed in range(20):
        found = cross_entropy_method(near, 3, FewShotConfig(), seeded(seed))
        distances.append(float((found.weights_K - OPTIMUM).norm()))
        at_random.append(float((torch.rand(320, 3, generator=seeded(seed)) - OPTIMUM).norm(dim=1).min()))
    assert sorted(distances)[10] < 0.002
    assert max(distances) < 0.2
    assert sum(other < distance for other, distance in zip(at_random, distances, strict=True)) <= 2


def test_every_round_is_what_the_definition_says() -> None:
    """Written again in NumPy with loops: six elites of 32, unbiased spread, the best first, equals in order."""
    asked: list[list[float]] = []

    def coarse(weights_K: Tensor) -> Score:
        asked.append(weights_K.tolist())
        return float(round(3 * float(weights_K[0]))), float(round(4 * float(weights_K[1] - weights_K[0])))

    found = cross_entropy_method(coarse, 2, FewShotConfig(rounds=4), seeded(3))
    draws = seeded(3)
    mean, std, best = np.full(2, 0.5), np.full(2, 0.5), np.full(2, 0.5)
    expected: list[list[float]] = []
    history = []
    for _ in range(4):
        drawn = torch.randn(32, 2, generator=draws).numpy()
        members = [np.clip(mean + std * row, 0, 1).astype(np.float32) for row in drawn]
        members[0] = best.astype(np.float32)
        told = [(round(3 * float(a)), round(4 * float(b - a))) for a, b in members]
        left, elites = list(range(32)), []
        for _ in range(6):
            first = max(left, key=lambda i: (told[i], -i))
            elites.append(first)
            left.remove(first)
        best = members[elites[0]]
        history.append(told[elites[0]])
        chosen = np.array([members[i] for i in elites], dtype=np.float64)
        mean = chosen.sum(0) / 6
        std = np.sqrt(((chosen - mean) ** 2).sum(0) / 5)
        expected += [[float(x) for x in member] for member in members]
    assert torch.tensor(asked).flatten().tolist() == pytest.approx(np.array(expected).flatten().tolist(), abs=1e-5)
    assert [tuple(score) for score in found.history] == history
    assert found.weights_K.tolist() == pytest.approx(best.tolist(), abs=1e-5)


def test_the_best_never_gets_worse_and_a_seed_gives_the_same() -> None:
    one, same, other = (cross_entropy_method(near, 3, FewShotConfig(), seeded(seed)) for seed in (1, 1, 2))
    assert list(one.history) == sorted(one.history)
    assert torch.equal(one.weights_K, same.weights_K)
    assert not torch.equal(one.weights_K, other.weights_K)
    assert one.document()["log_likelihood"] == one.score[1]


@pytest.fixture(scope="module")
def tokenizer(small_data: dict[str, Path]) -> Tokenizer:
    return load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())


def test_the_expert_that_helps_is_turned_up_and_the_one_that_harms_down(tokenizer: Tokenizer) -> None:
    """One expert is a step down the gradient of the shots' loss, the other the same step up. No shot is exact, so that
    likelihoods decide; they must be those of the model with the mixture, to float32."""
    scalable = SVFModel(parent())
    shots = AskedQuestions([question(f"Say {word}", "yes it is") for word in "abcde"], tokenizer, 320)
    gradients = {name: g_QR.mean(0) for name, g_QR in measure_gradients(scalable, shots).items()}
    steps = {name: 0.3 * g_R / g_R.abs().max() for name, g_R in gradients.items()}
    good, bad = (
        Expert.of({name: 1 - sign * step_R for name, step_R in steps.items()}, scalable.singular) for sign in (1, -1)
    )
    found = few_shot_weights(scalable, [bad, good], shots, FewShotConfig(rounds=3), seeded())
    assert found.weights_K[0] < 0.1
    assert found.weights_K[1] > 0.9
    assert all(layer.multipliers is None for layer in scalable.layers.values())
    with scalable.using(mixture([bad, good], found.weights_K)) as model:
        told = measure_likelihoods(model, tokenizer, shots.questions)
    assert found.score == pytest.approx((0.0, float((told.log_prob_Q / told.tokens_Q).mean())), abs=1e-5)
    before = measure_likelihoods(parent(), tokenizer, shots.questions)
    assert found.score[1] > float((before.log_prob_Q / before.tokens_Q).mean())


def test_a_search_without_a_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3 experts and 1 elites: raise few_shot.population"):
        cross_entropy_method(near, 3, FewShotConfig(population=8), seeded())
    with pytest.raises(ValueError, match="got 0 experts"):
        cross_entropy_method(near, 0, FewShotConfig(), seeded())
