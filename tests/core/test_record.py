"""Records of measured numbers: read from flat metrics without loss, and pointed into by gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from training_core.gates import gate
from training_core.record import Estimate, Record, keyed, maybe, of, record


@dataclass(frozen=True, slots=True)
class Inner(Record):
    inner_loss: float
    inner_count: float = maybe()


@dataclass(frozen=True, slots=True)
class Outer(Record):
    accuracy: Estimate
    handed_on: float
    inner: Inner
    gain: Estimate = maybe()
    by_level: Mapping[str, Estimate] = keyed("level_{}_accuracy")
    before: Mapping[str, Estimate] = keyed("level_{}_accuracy_before")
    share: Mapping[str, float] = keyed("share_{}")


METRICS = {
    "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "handed_on": 1.0, "inner_loss": 2.0,
    "level_1_accuracy": 0.1, "level_1_accuracy_low": 0.0, "level_1_accuracy_high": 0.2,
    "level_1_accuracy_before": 0.3, "level_1_accuracy_before_low": 0.2, "level_1_accuracy_before_high": 0.4,
    "share_random_reward": 0.25,
}  # fmt: skip


def test_a_record_is_its_metrics() -> None:
    read = record(Outer, METRICS)
    assert read.accuracy == Estimate(0.5, 0.4, 0.6)
    assert read.by_level == {"1": Estimate(0.1, 0.0, 0.2)}
    assert read.before == {"1": Estimate(0.3, 0.2, 0.4)}
    assert read.share == {"random_reward": 0.25}
    assert (read.inner.inner_loss, read.inner.inner_count, read.gain) == (2.0, None, None)
    assert read.metrics() == METRICS


def test_what_is_missing_or_left_over_is_refused() -> None:
    with pytest.raises(ValueError, match="Outer has no field for surprise"):
        record(Outer, METRICS | {"surprise": 1.0})
    with pytest.raises(ValueError, match=r"Outer\.handed_on was not measured: there is no metric 'handed_on'"):
        record(Outer, {k: v for k, v in METRICS.items() if k != "handed_on"})
    with pytest.raises(KeyError, match="accuracy_low"):
        record(Outer, {k: v for k, v in METRICS.items() if k != "accuracy_low"})


def test_gates_point_at_fields() -> None:
    fields = of(Outer)
    assert str(fields.accuracy.low) == "accuracy_low"
    assert str(fields.gain.value) == "gain"
    assert str(fields.inner.inner_loss) == "inner_loss"
    assert gate("model", "g", fields.accuracy.high, at_most=0.7, evidence="e").metric == "accuracy_high"
    with pytest.raises(AttributeError, match="Outer has no field 'acuracy': choose one of accuracy, handed_on"):
        fields.acuracy  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="the metric 'handed_on' has no part 'low'"):
        fields.handed_on.low  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ValueError, match="accuracy is not one number: name its value, low or high"):
        gate("model", "g", fields.accuracy, at_most=0.7, evidence="e")  # type: ignore[arg-type]
