"""`forge gate` and `forge report --gates`: what they answer, write and refuse."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import dagster as dg
import pytest
from bs4 import BeautifulSoup
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from test_cli import store_model
from typer.testing import CliRunner

from forge_assets import cli
from forge_assets.checks import _metadata
from forge_assets.gates import gates_for
from forge_resources.gatekeeping import latest_materialization
from training_core.gates import judge

MEASURED = {"non_finite_weights": 0.0, "causality_violations": 0.0, "margin_below_counting_low": -0.125}
REASON = "the baseline saw the test text"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which the trunk was made and failed one of its gates, by -0.125."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    for name, value in (("FORGE_PROFILE", "nano"), ("MLFLOW_DISABLE_TELEMETRY", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    monkeypatch.delenv("FORGE_DEBUG", raising=False)
    monkeypatch.delenv("FORGE_HOME", raising=False)
    assert forge("report", "--json")[0] == 0  # makes the home
    lineage = store_model("trunk", thinks=False)
    verdicts = [judge(gate, MEASURED) for gate in gates_for("trunk", "nano") if gate.blocking]
    with dg.DagsterInstance.get() as instance:
        record = latest_materialization(instance, dg.AssetKey("trunk"))
        assert record is not None
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        evaluation = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("trunk"),
            check_name="gate",
            passed=False,
            metadata=_metadata(verdicts, lineage),
            target_materialization_data=target,
            description="; ".join(v.describe() for v in verdicts if not v.passed),
            blocking=True,
        )
        instance.report_runless_asset_event(evaluation)
    return tmp_path / "home"


def forge(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_override_on_the_command_line(home: Path, tmp_path: Path) -> None:
    listed = {row["asset"]: row for row in json.loads(forge("gate", "list", "--json")[1])}
    assert listed["trunk"]["state"] == "CLOSED"
    assert "margin_below_counting_low = -0.125, required >= 0" in listed["trunk"]["closed"][0]
    assert listed["merged_model"]["state"] == "not made"
    for asset, reason, words in (
        ("trunk", "so", "forge: the reason of an override must have at least 12 characters, got 'so'"),
        ("merged_model", REASON, "forge: merged_model was never materialized: there is no failed gate to override"),
        ("tokens", REASON, "forge: there is no model 'tokens': choose trunk, "),
    ):
        status, printed, error = forge("gate", "override", asset, "--reason", reason)
        assert (status, printed, error.count("\n")) == (1, "", 1)
        assert error.startswith(words)
    assert forge("gate", "override", "trunk")[0] == 2  # no reason at all

    status, printed, error = forge("gate", "override", "trunk", "--reason", REASON)
    assert (status, error) == (0, "")
    assert "learned overridden by " in printed
    assert REASON in printed
    assert "The verdict stays red." in printed
    assert "is open already" in forge("gate", "override", "trunk", "--reason", REASON)[2]
    table = " ".join(forge("gate", "list")[1].split())
    assert "trunk OVERRIDDEN overridden by " in table

    page, junit = tmp_path / "report.html", tmp_path / "gates.xml"
    status, printed, _ = forge("report", "--gates", "--html", str(page), "--junit", str(junit))
    assert (status, printed) == (0, f"wrote {page}\nwrote {junit}\n")
    titles = [h.text for h in BeautifulSoup(page.read_text(), "html.parser").find_all("h2")]
    assert titles[-2:] == ["Overrides", "Over time: trunk"]
    root = ElementTree.fromstring(junit.read_bytes())
    (failure,) = root.iter("failure")
    assert REASON in (failure.get("message") or "")
    assert root.get("failures") == "1"
    document = json.loads(forge("report", "--gates", "--json")[1])
    (learned,) = [gate for gate in document["gates"] if gate["gate"] == "learned"]
    assert (learned["verdicts"][0]["value"], learned["verdicts"][0]["margin"]) == (-0.125, -0.125)
    assert document["overrides"][0]["in_force"] is True
    assert "trunk: gate learned" in forge("report", "--gates")[1]
