"""The history of gates says what every verdict said, in tables, in a page, as JUnit XML, and in `forge_report`."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import dagster as dg
import pytest
import tiny_automation
from bs4 import BeautifulSoup
from forge_instance import made
from rich.console import Console

from forge_assets.forge_report import JUNIT, PAGE
from forge_assets.freshness import plan, resolve_config
from forge_assets.gate_history import AssetGates, GateEntry, collect_gates
from forge_assets.graph_view import Forge
from forge_assets.junit import junit_xml
from forge_assets.report.components.verdict_plot import plot
from forge_assets.report.history import history_sections
from forge_assets.report.terminal import history_json, print_history, state
from forge_resources.gatekeeping import override_gate
from forge_resources.model_store import ModelStore
from forge_resources.overrides import Override, utc_text
from training_core.gates import Gate

BAD = {"value": 2.0}
REASON = "<b>known</b> & accepted: the bound is too tight"
GATE = Gate("trunk", "small", "mean_square", "at_most", 1.0, "mean of squares", against="nothing")
CLAIM = Gate("trunk", "kept", "share", "at_least", 0.5, "share kept", blocking=False)


@pytest.fixture
def forge(instance: dg.DagsterInstance, store: ModelStore) -> Forge:
    return Forge(tiny_automation.defs, instance, store, tiny_automation.GATES)


def run(forge: Forge, *assets: str, **config: dict[str, float]) -> dg.ExecuteInProcessResult:
    return tiny_automation.materialize(forge.instance, *assets, config=config)


def override(forge: Forge, asset: str) -> Override:
    key = dg.AssetKey(asset)
    return override_gate(forge.instance, key, tiny_automation.gate_checks()[key], reason=REASON, who="ada")


def verdict(at: float, value: float | None, of: Gate = GATE, version: int = 7, **more: object) -> GateEntry:
    """A verdict on the gate `of`, as the event log tells it."""
    good = value is not None and (value <= of.threshold if of.direction == "at_most" else value >= of.threshold)
    names = {name: getattr(of, name) for name in ("asset", "blocking", "metric", "direction", "against", "evidence")}
    known = {"gate": of.name, "threshold": of.threshold, "passed": good, "reason": "", "run_id": f"run-{at:g}"}
    known |= {"at": at, "version": version, "digest": "d" * 64, "profile": "nano", "stored": True}
    return GateEntry(**{**names, **known, "value": value, **more})


def gates_of(*entries: GateEntry, version: int | None = 7, rows: tuple[Gate, ...] = (GATE, CLAIM)) -> AssetGates:
    return AssetGates("trunk", version, rows, entries, (), (), None)


def test_history_over_runs(forge: Forge) -> None:
    first = run(forge, "trunk")
    failed = run(forge, "trunk", trunk=BAD)
    record = override(forge, "trunk")
    run(forge, "left", left={"value": -1.0})  # dies before its check: a planned row and no verdict
    later = run(forge, "trunk", trunk={"value": 1.2})  # fails too, and nobody overrode that
    (trunk, left, *_) = collect_gates(forge)
    assert (trunk.asset, left.asset, left.entries) == ("trunk", "left", ())
    assert list(trunk.histories()) == [("finite", True), ("small", True)]
    small = trunk.histories()["small", True]
    assert [e.value for e in small] == pytest.approx([0.25, 4.0, 1.44])  # squares of the weights
    assert [e.margin for e in small] == pytest.approx([0.75, -3.0, -0.44])
    assert [e.threshold for e in small] == [1.0, 1.0, 1.0]
    assert [e.passed for e in small] == [True, False, False]
    assert [e.run_id for e in small] == [first.run_id, failed.run_id, later.run_id]
    assert [e.override for e in small] == [None, record, None]
    assert [e.profile for e in small] == ["nano"] * 3
    assert [e.stored for e in small] == [True] * 3
    assert len({e.digest for e in small}) == 3
    assert small[0].at < small[1].at < record.at < small[2].at
    assert [e.override for e in trunk.histories()["finite", True]] == [None] * 3
    assert [(e.gate, e.value) for e in trunk.latest()] == [("finite", 0.0), ("small", pytest.approx(1.44))]
    assert (trunk.overrides, trunk.override, state(trunk)) == ((record,), None, "CLOSED")
    assert trunk.closed[0].startswith("trunk:gate: FAILED, small FAILED: mean_square = 1.44, required <= 1")
    assert state(left) == "not made"

    document = json.loads(json.dumps(history_json((trunk, left)), allow_nan=False))
    assert [gate["gate"] for gate in document["gates"]] == ["finite", "small"]
    told = document["gates"][1]["verdicts"][1]
    assert (told["value"], told["threshold"], told["margin"], told["passed"]) == (4.0, 1.0, -3.0, False)
    assert (told["run_id"], told["profile"], told["digest"]) == (failed.run_id, "nano", record.digest)
    assert told["override"]["reason"] == REASON
    assert [(o["who"], o["in_force"], o["at"]) for o in document["overrides"]] == [("ada", False, utc_text(record.at))]


def test_latest_verdict_is_about_the_latest_version_and_the_last_judgement() -> None:
    old, first = verdict(1, 0.5, version=5), verdict(2, 2.0)
    gone = verdict(2, 0.0, Gate("trunk", "gone", "x", "at_most", 1, ""))
    again, claim = verdict(3, 0.5), verdict(2.5, 0.75, CLAIM)
    gates = gates_of(old, first, gone, claim, again)
    assert sorted(gates.latest(), key=lambda e: e.at) == [claim, again]
    assert gates.unjudged() == ()
    assert gates_of(old).latest() == ()
    assert gates_of(old).unjudged() == (GATE, CLAIM)
    unread = verdict(4, None, threshold=None, gate="gate", reason="damaged")
    assert gates_of(first, unread).latest() == (unread,)
    assert gates_of(first, unread).unjudged() == (CLAIM,)


def cases(document: str) -> dict[tuple[str, str], ElementTree.Element]:
    root = ElementTree.fromstring(document.encode())
    return {(case.get("classname", ""), case.get("name", "")): case for case in root.iter("testcase")}


def test_junit_says_what_failed_by_how_much_and_who_overrode_it() -> None:
    record = Override("trunk", 7, "d" * 64, ("small",), "", REASON + "\x07\ud800", "ada", 86400.0)
    failed = verdict(5, 1.5, override=record)
    claim = verdict(5, 0.25, CLAIM)
    document = junit_xml([gates_of(failed, claim), gates_of(version=None), gates_of(verdict(5, 0.5))])
    root = ElementTree.fromstring(document.encode())
    assert root.tag == "testsuites"
    counts = ("tests", "failures", "errors", "skipped")
    assert [root.get(name) for name in counts] == ["6", "2", "1", "2"]
    suites = root.findall("testsuite")
    assert [[suite.get(name) for name in counts] for suite in suites] == [
        ["2", "2", "0", "0"],
        ["2", "0", "0", "2"],
        ["2", "0", "1", "0"],
    ]
    for suite in suites:  # the order and the attributes that the usual schema asks for
        assert suite.get("name") == "trunk"
        assert [child.tag for child in suite] in (
            [["properties"], []][suite.get("timestamp") is None] + ["testcase"] * 2,
        )
        for case in suite.findall("testcase"):
            assert case.keys() == ["classname", "name"]
            assert len(case) <= 1
    assert suites[0].get("timestamp") == "1970-01-01T00:00:05"
    properties = {p.get("name"): p.get("value") for p in suites[0].iter("property")}
    assert properties == {"run": "run-5", "digest": "d" * 64, "profile": "nano"}
    gate, promise = suites[0].findall("testcase")
    assert (gate.get("classname"), promise.get("classname")) == ("gate.trunk", "claim.trunk")
    (failure,) = gate
    assert failure.get("type") == "GateFailed"
    assert failure.get("message") == (
        "mean_square = 1.5, required <= 1, margin -0.5; overridden by ada on 1970-01-02T00:00:00Z: " + REASON + "??"
    )
    assert failure.text == f"mean of squares, against nothing\nrun run-5, model {'d' * 64}"
    assert promise[0].get("type") == "ClaimFailed"
    assert promise[0].get("message") == "share = 0.25, required >= 0.5, margin -0.25"
    assert [case[0].tag for case in suites[1].iter("testcase")] == ["skipped", "skipped"]
    assert [child.tag for case in suites[2].iter("testcase") for child in case] == ["error"]


def test_unmeasured_and_unread_models_are_failures() -> None:
    unread = verdict(5, None, threshold=None, gate="gate", metric="", reason="model.safetensors was changed or damaged")
    found = cases(junit_xml([gates_of(verdict(4, None), verdict(4, None, CLAIM), unread)]))
    assert found["gate.trunk", "gate"][0].get("message") == "model.safetensors was changed or damaged"
    assert found["claim.trunk", "kept"][0].get("message") == "share = not measured, required >= 0.5"
    assert len(found) == 2


def test_plot_draws_values_and_thresholds_over_time() -> None:
    raised = verdict(3, 1.5, threshold=2.0, passed=True)
    svg = plot([verdict(1, 0.5), verdict(2, 2.0), raised, verdict(4, None)], "gate <small>")
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    dots = root.findall(f"{space}circle")
    assert [dot.get("class") for dot in dots] == ["passed", "failed", "passed"]
    xs, ys = ([float(dot.get(name, "")) for dot in dots] for name in ("cx", "cy"))
    assert xs == sorted(xs)
    # from .5 to 2 are 98 of 150 units / 1.2: a unit of the metric is 54.44 high
    assert [ys[0] - y for y in ys] == pytest.approx([0.0, 81.67, 54.44], abs=0.11)  # ends are rounded to .1
    lines = root.findall(f"{space}line")
    assert [line.get("y1") for line in lines] == [line.get("y2") for line in lines]
    thresholds = [ys[0] - float(line.get("y1", "")) for line in lines]
    assert thresholds == pytest.approx([27.22, 27.22, 81.67, 27.22], abs=0.11)
    assert len(root.findall(f"{space}path[@class='unmeasured']")) == 1
    assert "gate <small>" in [text.text for text in root.findall(f"{space}text")]
    assert "FAILED" in (dots[1][0].text or "")
    ElementTree.fromstring(plot([], "none"))
    ElementTree.fromstring(plot([verdict(1, 0.0, threshold=0.0)], "flat"))


def test_sections_and_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    record = Override("trunk", 7, "d" * 64, ("small",), "small FAILED", REASON, "ada", 86400.0)
    entries = (verdict(1, 0.5, stored=False), verdict(2, 2.0, override=record), verdict(3, 0.25, CLAIM))
    gates = AssetGates("trunk", 7, (GATE, CLAIM), entries, (record,), (), record)
    sections = dict(history_sections([gates], limit=50))
    assert list(sections) == ["Overrides", "Over time: trunk"]
    cells = [cell.text for cell in BeautifulSoup(sections["Overrides"], "html.parser").find_all("td")]
    assert cells == ["1970-01-02T00:00:00Z", "trunk", "dddddddd", "small FAILED", "ada", REASON, "in force"]
    page = BeautifulSoup(sections["Over time: trunk"], "html.parser")
    assert [h.text for h in page.find_all("h3")] == ["gate small", "claim kept"]
    newest = [cell.text for cell in page.find("tbody").find("tr").find_all("td")]
    assert newest == [
        "1970-01-01T00:00:02Z", "run-2", "dddddddd", "nano", "2", "≤ 1", "-1",
        f"OVERRIDDEN, overridden by ada on 1970-01-02T00:00:00Z: {REASON}",
    ]  # fmt: skip
    assert page.find("tbody").find("tr").find_all("td")[-1]["class"] == ["bad"]
    assert len(page.find_all("svg")) == 2
    print_history([gates], Console(width=80, highlight=False), limit=1)
    text = capsys.readouterr().out
    assert re.search(r"01-01 00:00 +run-2 +dddddddd +nano +2 +≤ 1 +-1 +OVERRIDDEN", text)
    assert "run-1" not in text
    assert "trunk: claim kept" in text
    assert "[in force]" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_forge_report_is_made_whatever_failed(forge: Forge) -> None:
    broken = run(forge, "trunk", "left", "left_child", "forge_report", trunk=BAD)
    assert made(broken) == ["trunk"]  # Dagster reaches nothing below a gate that closes in its own run
    override(forge, "trunk")
    report = run(forge, "forge_report")
    assert report.success
    metadata = report.get_asset_materialization_events()[0].materialization.metadata
    counts = {name: metadata[name].value for name in ("gates_passed", "gates_failed", "gates_overridden")}
    assert counts == {"gates_passed": 1, "gates_failed": 1, "gates_overridden": 1}
    folder = forge.store.folder("forge_report", str(metadata["digest"].value), verify=True)
    assert metadata["page"].value == str(folder / PAGE)
    page = BeautifulSoup((folder / PAGE).read_text(), "html.parser")
    assert page.find(["script", "link", "iframe"]) is None
    for tag in page.find_all(True):
        for name in ("src", "href", "xlink:href"):
            assert tag.get(name, "#").startswith(("data:", "#"))
    titles = [h.text for h in page.find_all("h2")]
    assert titles[:3] == ["What was made", "How to read this", "Phase by phase"]
    assert titles[-2:] == ["Overrides", "Over time: trunk"]
    found = cases((folder / JUNIT).read_text())
    assert "overridden by ada" in (found["gate.trunk", "small"][0].get("message") or "")
    assert found["gate.left", "small"][0].tag == "skipped"


def test_forge_report_is_fresh_until_something_is_made_judged_or_overridden(forge: Forge) -> None:
    complete = run(forge, "trunk", "left", "left_child", "forge_report")
    assert complete.success
    path = complete.asset_materializations_for_node("forge_report")[0].metadata["junit"].value
    claim = cases(Path(str(path)).read_text())["claim.left_child", "modest"]
    assert [child.tag for child in claim] == ["failure"]  # the last model's claims were judged before the report
    others = [step for step in plan(forge, resolve_config(forge, {})) if step.action == "make"]
    assert {step.asset for step in others} == {"right", "right_child", "middle", "middle_child", "forge_report"}

    def state_now() -> tuple[str, str]:
        (step,) = plan(forge, resolve_config(forge, {}), select=["forge_report"])
        return step.action, step.reason

    assert state_now() == ("keep", "fresh")
    run(forge, "trunk", trunk=BAD)
    assert state_now() == ("make", "something was made, judged or overridden")
    run(forge, "forge_report")
    assert state_now() == ("keep", "fresh")
    override(forge, "trunk")
    assert state_now()[0] == "make"
