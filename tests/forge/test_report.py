"""The report's tables and page say what the ledger says, and the page needs nothing else."""

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from importlib import resources
from pathlib import Path

import dagster as dg
import pytest
from bs4 import BeautifulSoup, Tag
from jinja2 import UndefinedError
from markupsafe import Markup
from rich.console import Console

from forge_assets.forge_report import report_asset
from forge_assets.ledger import ArtifactRow, GateRow, Ledger, ModelRow
from forge_assets.report import html_page, print_ledger, templates
from forge_assets.report.cells import chain_lines, margin_of, summary
from forge_assets.report.templates import JoinedLines, environment
from forge_assets.report.yardsticks import baseline_lines, yardsticks
from training_core.gates import Gate
from training_core.store.bundle import Lineage

ROOT = Path(__file__).parents[2]
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
    artifact = ArtifactRow(Path("/store/model.forge"), 400_000, 0.128, 0.84, (0.8, 0.88), 0.79, (0.75, 0.83))
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


def test_controls_stand_beside_the_file_and_not_in_the_chain() -> None:
    def control(name: str, low: float, high: float) -> ModelRow:
        ratio = "bits_per_byte_ratio_to_compressed_model"
        return model(name, **{ratio: (low + high) / 2, f"{ratio}_low": low, f"{ratio}_high": high})

    rows = (control("worse", 1.02, 1.06), control("better", 0.94, 0.98), control("equal", 0.99, 1.01))
    shown = replace(ledger(GateRow(SMALL, 7.0, 10.0, True)), controls=(*rows, model("unmeasured")))
    text = printed(shown)
    assert re.search(r"worse +4,000 +2\.5000 +1\.040 \(1\.020-1\.060\) +the file", text)
    assert re.search(r"better +4,000 +2\.5000 +0\.960 \(0\.940-0\.980\) +the control", text)
    assert re.search(r"equal .*\) +neither", text)
    assert re.search(r"unmeasured .* - +no verdict", text)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert summary(shown).startswith("2 models of profile nano; 1 of 1 gates passed")
    page = BeautifulSoup(html_page(shown), "html.parser")
    section = page.find(id="controls")
    assert isinstance(section, Tag)
    assert [row.td.text for row in section.tbody.find_all("tr")] == ["worse", "better", "equal", "unmeasured"]
    assert "worse" not in page.find(id="ledger").text
    assert shown.as_json()["controls"][0]["against_the_file"]["bits_per_byte_ratio_to_compressed_model"]["ci95"] == [
        1.02, 1.06,
    ]  # fmt: skip
    assert BeautifulSoup(html_page(ledger()), "html.parser").find(id="controls") is None


def test_page_is_self_contained_and_complete() -> None:
    rows = [GateRow(SMALL, 12.0, 10.0, False), GateRow(KEEPS, 0.75, 0.5, True)]
    page = BeautifulSoup(html_page(ledger(*rows)), "html.parser")
    for tag in page.find_all(True):
        for attribute in ("src", "href", "xlink:href"):
            target = tag.get(attribute, "")
            assert target.startswith(("data:", "#")) or not target, (tag.name, target)
    assert page.find(["script", "link", "iframe"]) is None
    assert [h.text for h in page.find_all("h2")] == [
        "What was made",
        "How to read this",
        "Phase by phase",
        "What failed1 gate, 0 claims",
        "Gates and claims of phase 1",
        "trunk",
        "child",
        "Ledger",
        "Along the chain",
        "Task families",
        "The file",
    ]
    judged = page.find("h2", string="Gates and claims of phase 1").find_parent("section")
    failed, passed = judged.find("tbody").find_all("tr")
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
    from forge_assets.report.components import charts

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
    (section,) = [s for s in page.find_all("section") if s.h2 and s.h2.text == "child"]
    assert [h.text for h in section.find_all("h3")] == ["<music>", "Thoughts"]
    assert section.find(class_="verdict").text == "Thinking is switched off <i>No</i> gain."
    assert "no renderer for the exhibit '<music>'" in section.find("p", class_="bad").text
    assert ".exhibit-thoughts" in page.find("style").text
    without = BeautifulSoup(html_page(replace(ledger(), models=(replace(model(), figures={}), child))), "html.parser")
    assert "trunk" not in [h.text for h in without.find_all("h2")]


def first_screen(shown: Ledger) -> Tag:
    page = BeautifulSoup(html_page(shown), "html.parser")
    (screen,) = page.find_all(class_="first")
    assert screen.find("details") is None
    return screen


def words(tag: Tag) -> str:
    return re.sub(r"\s+", " ", tag.get_text(" ")).strip()


def test_first_screen_says_what_was_made() -> None:
    made = words(first_screen(ledger()).find(class_="made"))
    assert "400,000 bytes" in made
    assert "parameters 1,000" in made
    assert "next token right 30.0% (28.0%-32.5%)" in made
    assert "bits per byte 2.5000" in made
    assert "parent's accuracy kept 84.0% (80.0%-88.0%)" in made
    assert "bits per parameter 0.128" in made
    assert "tasks (guessing or best rule) logic 50% (25%)" in made
    assert 'forge generate --artifact /store/model.forge "The "' in made
    without = replace(ledger(), artifact=None, models=(model(), model("child", counting_bits_per_byte=2.75)))
    made = words(first_screen(without).find(class_="made"))
    assert "child the last model of the chain" in made
    assert "bits per byte 2.5000, n-gram 2.7500" in made
    assert "forge run --profile nano" in made


