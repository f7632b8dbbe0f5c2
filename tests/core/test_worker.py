"""`python -m training_core` makes a complete bundle from folders, alone, and refuses what does not fit, saying why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.core.small_data import SHAPE, TRAINING
from tests.nested import dotted
from training_core.__main__ import main
from training_core.phase import DATA
from training_core.registry import PHASES
from training_core.store.bundle import open_bundle
from training_core.store.identity import digest_folder

ROOT = Path(__file__).parents[2]
SMALL = SHAPE | TRAINING | {"steps": 3}
# Only what the core may need for phase 1: everything else is as if it were not installed.
ALONE = """
import sys
from importlib.machinery import PathFinder
HIDDEN = {"dagster", "dagster_pipes", "mlflow", "docker", "pydantic_monty", "pandas", "matplotlib", "scipy", "pymoo",
          "constriction", "zstandard", "reasoning_gym", "psutil", "filelock", "yaml", "forge_assets", "forge_resources"}
class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)
sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
from training_core.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def arguments(data: dict[str, Path], out: Path, model: str = "trunk", **values: object) -> list[str]:
    given = [f"--data={name}={data[name]}" for name in DATA]
    small = SMALL | {"first.steps": 0}  # the small task bank asks nothing about the world
    wanted = dotted(PHASES[model].config, small | values if model == "trunk" else values)
    fields = [f"--set={name}={json.dumps(value)}" for name, value in wanted.items()]
    return [model, *given, *fields, f"--out={out}", f"--checkpoint={out.parent / 'state'}"]


@pytest.fixture(scope="module")
def made(small_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk, made by a process in which nothing but the core's own dependencies can be imported."""
    out = tmp_path_factory.mktemp("alone") / "trunk"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", ALONE, *arguments(small_data, out)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"bundle": str(out), "digest": open_bundle(out).digest()}
    assert "trunk: 3 of 3" in ran.stderr
    return out


def test_the_core_alone_makes_a_complete_bundle(made: Path, small_data: dict[str, Path]) -> None:
    bundle = open_bundle(made)
    lineage = bundle.lineage()
    assert (lineage.asset, lineage.phase, lineage.profile) == ("trunk", 1, "nano")
    assert lineage.digest == bundle.digest()
    assert lineage.corpus_digest == digest_folder(small_data["tokens"])
    assert lineage.config["shape"]["d_model"] == SHAPE["d_model"]
    assert lineage.metrics["train_optimizer_steps"] == 3
    assert 0 < lineage.metrics["bits_per_byte"] < 16
    assert len(lineage.tasks) == 3
    assert int(bundle.evaluation_counts()["tokens"].sum()) > 1000


def test_a_child_is_made_from_the_parents_that_are_given(
    made: Path, small_data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed"
    given = arguments(small_data, out, "cognate_speed", **TRAINING, steps=1, text_share=1.0)
    assert main(given) == 1
    assert "cognate_speed is made from other models: give --parent trunk=FOLDER" in capsys.readouterr().err
    assert main([*given, f"--parent=trunk={made}"]) == 0
    child, parent = open_bundle(out), open_bundle(made)
    assert child.lineage().parents == {"trunk": parent.digest()}
    moved = [n for n, t in child.tensors().items() if not torch.equal(t, parent.tensors()[n])]
    assert moved
    assert "bits_per_byte_ratio_to_trunk" in child.lineage().metrics
    assert main([*given, f"--parent=trunk={made}"]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "training.steps: must be at least 1, got 0"),
        ({"training.stepz": 3}, "there is no value 'training.stepz': did you mean training.steps"),
        ({"seq_len": 4096}, "seq_len = 4096 exceeds max_seq_len = 64"),
        ({"first.steps": 2}, "the task bank has no one_hop tasks for the first stage: set first.steps to 0"),
    ],
)
def test_a_wrong_value_is_refused(
    small_data: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    values: dict[str, object],
    message: str,
) -> None:
    assert main(arguments(small_data, tmp_path / "trunk", **values)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "trunk").exists()


def test_programs_never_run_without_a_sandbox(
    made: Path, small_data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(small_data, tmp_path / "model", "practised_model")
    more = [f"--data=question_bank={tmp_path}", f"--parent=ternary_model={made}"]
    assert main([*given, *more]) == 1
    assert "no sandbox was given: name one" in capsys.readouterr().err
    assert main([*given, *more, "--sandbox=nowhere:function"]) == 1
    assert "--sandbox must name a function, as MODULE:FUNCTION" in capsys.readouterr().err


def test_every_model_of_the_graph_can_be_asked_for() -> None:
    for name, phase in PHASES.items():
        assert phase.name == name
        assert set(phase.parents) <= set(PHASES)
    assert [name for name, phase in PHASES.items() if phase.parallel] == [
        "trunk", "cognate_reasoning", "cognate_memory", "cognate_speed", "merged_model",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["--set=training.seed=3", "--set=training.seed=4"],
            "--set training.seed=... is given 2 times: give it once",
        ),
        (
            ['--set=training={"steps": 3}'],
            "training is a section: name one of its values, for instance training.muon_lr",
        ),
        (['--set=training.seed="many"'], "--set is refused: training.seed: must be a whole number, got 'many'"),
        (["--set=training.muon_lr=NaN"], "training.muon_lr: must be"),
    ],
)
def test_a_value_that_would_not_be_used_is_refused(
    small_data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], words: str
) -> None:
    assert main([*arguments(small_data, tmp_path / "trunk"), *given]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["training.steps", "=3", 'training={"steps": 1, "steps": 2}'])
def test_a_setting_that_cannot_be_parsed_is_refused(
    small_data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments(small_data, tmp_path / "trunk"), f"--set={text}"])
    error = capsys.readouterr().err
    assert "expected PATH=VALUE" in error or "a key stands twice among steps, steps: leave one out" in error
