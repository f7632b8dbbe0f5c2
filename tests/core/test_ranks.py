"""Two processes that make one model: the weights and the search of a single process, in half of the work each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.core import run_ranks
from training_core.data.batches import TrainingData
from training_core.training import distributed

RANKS = 2
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(small_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each of two processes found, and the folder with their weights."""
    out = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command = [*launcher, "--module", "tests.core.run_ranks", str(small_data["tokens"]), str(small_data["task_bank"])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, str(out)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stderr[:6000]
    return out, [json.loads((out / f"found-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("rows", [4, 5])
def test_rows_split_among_processes_train_the_same_model(
    found: tuple[Path, list[dict[str, Any]]], small_data: dict[str, Path], rows: int
) -> None:
    """Five rows are split three to two: the mean of the two means would be another gradient."""
    out, said = found
    both = [load_file(out / f"weights{rows}-{rank}.safetensors") for rank in range(RANKS)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    alone, losses = run_ranks.trunk(data, rows)
    start, _ = _start(data)
    for name, weights in alone.items():
        moved = float((weights - start[name]).norm())
        assert float((weights - both[0][name]).norm()) <= 2e-3 * moved + 1e-6, name
    assert said[0][f"losses{rows}"] == pytest.approx(losses, rel=1e-4)
    assert said[0]["size"] == RANKS


def _start(data: TrainingData) -> tuple[dict[str, torch.Tensor], list[float]]:
    from tests.core.small_data import SHAPE, TRAINING
    from training_core.nn.cognate import Cognate, CognateConfig

    vocab = json.loads(data.tokenizer_json)["model"]["vocab"]
    torch.manual_seed(TRAINING.get("seed", 1337))
    return dict(Cognate(CognateConfig(vocab_size=len(vocab), **SHAPE, cycles=2, num_supervision=2)).state_dict()), []


def test_several_processes_go_on_from_the_first_ones_checkpoint(found: tuple[Path, list[dict[str, Any]]]) -> None:
    out, said = found
    assert [one["resumed"] for one in said] == [[True, []]] * RANKS
    assert len(list((out / "checkpoint5").iterdir())) == 1


def test_all_start_from_the_first_ones_weights(found: tuple[Path, list[dict[str, Any]]]) -> None:
    assert len({one["apart"] for one in found[1]}) == 1


def test_each_process_measures_its_share_of_a_generation(found: tuple[Path, list[dict[str, Any]]]) -> None:
    result, measured = run_ranks.search()
    alone = [result.champion_bits_per_byte, result.lineage, result.evaluations]
    _, said = found
    assert [one["champion"] for one in said] == [alone] * RANKS
    assert measured == result.evaluations
    assert sum(one["measured"] for one in said) == result.evaluations
    assert max(one["measured"] for one in said) <= result.evaluations / RANKS + len(result.history)


def test_what_cannot_be_shared_is_refused_by_every_process(found: tuple[Path, list[dict[str, Any]]]) -> None:
    for one in found[1]:
        few, apart, lost, unshared = one["refused"]
        assert "a batch of 1 rows cannot be split among 2 processes: raise batch_size" in few
        assert "the step differs between the processes (0 to 1)" in apart
        assert "whether there is a search to go on with differs between the processes (0 to 1)" in lost
        assert unshared == "reasoning_model cannot be made by 2 processes together: launch one"


def test_alone_nothing_is_split_and_nothing_is_sent() -> None:
    batch = torch.arange(6).view(3, 2)
    rows, share = distributed.rows_of_this_rank(batch)
    assert rows is batch
    assert share == 1.0
    assert (distributed.world_size(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    assert distributed.measured_by_all(float, [1, 2], run_ranks.CPU) == [1.0, 2.0]


def test_a_rank_without_the_first_ones_address_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_WAIT_S", 0.3)
    for name, value in {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match="must lie on a file system that all nodes share"),
        distributed.joined(tmp_path),
    ):
        raise AssertionError("joined alone")