def test_first_screen_counts_by_phase_and_names_what_failed_with_its_number() -> None:
    own = replace(SMALL, asset="child", name="own")
    child = replace(model("child", bits_per_byte=2.25), lineage=replace(model("child").lineage, phase=4))
    rows = [GateRow(SMALL, 7.0, 10.0, True), GateRow(KEEPS, 0.25, 0.5, False), GateRow(own, 12.0, 10.0, False)]
    shown = replace(ledger(*rows), models=(model(), child))
    screen = first_screen(shown)
    table = [[cell.text for cell in row.find_all("td")] for row in screen.find("tbody").find_all("tr")]
    assert [[row[0], *row[-2:]] for row in table] == [["1 Cognate", "✓ 1/1", "✗ 0/1"], ["4 BitNet 1.58", "✗ 0/1", "-"]]
    gate, claim = screen.find(class_="failures").find_all("li")
    assert words(gate) == "4 gate own : 12 , needs ≤ 10, against the parent size <b>on disk</b>"
    assert words(claim) == "1 keeps : 0.25 , needs ≥ 0.5 share kept"
    assert [b["class"] for b in screen.find(class_="failures").find_all("b", class_=True)] == [["number"]] * 2
    passed = first_screen(ledger(GateRow(SMALL, 7.0, 10.0, True)))
    assert "Nothing: no gate and no claim failed." in words(passed.find(class_="failed"))


def test_everything_else_is_folded_by_phase() -> None:
    child = replace(model("child"), lineage=replace(model("child").lineage, phase=9))
    page = BeautifulSoup(
        html_page(replace(ledger(), models=(model(), child)), [("Overrides", Markup("<p>x</p>"))]), "html.parser"
    )
    folds = page.main.find_all("details", class_="fold", recursive=False)
    assert [fold["id"] for fold in folds] == ["phase-1", "phase-9", "ledger", "history"]
    assert not [fold for fold in page.find_all("details") if fold.has_attr("open")]
    assert words(folds[1].summary) == "Phase 9: phase 9"
    assert [tag.name for tag in page.main.find_all(recursive=False)] == ["header", "div", *["details"] * 4]
    assert folds[3].find("p").text == "x"


def test_first_screen_shows_what_the_stored_model_wrote_and_escapes_it() -> None:
    attack = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    last = {"prompt": "p2", "given": attack, "base": "", "prompted": "", "half_baked": " x\n" + attack, "baked": ""}
    earlier = {**last, "prompt": "p1", "given": "of another model"}
    kept = {"cycle": "tools", "prompt": "p1", "kept": True}
    baked = BAKED | {
        "generations": [earlier, last],
        "timeline": [{**STEP, **kept}, {**STEP, "number": 1, "prompt": "p2"}, {**STEP, "number": 2, "kept": False}],
    }
    child = replace(model("child"), exhibits={"baked": baked})
    screen = first_screen(replace(ledger(), models=(model(), child)))
    assert screen.find(["script", "img"]) is None
    (sample,) = screen.find_all(class_="sample")
    assert sample.text == f"{attack} x↵\n{attack}"
    assert "child, phase 1" in screen.text
    assert first_screen(ledger()).find(class_="sample") is None
    broken = replace(child, exhibits={"baked": baked | {"mood": 1}})
    assert first_screen(replace(ledger(), models=(broken,))).find(class_="sample") is None


SCORE = {"value": 0.5, "low": 0.25, "high": 0.75}
STEP = {
    "number": 0, "cycle": "persona", "prompt": "p", "score": SCORE, "kept": True, "why": "", "decision": "continue",
    "decision_why": "", "strength": 0.5, "target": 0.5,
}  # fmt: skip
BAKED = {
    "baselines": {}, "prompts": [], "stacking": [], "stacking_note": "", "proposals": [], "style": [], "turns": [],
    "tools": {"base": SCORE, "prompted": SCORE, "baked": SCORE, "chance": 0.0, "by_kind": [], "attempts": []},
    "columns": {"half_baked": "", "baked": ""}, "not_kept": "",
}  # fmt: skip


def test_a_line_break_of_a_template_beside_a_tag_leaves_no_trace() -> None:
    joined = JoinedLines(environment()).preprocess("<p>\n  {{ a }}\n  b\n  c <i>\n\n</i>\n</p>\n", None)
    assert joined == "<p>{{ a }}b c <i></i></p>"
    template = environment().from_string("<pre>\n  {{ text }}\n</pre>")
    assert template.render(text="a\n  <b>") == "<pre>a\n  &lt;b&gt;</pre>", "text that is printed keeps its breaks"
    with pytest.raises(UndefinedError):
        environment().from_string("{{ absent }}").render()


