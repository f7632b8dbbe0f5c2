"""Where to think: percentiles of calibrated text, the rules, their interval, causality, missing signals."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.core.test_models import DEPTHS, small
from training_core.nn.cognate import Cognate
from training_core.phases.p3_quiet_star.injection import (
    DIFFICULTY,
    SIGNALS,
    InjectionConfig,
    ThoughtInjector,
    keep_interval,
    read_signals,
)

NAN = float("nan")


def text(rows: int = 8, seq: int = 60, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (rows, seq), generator=torch.Generator().manual_seed(seed))


def signals_of(model: Cognate, tokens: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return read_signals(model, model.trace(tokens), tokens)


def calibrated(model: Cognate, tokens: Tensor, **changes: object) -> ThoughtInjector:
    injector = ThoughtInjector(InjectionConfig(**changes))  # type: ignore[arg-type]
    injector.calibrate([signals_of(model, rows) for rows in tokens.split(3)])
    return injector


def only(**values: list[float]) -> dict[str, Tensor]:
    """Signals or percentiles of one sequence; .5 where a signal is not named."""
    length = len(next(iter(values.values())))
    return {name: torch.tensor([values.get(name, [0.5] * length)]) for name in SIGNALS}


def test_signals_by_hand() -> None:
    model, tokens = small(memory_layers=[0, 1], num_layers=4, num_core_layers=2), text(2, 20)
    with torch.no_grad():
        trace = model.trace(tokens)
    signals = signals_of(model, tokens)
    p = model(tokens).logits.detach().double().softmax(-1)
    assert all(value.shape == (2, 20) and value.dtype == torch.float32 for value in signals.values())
    assert bool(signals["loss"][:, 0].isnan().all())
    for b, t in [(0, 1), (0, 19), (1, 7)]:
        assert float(signals["loss"][b, t]) == pytest.approx(-math.log(float(p[b, t - 1, tokens[b, t]])), rel=1e-5)
        entropy = -sum(x * math.log(x) for x in p[b, t].tolist())
        assert float(signals["entropy"][b, t]) == pytest.approx(entropy, rel=1e-5)
    attention = model.core[-1].attention
    inputs = trace.core[-1][-1][-1].inputs
    for b, t in [(0, 0), (0, 5), (1, 19)]:
        assert float(signals["dispersion"][b, t]) == pytest.approx(naive_evenness(attention, inputs[b], t), rel=1e-4)
    surprises = [record.memory.surprise() for record in trace.prelude]
    assert len(surprises) == 2
    assert torch.allclose(signals["surprise"], (surprises[0] + surprises[1]) / 2, rtol=1e-6)
    assert float(signals["surprise"].min()) > 0


@torch.no_grad()
def naive_evenness(attention: torch.nn.Module, inputs: Tensor, t: int) -> float:
    """Entropy of each head's attention at position t over that of a uniform one, mean over heads."""
    query, key, _ = attention._project(attention._convolved(inputs[None]), torch.arange(len(inputs)))
    persistent = attention.key_norm(attention.key(attention.persistent).view(-1, attention.num_heads, 8))
    total = 0.0
    for head in range(attention.num_heads):
        seen = [*persistent[:, head], *key[0, head, max(0, t - attention.window + 1) : t + 1]]
        weights = torch.stack([k @ query[0, head, t] / 8**0.5 for k in seen]).double().softmax(0).tolist()
        total -= sum(w * math.log(w) for w in weights) / math.log(len(seen))
    return total / attention.num_heads


def test_percentiles_are_uniform_on_the_calibration_text() -> None:
    model, tokens = small(), text()
    injector = calibrated(model, tokens)
    signals = signals_of(model, tokens)
    shares = injector.percentiles(signals)
    for name in SIGNALS:
        known = ~signals[name].isnan()
        ordered = shares[name][known].sort().values
        uniform = torch.linspace(0, 1, len(ordered))
        assert (ordered - uniform).abs().max() < 1 / 128 + 1e-4, name
        assert torch.equal(signals[name][known].argsort(), shares[name][known].argsort()) or name != "entropy"
    assert bool((shares["loss"][:, 0] == 0.5).all()), "the first token's loss is unknown"


def test_tables_are_quantiles() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    injector = ThoughtInjector(InjectionConfig())
    injector.calibrate([{name: values[:400] for name in SIGNALS}, {name: values[400:] for name in SIGNALS}])
    expected = torch.quantile(values.double(), torch.linspace(0, 1, 129, dtype=torch.float64)).float()
    assert all(torch.equal(row, expected) for row in injector.quantiles)
    found = injector.percentiles(
        only(entropy=[-99.0, 99.0, float(expected[64]), float((expected[3] + expected[4]) / 2)])
    )
    assert found["entropy"][0].tolist() == pytest.approx([0.0, 1.0, 0.5, 3.5 / 128], abs=1e-5)


def test_difficulty_by_hand() -> None:
    injector = ThoughtInjector(InjectionConfig())
    shares = only(entropy=[1.0, 0.0, 1.0, 0.5], dispersion=[1.0, 0.0, 0.0, 0.25], loss=[1.0, 0.0, 0.5, 1.0])
    assert injector.difficulty(shares)[0].tolist() == pytest.approx([1.0, 0.0, 0.55, 0.575])
    assert sum(DIFFICULTY.values()) == pytest.approx(1.0)


