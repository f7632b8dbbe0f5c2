"""A bundle from elsewhere joins the graph: measured here, judged here, and refused where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
import small_graph
import torch
from safetensors.torch import load_file, save_file
from small_graph import materialize, newest
from typer.testing import CliRunner

from forge_assets.cli import app
from forge_assets.freshness import plan, resolve_config
from forge_assets.graph_view import Forge, UserError
from forge_assets.importing import import_bundle
from forge_resources.gatekeeping import judge_latest
from forge_resources.model_store import ModelStore
from tests.nested import dotted
from training_core.__main__ import main
from training_core.gates import Gate
from training_core.phase import DATA
from training_core.reporting import SilentReporter
from training_core.store.bundle import open_bundle

SPEED = small_graph.PHASES["cognate_speed"]


@pytest.fixture
def forge(small: dg.DagsterInstance) -> Forge:
    return Forge(small_graph.defs, small, ModelStore(), small_graph.GATES)


@pytest.fixture
def foreign(forge: Forge, tmp_path: Path) -> Path:
    """A specialist that was made elsewhere from this store's trunk and data."""
    data = [f"--data={name}={ModelStore().versions(name)[-1]}" for name in DATA]
    values = {**small_graph.TRAINING, "steps": 2, "text_share": 1.0, "seed": 7}
    fields = [f"--set={name}={json.dumps(value)}" for name, value in dotted(SPEED.config, values).items()]
    parent = f"--parent=trunk={newest(forge.instance, 'trunk')[0].folder}"
    out = tmp_path / "elsewhere"
    assert main(["cognate_speed", parent, *data, *fields, f"--out={out}", f"--checkpoint={tmp_path / 'state'}"]) == 0
    return out


def take(forge: Forge, folder: Path) -> Path:
    bundle = open_bundle(folder)
    return import_bundle(forge, SPEED, bundle, bundle.lineage(), SilentReporter())


def test_it_is_measured_here_and_its_gate_is_closed_until_judged(forge: Forge, foreign: Path) -> None:
    honest = open_bundle(foreign).lineage()
    record = json.loads((foreign / "lineage.json").read_text())
    record["metrics"] |= {"bits_per_byte": 0.1, "non_finite_weights": 0, "sandbox_breaches": 0}
    (foreign / "lineage.json").write_text(json.dumps(record))
    folder = take(forge, foreign)
    stored, recorded = newest(forge.instance, "cognate_speed")
    assert stored.folder == folder
    assert stored.lineage().metrics["bits_per_byte"] == pytest.approx(honest.metrics["bits_per_byte"], rel=1e-6)
    assert stored.lineage().metrics["train_loss"] == honest.metrics["train_loss"]
    assert "sandbox_breaches" not in stored.lineage().metrics
    assert recorded["imported_from"].value == str(foreign)
    gate = [check for check in forge.checks_of("cognate_speed") if check.name == "gate"]
    assert judge_latest(forge.instance, dg.AssetKey("cognate_speed"), gate).closed
    assert not materialize(forge.instance, "merged_model").success

    configs = resolve_config(forge, {"cognate_speed": dict(honest.config)})
    (step,) = plan(forge, configs, select=["cognate_speed"])
    assert step.action == "judge", step.reason
    checks = dg.AssetSelection.checks_for_assets(dg.AssetKey("cognate_speed"))
    assert dg.materialize(
        [*small_graph.ASSETS, *small_graph.CHECKS],
        selection=checks,
        instance=forge.instance,
        resources={"store": ModelStore(), **{k: small_graph.defs.resources[k] for k in ("tracking", "launcher")}},
    ).success
    assert materialize(forge.instance, "merged_model").success
    assert newest(forge.instance, "merged_model")[0].lineage().parents["cognate_speed"] == stored.digest()


def test_what_does_not_fit_is_refused_and_nothing_is_recorded(forge: Forge, foreign: Path, tmp_path: Path) -> None:
    before = newest(forge.instance, "cognate_speed")[0].folder
    weights = load_file(foreign / "model.safetensors")
    changed = {name: tensor + (name == next(iter(weights))) for name, tensor in weights.items()}
    save_file(changed, foreign / "model.safetensors")
    with pytest.raises(UserError, match="it was changed"):
        take(forge, foreign)
    save_file(weights, foreign / "model.safetensors")
    assert torch.equal(load_file(foreign / "model.safetensors")["embedding.weight"], weights["embedding.weight"])

    record = (foreign / "lineage.json").read_text()
    lineage = json.loads(record)
    for change, message in (
        ({"parents": {"trunk": "0" * 64}}, "was made from the trunk 0000000000000000, the latest here is"),
        (
            {"data": lineage["data"] | {"task_bank": "f" * 64}},
            "was made from the task_bank ffffffffffffffff, the lat",
        ),
        ({"code_version": "0" * 16}, "was made by other code .0000000000000000, here is"),
    ):
        (foreign / "lineage.json").write_text(json.dumps(lineage | change))
        with pytest.raises(UserError, match=message):
            take(forge, foreign)
    (foreign / "lineage.json").write_text(record)

    own = replace(
        forge, gates=[*small_graph.GATES, Gate("cognate_speed", "held", "sandbox_breaches", "at_most", 0, "")]
    )
    with pytest.raises(UserError, match="judges sandbox_breaches, which only its own run can measure"):
        take(own, foreign)
    assert materialize(forge.instance, "trunk", training={"seed": 3}).success
    with pytest.raises(UserError, match="the latest here is"):
        take(forge, foreign)
    assert newest(forge.instance, "cognate_speed")[0].folder == before


def test_the_command_line_names_what_is_no_model(tmp_path: Path, foreign: Path) -> None:
    record = json.loads((foreign / "lineage.json").read_text())
    (foreign / "lineage.json").write_text(json.dumps(record | {"asset": "dinner"}))
    result = CliRunner().invoke(app, ["import", str(foreign)])
    assert result.exit_code == 1
    assert "'dinner', which is no model of the graph: trunk" in result.output
    missing = CliRunner().invoke(app, ["import", str(tmp_path / "nothing")])
    assert missing.exit_code == 1
    assert "config.json" in missing.output