def test_templates_lie_in_the_packages_and_change_the_code_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, files in {
        "forge_assets.report": ["page.html.j2", "history.html.j2", "components.html.j2", "page.css", "measures.css"],
        **{
            f"training_core.phases.{phase}": ["report.html.j2", "report.css"]
            for phase in ("p3_quiet_star", "p5_curriculum", "p6_baking", "p7_experts")
        },
    }.items():
        for file in files:
            assert resources.files(package).joinpath(file).read_text()
    assert len(environment().list_templates(extensions=["j2", "css"])) == 13, "every one of them is found by its loader"

    def version() -> str | None:
        (found,) = report_asset(dg.Definitions, []).code_versions_by_key.values()
        return found

    before, read = version(), templates.source
    assert version() == before
    monkeypatch.setattr(templates, "source", lambda name: read(name) + ("x" if name.endswith("report.css") else ""))
    assert version() != before


def test_exhibits_are_declared_without_torch() -> None:
    phases = ("p3_quiet_star", "p5_curriculum", "p6_baking", "p7_experts")
    modules = ", ".join(f"training_core.phases.{phase}.exhibit" for phase in phases)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_packed_ngrams_and_the_merged_model_stand_beside_the_file() -> None:
    measured = {
        "bits_per_byte_on_world": 0.25, "packed_ngram_bytes": 3990.0, "packed_ngram_bits_per_byte": 2.75,
        "packed_ngram_bits_per_byte_on_world": 0.5,
    }  # fmt: skip
    for name, value in {"": 0.96, "_on_world": 0.98, "_in_two_hops": 0.5}.items():
        measured |= {f"retention_to_merged_model{name}{end}": value for end in ("", "_low", "_high")}
    shown = replace(ledger(), models=(model(), model("file", **measured)))
    assert chain_lines(shown) == [
        "bits per byte of n-grams packed into 3,990 bytes: in all 2.750 (the file 2.500), world 0.500 (the file 0.250)",
        "kept of the merged model's next-token accuracy: file 0.960",
        "kept of the merged model's next-token accuracy by file: world 0.980",
        "kept of the merged model's accuracy above chance by file: two_hops 0.500",
    ]
    assert "79.0% (75.0%-83.0%) of the merged model's" in printed(shown, width=300)


def asked() -> Ledger:
    """A trunk that is measured on the world and on a text of its own, and a child that is measured on less."""
    measured = {
        **dict.fromkeys(("bits_per_byte_on_world", "margin_below_counting_on_world_low"), 0.25),
        **dict.fromkeys(("margin_below_counting_on_world", "margin_below_counting_on_world_high"), 0.5),
        **{f"{kind}_on_wikipedia": 2.0 for kind in ("bits_per_byte", "margin_below_counting")},
        **{f"margin_below_counting_on_wikipedia_{end}": 1.0 for end in ("low", "high")},
        **{f"grammar_{name}{end}": 0.75 for name in ("number", "pronoun") for end in ("", "_low", "_high")},
        "world_parsed": 0.99,
    }
    rules = {"baseline_chance": 0.25, "baseline_most_recent": 0.5, "baseline_copying": 0.375}
    trunk = model(**measured)
    scores = {"accuracy": 0.5, "chance": 0.25, "corrected_low": 0.2, "corrected_high": 0.4}
    tasks = {
        "logic": scores,
        "one_hop": {**scores, **rules},
        "answered_one_hop": {**scores, **rules, "accuracy": 0.25, "baseline_copying": 0.625},
    }
    trunk = replace(trunk, lineage=replace(trunk.lineage, tasks=tasks))
    return replace(ledger(), models=(trunk, model("child", bits_per_byte_on_world=0.375)))


def test_models_stand_beside_what_it_takes_without_understanding() -> None:
    columns, rows = yardsticks(asked())
    assert columns == ["model", "wikipedia", "world", "1 hop", "grammar", "parse", "stories"]
    assert rows == [
        ["trunk", "2.000", "0.250", "50/25", "75", "99", "-"],
        ["child", "-", "0.375", "-/-", "-", "-", "-"],
        ["n-gram", "4.000", "0.750", "-", "-", "-", "-"],
        ["best baseline", "-", "-", "50/62", "-", "-", "-"],
    ]
    assert baseline_lines(asked()) == ["best baselines: 1 hop most recent/copying"]
    assert yardsticks(ledger())[1] == baseline_lines(ledger()) == []
    text = printed(asked())
    assert re.search(r"best baseline +- +- +50/62", text)
    assert max(len(line) for line in text.splitlines()) <= 80
    page = BeautifulSoup(html_page(asked()), "html.parser")
    (section,) = [s for s in page.find_all("section") if s.h2 and s.h2.text == "Text and questions"]
    assert [cell.text for cell in section.find_all("tr")[-1].find_all("td")] == rows[-1]
    made = words(first_screen(replace(asked(), models=asked().models[:1])).find(class_="made"))
    assert "logic 50% (25%), one hop 50% (most recent 50%), answered one hop 25% (copying 62%)" in made
