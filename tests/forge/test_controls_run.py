"""`forge run --controls` on a short chain: what is made and when, and where it is shown."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import small_graph
import torch
from forge_instance import make_home, opened
from rich.console import Console

from forge_assets.checks import asset_checks
from forge_assets.factory import phase_asset
from forge_assets.freshness import PlannedStep, plan, resolve_config
from forge_assets.gates import gate_checks
from forge_assets.graph_view import Forge
from forge_assets.ledger import collect
from forge_assets.report import print_ledger
from forge_assets.run_graph import execute
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore
from forge_resources.tracking import MlflowTracking
from tests.core.small_data import make_small_data
from tests.nested import nested
from tests.shared import made_once
from training_core.formats.loading import load_model
from training_core.gates import Gate
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phase import DATA, Phase, PhaseContext
from training_core.phases.p1_cognate.config import TrunkConfig
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.student import train_compressed
from training_core.registry import CONTROLS
from training_core.store.bundle import Product

MODEL = nested(TrunkConfig, **small_graph.SHAPE)
FILE = nested(
    CompressionConfig, student_d_model=24, student_num_heads=2, student_d_ff=32, student_embedding_rank=12,
    student_window=16, **{f"training_{name}": value for name, value in small_graph.TRAINING.items()},
)  # fmt: skip
CHAIN = ("merged_model", "expert_model", "compressed_model")
GATES = tuple(Gate(name, "finite", "non_finite_weights", "at_most", 0, "count") for name in CHAIN)


def untrained(context: PhaseContext, config: TrunkConfig) -> Product:
    torch.manual_seed(len(context.parents))
    net = Cognate(CognateConfig(vocab_size=320, **small_graph.SHAPE))  # type: ignore[arg-type]
    document = {"cognate": net.config.model_dump()}
    return Product("cognate", document, net.state_dict(), context.training.tokenizer_json)


def compressed(context: PhaseContext, config: CompressionConfig) -> Product:
    teacher = load_model(context.parents["expert_model"])
    payload, student, _ = train_compressed(teacher, config, context.training, context.reporter, context.checkpoint)
    document = {"cognate": student.config.model_dump()}
    return Product("compressed", document, None, context.training.tokenizer_json, payload=payload)


PHASES = (
    Phase("merged_model", 2, "", TrunkConfig, untrained),
    Phase("expert_model", 7, "", TrunkConfig, untrained, ("merged_model",)),
    Phase("compressed_model", 8, "", CompressionConfig, compressed, ("expert_model",), kind="compressed"),
)
PRESETS = {"merged_model": MODEL, "expert_model": MODEL, "compressed_model": FILE}


@pytest.fixture
def forge(memory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forge]:
    checks = gate_checks(GATES)
    data = [asset for asset in small_graph.ASSETS if asset.key.to_user_string() in DATA]
    models = [
        phase_asset(phase, preset=lambda profile, asset: PRESETS.get(asset), checks=checks)
        for phase in (*PHASES, *CONTROLS.values())
    ]
    defs = dg.Definitions(
        assets=[*data, *models],
        asset_checks=asset_checks(GATES),
        resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False), "launcher": Launcher()},
        executor=dg.in_process_executor,
    )
    monkeypatch.setenv("SMALL_DATA", str(made_once(tmp_path_factory, "small_data", make_small_data)))
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        make_home(home := Path(folder) / "home")
        with opened(home, monkeypatch) as instance:
            yield Forge(defs, instance, ModelStore(), GATES)


def planned(forge: Forge, *, steps: int | None = None, controls: bool = True) -> dict[str, PlannedStep]:
    overrides = {} if steps is None else {"compressed_model": {"training": {"steps": steps}}}
    return {step.asset: step for step in plan(forge, resolve_config(forge, overrides), controls=controls)}


def run(forge: Forge, *, controls: bool) -> list[str]:
    steps = list(planned(forge, controls=controls).values())
    outcome = execute(forge, steps, resolve_config(forge, {}), Console(file=io.StringIO()))
    assert outcome.problems == []
    return [name for name in outcome.made if name not in DATA]


def test_controls_are_made_beside_the_chain_and_stay_fresh(forge: Forge) -> None:
    assert run(forge, controls=False) == list(CHAIN)
    assert collect(forge).controls == ()
    assert set(run(forge, controls=True)) == set(CONTROLS)
    assert {name: step.reason for name, step in planned(forge).items() if step.action != "keep"} == {}
    ledger = collect(forge)
    assert [row.lineage.asset for row in ledger.models] == list(CHAIN)
    assert {row.lineage.asset for row in ledger.controls} == set(CONTROLS)
    assert ledger.missing == {}
    for row in ledger.controls:
        interval = row.interval("bits_per_byte_ratio_to_compressed_model")
        assert interval is not None
        assert 0 < interval[0] <= interval[1]
    print_ledger(ledger, Console(file=(text := io.StringIO()), width=80))
    assert "student_from_random" in text.getvalue()
    changed = planned(forge, steps=7)
    assert {name for name, step in changed.items() if step.action == "make"} == {"compressed_model", *CONTROLS}
    assert "student_from_random" not in planned(forge, steps=7, controls=False)
