"""The own temperature: the closed form against a naive loop and against every other predictor; drawing; the head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.core.small_data import SHAPE
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phases.p5_curriculum.config import SelfModelConfig
from training_core.phases.p5_curriculum.self_model import (
    GRID,
    HIGHEST,
    LOWEST,
    RANGES,
    OwnSamples,
    SelfModel,
    best_possible,
    confusion,
    draw_samples,
    features,
    load_self_model,
    log_likelihoods,
    measure_self_model,
    own_logits,
    range_edges,
    range_grid,
    self_model_tensors,
    shuffled,
    train_self_model,
)


def planted(samples: int, tokens: int = 32, vocab: int = 40, seed: int = 0) -> tuple[Tensor, OwnSamples]:
    """Random logits, sure ones and unsure ones, and tokens drawn at known temperatures, uniform in log T."""
    generator = torch.Generator().manual_seed(seed)
    sureness = 1 + 3 * torch.rand(samples, 1, 1, generator=generator)
    logits = sureness * torch.randn(samples, tokens, vocab, generator=generator)
    ranges = torch.arange(samples) % RANGES
    place = torch.rand(samples, generator=generator, dtype=torch.float64)
    edges = range_edges()
    temperatures = edges[ranges] * (edges[ranges + 1] / edges[ranges]) ** place
    probabilities = (logits.double() / temperatures[:, None, None]).softmax(-1)
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(samples, tokens)
    return logits, OwnSamples(torch.zeros(samples, 0, dtype=torch.long), drawn, ranges, temperatures)


def share(predicted: Tensor, samples: OwnSamples) -> float:
    return float((predicted == samples.ranges).double().mean())


def test_edges_by_hand() -> None:
    edges = range_edges()
    assert (len(edges), float(edges[0]), float(edges[-1])) == (11, pytest.approx(0.3), pytest.approx(2.4))
    assert float(edges[5]) == pytest.approx(math.sqrt(0.3 * 2.4))
    ratios = edges[1:] / edges[:-1]
    assert float(ratios.max() / ratios.min()) == pytest.approx(1.0)
    grid = range_grid()
    assert grid.shape == (RANGES, GRID)
    assert bool((grid > edges[:-1, None]).all() and (grid < edges[1:, None]).all())
    assert float(grid.log().mean()) == pytest.approx((math.log(LOWEST) + math.log(HIGHEST)) / 2)


def naive_range(logits: Tensor, tokens: Tensor) -> int:
    """Straight from the formula, number by number, without logarithms of sums."""
    low, high = math.log(0.3), math.log(2.4)
    best = (-1.0, -1)
    for r in range(10):
        mean = 0.0
        for g in range(GRID):
            temperature = math.exp(low + (high - low) * (r + (g + 0.5) / GRID) / 10)
            likelihood = 1.0
            for z, y in zip(logits.tolist(), tokens.tolist(), strict=True):
                likelihood *= math.exp(z[y] / temperature) / sum(math.exp(v / temperature) for v in z)
            mean += likelihood / GRID
        best = max(best, (mean, r))
    return best[1]


def test_closed_form_equals_a_naive_loop() -> None:
    logits, samples = planted(20, tokens=12, vocab=9)
    found = log_likelihoods(logits, samples.tokens, range_grid())
    assert best_possible(found).tolist() == [naive_range(*row) for row in zip(logits, samples.tokens, strict=True)]
    t = float(range_grid()[3, 1])
    expected = sum(
        z[y] / t - math.log(sum(math.exp(v / t) for v in z))
        for z, y in zip(logits[0].double().tolist(), samples.tokens[0].tolist(), strict=True)
    )
    assert float(found[0, 3, 1]) == pytest.approx(expected, rel=1e-12)
    huge = log_likelihoods(logits * 1e4, samples.tokens, range_grid())
    assert bool(torch.isfinite(huge).all())


def test_a_range_is_judged_by_its_mean_likelihood_not_by_its_peak_nor_by_its_mean_logarithm() -> None:
    peak, even = [0.0, -100.0, -100.0, -100.0], [-2.0] * 4
    assert best_possible(torch.tensor([[peak, even]])).tolist() == [0], "1/4 exceeds e^-2"
    assert best_possible(torch.tensor([[peak, [-0.5] * 4]])).tolist() == [1], "1/4 is below e^-0.5"


def test_integration_within_a_range_is_right_more_often_than_its_middle_alone() -> None:
    """With few tokens the likelihood is flat and skewed; the posterior mode over ranges is the best there is."""
    logits, samples = planted(4000, tokens=24, vocab=12, seed=5)
    likelihoods = log_likelihoods(logits, samples.tokens, range_grid())
    best = share(best_possible(likelihoods), samples)
    log_p = logits.log_softmax(-1)
    of_token = log_p.gather(-1, samples.tokens[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    surprise = (of_token + entropy).sum(-1)  # falls with T: ranked into ten equal groups
    ranked = 9 - surprise.argsort().argsort() * 10 // len(surprise)
    others = {
        "ranks of the surprise": share(ranked, samples),
        "the likeliest single temperature": share(likelihoods.flatten(1).argmax(-1) // GRID, samples),
        "one range too high": share((best_possible(likelihoods) + 1).clamp_max(9), samples),
        "chance": 0.1,
    }
    # two shares of the same 4000 samples: three standard errors of a difference are below .03
    assert best > 0.3
    assert all(other <= best + 0.01 for other in others.values()), (best, others)
    assert others["ranks of the surprise"] < best - 0.03


def test_head_comes_near_the_best_and_falls_to_chance_when_it_learned_from_shuffled_ranges() -> None:
    config = SelfModelConfig(steps=300)
    logits, samples = planted(400)
    held_logits, held = planted(600, seed=9)
    told = features(logits, samples.tokens)
    head = train_self_model(told, samples.ranges, config, seed=0)
    controls = [train_self_model(told, shuffled(samples.ranges, seed), config, seed=0) for seed in range(4)]
    measured = measure_self_model(head, controls, held_logits, held)
    metrics, shown = measured["metrics"], measured["shown"]
    assert metrics["temperature_accuracy"] > 0.75 * metrics["temperature_best_possible"] > 0.25
    assert metrics["temperature_over_chance_low"] == pytest.approx(metrics["temperature_accuracy_low"] - 0.1)
    assert metrics["temperature_over_chance_low"] > 0.1
    assert metrics["temperature_shuffled"] == pytest.approx(0.1, abs=0.05)
    rows = torch.tensor(shown["confusion"])
    assert rows.sum(1).tolist() == [60] * 10
    assert float(rows.diagonal().sum()) / 600 == pytest.approx(metrics["temperature_accuracy"])
    near = sum(int(rows.diagonal(offset).sum()) for offset in (-1, 0, 1)) / 600
    assert near == pytest.approx(metrics["temperature_within_one"])
    again = train_self_model(told, samples.ranges, config, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))


def test_features_and_confusion_by_hand() -> None:
    p = torch.tensor([0.5, 0.25, 0.25])
    f = features(p.log()[None, None], torch.tensor([[1]]))
    assert f.tolist() == [[[pytest.approx(math.log(0.25)), pytest.approx(1.5 * math.log(2))]]]
    table = confusion(torch.tensor([0, 0, 9]), torch.tensor([0, 3, 8]))
    assert {(int(i), int(j)): int(table[i, j]) for i, j in table.nonzero()} == {(0, 0): 1, (0, 3): 1, (9, 8): 1}
    order = shuffled(torch.arange(100), 3)
    assert sorted(order.tolist()) == list(range(100))
    assert float((order == torch.arange(100)).double().mean()) < 0.1


def model() -> Cognate:
    torch.manual_seed(0)
    return Cognate(CognateConfig(vocab_size=320, **SHAPE)).eval()  # type: ignore[arg-type]


def test_samples_are_drawn_at_their_temperatures_and_read_as_they_were_drawn() -> None:
    cognate = model()
    given = torch.randint(1, 300, (40, 3), generator=torch.Generator().manual_seed(1))
    samples = draw_samples(cognate, given, 20, torch.Generator().manual_seed(2))
    again = draw_samples(cognate, given, 20, torch.Generator().manual_seed(2))
    assert torch.equal(samples.tokens, again.tokens)
    assert samples.tokens.shape == (40, 20)
    assert torch.bincount(samples.ranges).tolist() == [4] * 10
    edges = range_edges()
    assert bool(
        ((edges[samples.ranges] <= samples.temperatures) & (samples.temperatures < edges[samples.ranges + 1])).all()
    )
    logits = own_logits(cognate, samples)
    with torch.no_grad():  # position by position, one row, without padding or batches
        row = [0, *given[7].tolist(), *samples.tokens[7].tolist()]
        expected = torch.stack([cognate(torch.tensor([row[: 4 + t]])).logits[0, -1] for t in range(20)])
    assert (logits[7] - expected).abs().max() < 1e-4
    # the mean of log p(y | T) over samples is minus the entropy at T, within four standard errors
    z = logits.double() / samples.temperatures[:, None, None]
    log_p = z.log_softmax(-1)
    surplus = log_p.gather(-1, samples.tokens[..., None])[..., 0] - (log_p.exp() * log_p).sum(-1)
    variance = (log_p.exp() * log_p**2).sum(-1) - (log_p.exp() * log_p).sum(-1) ** 2
    assert abs(float(surplus.sum())) < 4 * float(variance.sum().sqrt())
    # without any text in front, the first token is the one that follows an end-of-text
    alone = draw_samples(cognate, torch.zeros(300, 0, dtype=torch.long), 1, torch.Generator().manual_seed(3))
    with torch.no_grad():
        first = (cognate(torch.tensor([[0]])).logits[0, -1].double() / alone.temperatures[:, None]).softmax(-1)
    hits, expected_p = float((alone.tokens[:, 0] == 0).sum()), first[:, 0]
    assert abs(hits - float(expected_p.sum())) < 4 * float((expected_p * (1 - expected_p)).sum().sqrt())
    assert hits > 30, "a random model with a tied embedding repeats the last token"
    at_one = logits.double().log_softmax(-1)
    wrong = at_one.gather(-1, samples.tokens[..., None])[..., 0] - (at_one.exp() * at_one).sum(-1)
    assert abs(float(wrong[samples.ranges < 3].mean())) > 10 * abs(float(surplus.mean()))


def test_head_comes_back_from_the_tensors_of_a_bundle() -> None:
    head = SelfModel(8)
    head.centre = torch.tensor([-2.0, 3.0])
    tensors = {"embedding.weight": torch.zeros(3), **self_model_tensors(head)}
    assert set(tensors) - {"embedding.weight"} == {f"self_model.{name}" for name in head.state_dict()}
    loaded = load_self_model(tensors)
    told = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(told), head(told))
    each = torch.stack([head(told[:1, t : t + 1])[0] for t in range(6)]).sum(0)
    assert torch.allclose(head(told)[0], each, atol=1e-5), "scores add up over tokens"
    with pytest.raises(ValueError, match="holds no self-model"):
        load_self_model({"embedding.weight": torch.zeros(3)})
    tensors["self_model.hidden.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="does not fit together"):
        load_self_model(tensors)
