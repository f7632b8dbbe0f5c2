"""What models keep of the merged model: handed on along the chain, and compared by document and by item."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.small_data import SHAPE
from training_core.evaluation.held_out import open_suite
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.retention import handed_on, retention
from training_core.evaluation.suite import measure_bundle
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.reporting import SilentReporter
from training_core.store.bundle import Bundle, Lineage, write_bundle, write_measurements


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_retention_is_a_ratio_and_of_tasks_one_above_chance() -> None:
    right, wrong = [1.0] * 18, [0.0] * 6
    origin = {
        "merged_model.nats": tensor(10, 20, 30), "merged_model.correct": tensor(8, 5, 7),
        "merged_model.task.known": tensor(*right, *wrong), "merged_model.task.guessed": tensor(*wrong, 1, 1),
    }  # fmt: skip
    own = {
        "nats": tensor(15, 25, 35), "correct": tensor(4, 5, 1),
        "task.known": tensor(*right[:12], *wrong, *wrong), "task.guessed": tensor(*right[:8]),
    }  # fmt: skip
    chances = {"known": 0.25, "guessed": 0.25, "new": 0.5}
    metrics = retention(own, origin, {"world": torch.tensor([0, 2])}, chances)
    assert metrics["bits_per_byte_ratio_to_merged_model"] == pytest.approx(75 / 60)
    assert metrics["retention_to_merged_model"] == pytest.approx(10 / 20)
    assert metrics["retention_to_merged_model_on_world"] == pytest.approx(5 / 15)
    assert metrics["retention_to_merged_model_in_known"] == pytest.approx((12 / 24 - 0.25) / (18 / 24 - 0.25))
    low, high = (metrics[f"retention_to_merged_model_in_known_{end}"] for end in ("low", "high"))
    assert 0 < low < 0.5 < high < 1, "the items are paired: all 12 were right before"
    assert not any("guessed" in name or "new" in name for name in metrics), "the merged model did not pass them"


def test_every_descendant_is_compared_with_the_merged_model(small_data: dict[str, Path], tmp_path: Path) -> None:
    suite = small_data["evaluation_suite"]
    tokenizer_json = (small_data["tokens"] / "tokenizer.json").read_text()

    def measured(name: str, seed: int, parents: dict[str, Bundle]) -> tuple[Bundle, dict[str, float], Cognate]:
        torch.manual_seed(seed)
        net = Cognate(CognateConfig(vocab_size=320, **SHAPE))  # type: ignore[arg-type]
        bundle = write_bundle(
            tmp_path / name, kind="cognate", model_config={"cognate": net.config.model_dump()},
            tensors=net.state_dict(), tokenizer_json=tokenizer_json,
        )  # fmt: skip
        found = measure_bundle(bundle, suite, parents, SilentReporter())
        lineage = Lineage(name, 1, "nano", bundle.digest(), "", "", {}, {}, found.metrics, found.tasks)
        write_measurements(bundle, lineage, found.counts)
        return bundle, dict(found.metrics), net

    trunk, metrics, _ = measured("trunk", 0, {})
    assert not any("merged_model" in name for name in metrics)
    merged, metrics, net = measured("merged_model", 1, {"trunk": trunk})
    assert not any("merged_model" in name for name in metrics)
    child, metrics, _ = measured("child", 2, {"merged_model": merged})
    assert metrics["retention_to_merged_model"] == metrics["retention_to_best_parent"]
    _, metrics, last = measured("grandchild", 3, {"child": child})
    test = open_suite(suite).test
    own, before = (measure_windows(model, test, 8) for model in (last, net))
    assert metrics["retention_to_merged_model"] == pytest.approx(float(own.correct.sum() / before.correct.sum()))
    ratio = metrics["bits_per_byte_ratio_to_merged_model"]
    assert ratio == pytest.approx(float(own.nats.sum() / before.nats.sum()))
    assert ratio != pytest.approx(metrics["bits_per_byte_ratio_to_best_parent"])


def test_the_merged_model_itself_comes_before_what_others_hand_on() -> None:
    inherited = {"nats": tensor(1), "merged_model.nats": tensor(2), "merged_model.task.a": tensor(3)}
    origin = {"nats": tensor(4), "correct": tensor(5), "tokens": tensor(6), "task.a": tensor(7)}
    assert handed_on({"other": {"nats": tensor(1)}}) == {}
    assert handed_on({"child": inherited}) == {name: inherited[name] for name in list(inherited)[1:]}
    assert handed_on({"child": inherited, "merged_model": origin}) == {
        f"merged_model.{name}": origin[name] for name in ("nats", "correct", "task.a")
    }
