"""A search that is killed and resumed, and checkpoints that are not its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.oracles.merging_landscape import Fitness, branched_models, quadratic
from training_core.phases.p2_evomerge.evolution import EvolutionConfig, EvolutionResult, evolve
from training_core.phases.p2_evomerge.methods import StateDict
from training_core.reporting import SilentReporter


def run(config: EvolutionConfig, fitness: Fitness | None = None, checkpoint: Path | None = None) -> EvolutionResult:
    trunk, parents = branched_models()
    fitness = fitness or quadratic(trunk, parents, (0.6, 0.5, 0.3))
    return evolve(trunk, parents, fitness, config, SilentReporter(), checkpoint)


def assert_identical(a: EvolutionResult, b: EvolutionResult) -> None:
    assert list(a.champion) == list(b.champion)
    assert all(torch.equal(a.champion[n], b.champion[n]) for n in a.champion)
    for field in (
        "champion_settings",
        "champion_bits_per_byte",
        "parents_bits_per_byte",
        "history",
        "lineage",
    ):
        assert getattr(a, field) == getattr(b, field)
    assert a.evaluations == b.evaluations


@pytest.mark.parametrize("killed_at", [2, 8, 9, 13, 24, 37])
def test_a_killed_search_resumes_to_the_same_result_bit_for_bit(tmp_path: Path, killed_at: int) -> None:
    trunk, parents = branched_models()
    measure = quadratic(trunk, parents, (0.6, 0.5, 0.3))
    config = EvolutionConfig(generations=5, diversity_floor=0.3)
    straight = evolve(trunk, parents, measure, config, SilentReporter())
    calls = 0

    def killed(model: StateDict, settings_of: str) -> float:
        nonlocal calls
        calls += 1
        if calls == killed_at + 1:
            raise KeyboardInterrupt
        return measure(model, settings_of)

    checkpoint = tmp_path / "search" / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        evolve(trunk, parents, killed, config, SilentReporter(), checkpoint)
    assert checkpoint.exists() == (killed_at >= 8)
    resumed_calls = 0

    def counting(model: StateDict, settings_of: str) -> float:
        nonlocal resumed_calls
        resumed_calls += 1
        return measure(model, settings_of)

    assert_identical(evolve(trunk, parents, counting, config, SilentReporter(), checkpoint), straight)
    # At most the generation in flight (8 children, 2 re-seeded) is measured twice.
    assert straight.evaluations - killed_at <= resumed_calls < straight.evaluations - killed_at + 10
    assert [path.name for path in checkpoint.parent.iterdir()] == ["state.safetensors"]


def test_a_finished_search_is_not_run_again(tmp_path: Path) -> None:
    config, checkpoint = EvolutionConfig(generations=2), tmp_path / "state.safetensors"
    finished = run(config, None, checkpoint)

    def refuse(model: StateDict, settings_of: str) -> float:
        raise AssertionError("measured again")

    assert_identical(run(config, refuse, checkpoint), finished)


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    run(EvolutionConfig(generations=1), None, checkpoint)
    with pytest.raises(ValueError, match="another configuration, trunk or parents"):
        run(EvolutionConfig(generations=1, seed=1), None, checkpoint)
    trunk, parents = branched_models(1)
    fitness = quadratic(trunk, parents, (0.6, 0.5, 0.3))
    with pytest.raises(ValueError, match="another configuration, trunk or parents"):
        evolve(trunk, parents, fitness, EvolutionConfig(generations=1), SilentReporter(), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        run(EvolutionConfig(generations=1), None, checkpoint)