def test_rules_on_calibrated_text() -> None:
    model, tokens = small(), text()
    injector = calibrated(model, tokens)
    shares = injector.percentiles(signals_of(model, tokens))
    difficulty = injector.difficulty(shares)
    assert 0 <= float(difficulty.min()) < float(difficulty.max()) <= 1
    wanted = difficulty > 0.6
    decided = injector.decide("difficulty", shares)
    assert 0 < float(decided.double().mean()) <= float(wanted.double().mean()) < 0.5
    assert bool((wanted | ~decided).all())
    assert float((shares["surprise"] > 0.8).double().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(injector.decide("surprise", shares).double().mean()) > 0.08
    free = ThoughtInjector(InjectionConfig(min_interval=1, surprise_share=0.35))
    free.quantiles.copy_(injector.quantiles)
    assert float(free.decide("surprise", shares).double().mean()) == pytest.approx(0.35, abs=0.01)
    assert torch.equal(free.decide("difficulty", shares), wanted)
    assert bool(injector.decide("everywhere", shares).all())
    assert not bool(injector.decide("never", shares).any())
    never = calibrated(model, tokens, difficulty_threshold=1.0)
    assert not bool(never.decide("difficulty", shares).any()), "nothing exceeds 1"


@pytest.mark.parametrize("interval", [1, 2, 3, 7])
def test_interval_by_brute_force(interval: int) -> None:
    wanted = torch.rand(20, 40, generator=torch.Generator().manual_seed(interval)) < 0.4
    kept = keep_interval(wanted, interval)
    for row, decided in zip(wanted.tolist(), kept.tolist(), strict=True):
        expected: list[int] = []
        for position, asked in enumerate(row):
            if asked and all(position - earlier >= interval for earlier in expected):
                expected.append(position)
        assert [position for position, chosen in enumerate(decided) if chosen] == expected


@pytest.mark.parametrize("changes", DEPTHS)
def test_decisions_never_depend_on_later_text(changes: dict[str, object]) -> None:
    model, tokens = small(**changes), text(2, 30)
    injector = calibrated(model, text())
    before = signals_of(model, tokens)
    for cut in (1, 8, 17, 29):
        later = tokens.clone()
        later[:, cut:] = (later[:, cut:] + 100) % 300
        after = signals_of(model, later)
        for name in SIGNALS:
            assert torch.equal(before[name][:, :cut].nan_to_num(-1), after[name][:, :cut].nan_to_num(-1)), name
        for rule in ("difficulty", "surprise"):
            old, new = (injector.decide(rule, injector.percentiles(s))[:, :cut] for s in (before, after))
            assert torch.equal(old, new)
    assert not torch.equal(before["loss"][:, 29], after["loss"][:, 29])


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_model_without_memory_is_never_surprised(share: float) -> None:
    model, tokens = small(memory_layers=[]), text()
    injector = calibrated(model, tokens, surprise_share=share)
    signals = signals_of(model, tokens)
    assert bool(signals["surprise"].isnan().all())
    shares = injector.percentiles(signals)
    assert not bool(injector.decide("surprise", shares).any())
    assert bool(injector.decide("difficulty", shares).any()), "it still finds text difficult"


def test_missing_values_leave_the_tables_alone() -> None:
    values = torch.linspace(-2, 5, 200)
    clean, dirty = (ThoughtInjector(InjectionConfig()) for _ in range(2))
    clean.calibrate([{name: values for name in SIGNALS}])
    holes = torch.cat([values, torch.tensor([NAN, NAN, float("inf")])])[torch.randperm(203)]
    dirty.calibrate([{name: holes for name in SIGNALS}])
    assert torch.equal(clean.quantiles, dirty.quantiles)
    shares = clean.percentiles(only(loss=[NAN, -9.0, float("inf")], surprise=[NAN, 9.0, -float("inf")]))
    assert shares["loss"].tolist() == [[0.5, 0.0, 1.0]]
    assert shares["surprise"].tolist() == [[0.0, 1.0, 0.0]]


def test_nothing_to_calibrate_on_is_refused() -> None:
    injector = ThoughtInjector(InjectionConfig())
    with pytest.raises(ValueError, match="give at least one batch"):
        injector.calibrate([])
    with pytest.raises(ValueError, match="none of 3 values of entropy is finite.*at least two tokens"):
        injector.calibrate([only(entropy=[NAN, NAN, float("inf")])])


def test_a_constant_signal_and_a_table_of_one_value() -> None:
    injector = ThoughtInjector(InjectionConfig())
    injector.calibrate([{name: torch.full((2, 5), 2.0) for name in SIGNALS}])
    shares = injector.percentiles(only(entropy=[1.0, 2.0, 3.0]))["entropy"][0].tolist()
    assert shares[0] == 0.0
    assert shares[2] == 1.0
    assert shares[1] == pytest.approx(0.5, abs=1 / 64), "a value that every position has is in the middle"


@pytest.mark.parametrize(
    "bad", [{"min_interval": 0}, {"surprise_share": 0}, {"surprise_share": 1.1}, {"difficulty_threshold": -0.1}]
)
def test_bad_configurations_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        InjectionConfig(**bad)  # type: ignore[arg-type]
