"""The report's tables and page say what the ledger says, and the page needs nothing else."""

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

from bs4 import BeautifulSoup
from rich.console import Console

from forge_assets.ledger import ArtifactRow, GateRow, Ledger, ModelRow
from forge_assets.report import html_page, margin_of, print_ledger, summary
from training_core.gates import Gate
from training_core.store.bundle import Lineage

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = Gate("trunk", "small", "size", "at_most", 10, "size <b>on disk</b>", against="the parent")
KEEPS = Gate("trunk", "keeps", "kept", "at_least", 0.5, "share kept", blocking=False)


def model(name: str = "trunk", **metrics: float) -> ModelRow:
    measured = {
        "params": 1000.0,
        "bits_per_byte": 2.5,
        "bits_per_byte_low": 2.4,
        "bits_per_byte_high": 2.6,
        "next_token_accuracy": 0.3,
        "next_token_accuracy_low": 0.28,
        "next_token_accuracy_high": 0.325,
        "bytes_on_disk": 4000.0,
        **metrics,
    }
    scores = {"accuracy": 0.5, "chance": 0.25, "corrected_low": 0.2, "corrected_high": 0.4}
    lineage = Lineage(name, 1, "nano", "d" * 64, "v", "c", {}, {}, measured, {"logic": scores})
    return ModelRow(lineage, Path("/store/trunk/1"), {"loss": PNG})


def ledger(*rows: GateRow) -> Ledger:
    artifact = ArtifactRow(Path("/store/model.forge"), 400_000, 0.128, 0.84, (0.8, 0.88))
    return Ledger("nano", (model(), model("child")), rows, artifact, {"left": "not made yet"})


def printed(shown: Ledger, width: int = 80) -> str:
    text = io.StringIO()
    print_ledger(shown, Console(file=text, width=width))
    return text.getvalue()


def test_margin_is_positive_when_passed() -> None:
    assert margin_of(GateRow(SMALL, 12.0, 10.0, False)) == -2.0
    assert margin_of(GateRow(SMALL, 7.0, 10.0, True)) == 3.0
    assert margin_of(GateRow(KEEPS, 0.75, 0.5, True)) == 0.25
    assert margin_of(GateRow(KEEPS, None, 0.5, False)) is None


def test_terminal_tables_fit_80_columns() -> None:
    rows = [GateRow(SMALL, 12.0, 10.0, False), GateRow(KEEPS, None, 0.5, None)]
    text = printed(ledger(*rows))
    assert re.search(r"trunk +1,000 +2\.5000 +30\.0% \(28\.0%-32\.5%\) +4,000 +✗ 0/1 +no verdict", text)
    assert re.search(r"trunk +gate +small +12 +≤ 10 +-2 +FAILED", text)
    assert re.search(r"trunk +claim +keeps +not measured +≥ 0\.5 +- +no verdict", text)
    assert "400,000 bytes; 0.128 bits per parameter" in text.replace("\n", " ")
    assert "not made yet: left" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_page_is_self_contained_and_complete() -> None:
    rows = [GateRow(SMALL, 12.0, 10.0, False), GateRow(KEEPS, 0.75, 0.5, True)]
    page = BeautifulSoup(html_page(ledger(*rows)), "html.parser")
    for tag in page.find_all(True):
        for attribute in ("src", "href", "xlink:href"):
            target = tag.get(attribute, "")
            assert target.startswith(("data:", "#")) or not target, (tag.name, target)
    assert page.find(["script", "link", "iframe"]) is None
    assert [h.text for h in page.find_all("h2")] == [
        "Ledger",
        "Along the chain",
        "Task families",
        "Training",
        "Gates and claims",
        "The file",
    ]
    failed, passed = page.find_all("table")[1].find("tbody").find_all("tr")
    assert [cell.text for cell in failed.find_all("td")] == [
        "trunk",
        "gate",
        "small",
        "12",
        "≤ 10",
        "-2",
        "FAILED",
        "size <b>on disk</b>, against the parent",
    ]
    assert failed.find_all("td")[6]["class"] == ["bad"]
    assert passed.find_all("td")[6]["class"] == ["good"]
    assert 'forge generate --artifact /store/model.forge "The "' in page.find("pre").text
    assert len(page.find_all("svg")) == 4
    assert len(page.find_all("img")) == 2
    assert summary(ledger(*rows)) == "2 models of profile nano; 0 of 1 gates passed, 1 of 1 claims held."


def test_charts_draw_the_measured_interval() -> None:
    from forge_assets import charts

    bits, accuracy, size = charts.chain(ledger())
    for svg in (bits, accuracy, size):
        ElementTree.fromstring(svg)
    assert charts.chain(Ledger("nano", (), (), None, {})) == []
    one, same, wider = (
        charts.chain(Ledger("nano", (model(bits_per_byte_high=high),), (), None, {}))[0] for high in (2.6, 2.6, 3.5)
    )
    assert one == same
    assert one != wider
    assert len(charts.tasks(ledger())) == 1


def test_page_without_models_says_how_to_make_them() -> None:
    page = html_page(Ledger("mini", (), (), None, {"trunk": "not made yet"}))
    assert "forge run --profile mini" in page
    assert "<svg" not in page


def test_page_shows_exhibits_in_the_section_of_their_model() -> None:
    thoughts = {"rule": "all", "enabled": False, "verdict": "<i>No</i> gain.", "examples": []}
    thoughts |= {"heat_map": [], "arms": [], "gating": []}
    child = replace(model("child"), exhibits={"thoughts": thoughts, "<music>": 1})
    page = BeautifulSoup(html_page(replace(ledger(), models=(model(), child))), "html.parser")
    (section,) = [s for s in page.find_all("section") if s.h2.text == "child"]
    assert [h.text for h in section.find_all("h3")] == ["<music>", "Thoughts"]
    assert section.find(class_="verdict").text == "Thinking is switched off <i>No</i> gain."
    assert "no renderer for the exhibit '<music>'" in section.find("p", class_="bad").text
    assert ".exhibit-thoughts" in page.find("style").text
    assert "trunk" not in [h.text for h in page.find_all("h2")]
