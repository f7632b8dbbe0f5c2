"""What a phase shows to a person: kept, rendered, escaped, and refused when it is not what the renderer reads."""

import copy
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import tiny_forge
import torch
from bs4 import BeautifulSoup, Tag
from forge_instance import failure_text, made
from markdown_it import MarkdownIt

from forge_assets.checks import asset_checks
from forge_assets.factory import phase_asset
from forge_assets.graph_view import Forge
from forge_assets.ledger import collect
from forge_assets.report import exhibits, html_page
from forge_assets.report.components.interval_chart import Interval, interval_chart
from forge_assets.report.components.markup import plain, visible
from forge_resources.launcher import Launcher
from forge_resources.model_store import ModelStore, StoreError, measurements_digest
from forge_resources.tracking import MlflowTracking
from tests.core.small_data import SHAPE, make_small_data
from tests.nested import nested
from training_core.evaluation.held_out import open_suite
from training_core.gates import Gate
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phase import PhaseContext
from training_core.phases.p3_quiet_star.config import ReasoningConfig
from training_core.phases.p3_quiet_star.phase import make_reasoner
from training_core.phases.p3_quiet_star.report import shown_text
from training_core.store.bundle import Lineage, Product, write_bundle, write_measurements

ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">|\n![p](http://evil.example/p.png) $x^$ --> &amp;'


def document(**changes: Any) -> dict[str, Any]:
    example = {
        "group": "best",
        "context": "It covers an area of",
        "thoughts": [" so  in km", ""],
        "chosen": 1,
        "next_tokens": [" 27", "\n"],
        "before": [0.0123, 0.5],
        "after": [0.1875, 0.25],
        "gain_bits": 2.9301,
    }
    return {
        "rule": "the position with the largest gain",
        "enabled": True,
        "verdict": "Thoughts gain 0.03125 bits per token [0.0117, 0.0493].",
        "examples": [example, {**example, "group": "worst", "gain_bits": -0.75}],
        "heat_map": [
            {"text": "The", "difficulty": 0.125, "surprise": 1.0, "thinks": False},
            {"text": " area", "difficulty": 0.875, "surprise": 0.0625, "thinks": True},
        ],
        "arms": [
            {"name": "trained", "description": "as trained", "gain": 0.03125, "low": 0.0117, "high": 0.0493},
            {"name": "shuffled", "description": "another's", "gain": -0.015, "low": -0.0244, "high": -0.0056},
        ],
        "gating": [
            {
                "name": "surprise",
                "share": 0.1,
                "gain_bits_per_token": 0.0071,
                "low": 0.0031,
                "high": 0.0112,
                "gflop_per_token": 0.00613,
                "bits_per_gflop": 1.15823,
            }
        ],
        **changes,
    }


def page(shown: Any, name: str = "thoughts") -> BeautifulSoup:
    return BeautifulSoup(exhibits.render(name, shown), "html.parser")


def everywhere(value: Any, text: str) -> Any:
    """`value` with every text in it replaced, but for the group of an example."""
    if isinstance(value, dict):
        return {key: v if key == "group" else everywhere(v, text) for key, v in value.items()}
    if isinstance(value, list):
        return [everywhere(item, text) for item in value]
    return text if isinstance(value, str) else value


def numbers(tag: Tag) -> list[float]:
    return [float(data["value"]) for data in tag.find_all("data")]


def test_numbers_on_the_page_are_the_numbers_given() -> None:
    arms, gating = page(document()).find_all("table")
    assert [numbers(row) for row in arms.tbody.find_all("tr")] == [
        [0.03125, 0.0117, 0.0493],
        [-0.015, -0.0244, -0.0056],
    ]
    assert arms.tbody.tr.text == "trainedas trained+0.0312[+0.0117, +0.0493]"
    assert [numbers(row) for row in gating.tbody.find_all("tr")] == [[0.1, 0.0071, 0.0031, 0.0112, 0.00613, 1.15823]]
    assert gating.tbody.tr.text == "surprise10.0% of positions+0.0071[+0.0031, +0.0112]0.00613+1.158"
    best, worst = page(document()).find_all("article")
    assert numbers(best) == [2.9301, 0.0123, 0.1875, 0.5, 0.25]
    assert best.find(class_="better").text == "+2.930 bits"
    assert worst.find(class_="worse").text == "-0.750 bits"
    assert [bar["style"] for bar in best.find_all("i")] == [
        "width:1.230%",
        "width:18.750%",
        "width:50.000%",
        "width:25.000%",
    ]
    assert [cell.text for cell in best.find_all(class_="token")] == ["·27", "↵\n"]
    assert [item.text for item in best.find_all("li")] == ["·so··in km", "(empty)"]
    assert [item.text for item in best.find_all("li", class_="chosen")] == ["(empty)"]


def test_verdict_comes_first_and_groups_are_in_order() -> None:
    for enabled, state in ((True, "on"), (False, "off")):
        first = next(page(document(enabled=enabled)).div.children)
        assert first.text == f"Thinking is switched {state} Thoughts gain 0.03125 bits per token [0.0117, 0.0493]."
    headings = [h.text for h in page(document()).find_all("h5")]
    assert headings == ["Where thinking helped most", "Where it did most harm", "Drawn at random"]
    assert page(document()).find_all("h5")[2].find_next_sibling().text == "None."


def test_heat_map_colours_by_both_and_underlines_where_the_model_thinks() -> None:
    shown = page(document())
    for kind, values in (("difficulty", [0.125, 0.875]), ("surprise", [1.0, 0.0625])):
        line = shown.find("p", class_=f"heat {kind}")
        assert line.text == "The area"
        spans = line.find_all("span", style=True)
        assert [float(span["style"].removeprefix("--v:")) for span in spans] == values
        assert [span.get("class") for span in spans] == [None, ["thinks"]]
    assert "at 1 of 2 positions" in shown.text


def test_what_is_empty_says_so_in_words() -> None:
    shown = page(document(examples=[], heat_map=[], arms=[], gating=[]))
    sentences = [p.text for p in shown.find_all("p", class_="note")]
    assert sentences == [
        "No arm was compared.",
        "No gating was compared.",
        "How the examples were chosen: the position with the largest gain",
        "There are no examples.",
        "No text was mapped.",
    ]
    assert shown.find(["table", "svg", "article", "figure"]) is None
    text = exhibits.markdown("thoughts", document(arms=[], gating=[]))
    assert "No arm was compared." in text
    assert "No gating was compared." in text


def test_text_of_a_model_cannot_leave_its_place() -> None:
    shown = page(everywhere(document(), ATTACK))
    assert shown.find(["script", "img", "a", "link", "iframe"]) is None
    assert not [tag for tag in shown.find_all(True) if any(name.startswith("on") for name in tag.attrs)]
    assert shown.find("article").find(class_="context").text == ATTACK.replace("\n", "↵\n")
    assert len(shown.find_all("article")) == 2
    text = exhibits.markdown("thoughts", everywhere(document(), ATTACK))
    rendered = BeautifulSoup(MarkdownIt("commonmark").enable("table").render(text), "html.parser")
    assert rendered.find(["script", "img", "a"]) is None
    name = rendered.find("tbody").find_all("td")[0].text
    assert name == " ".join(ATTACK.split())
    assert [len(row.find_all("td")) for row in rendered.find_all("tr")] == [0, 3, 3, 0, 5]


def test_what_cannot_be_seen_is_named() -> None:
    def shown(text: str, *spaces: Any) -> str:
        return BeautifulSoup(visible(text, *spaces), "html.parser").text

    assert shown(" a b  c ") == "·a b··c·"
    assert shown(" a b", "all") == "·a·b"
    assert shown(" a  b", "none") == " a  b"
    assert shown("\ta\r\nb") == "⇥\ta␍↵\nb"
    assert shown("\u202edesrever\x00\x1b\u00a0\u2028") == "\\u202edesrever\\x00\\x1b\\xa0\\u2028"
    assert shown("größe 数 \ufffd") == "größe 数 \ufffd"
    assert shown("") == "(empty)"
    assert plain("a|b\n *c*") == r"a\|b \*c\*"


def test_markdown_shows_the_main_numbers_in_less_than_30_lines() -> None:
    text = exhibits.markdown("thoughts", document())
    assert "| trained | +0.0312 | +0.0117 to +0.0493 |" in text
    assert "| surprise | 10.0% | +0.0071 | +0.0031 to +0.0112 | +1.158 |" in text
    assert text.startswith("**Thinking is switched on.** Thoughts gain 0.03125 bits")
    assert "It covers" not in text, "no text of a model"
    many = document(arms=document()["arms"] * 20, gating=document()["gating"] * 20)
    long = exhibits.markdown("thoughts", many)
    assert len(long.splitlines()) < 30
    assert "32 more rows are in the report." in long
    assert "12 more rows are in the report." in long


def _without(path: str) -> dict[str, Any]:
    return _with(path, None, delete=True)


def _with(path: str, value: Any, delete: bool = False) -> dict[str, Any]:
    changed = copy.deepcopy(document())
    *way, last = path.split(".")
    place: Any = changed
    for step in way:
        place = place[int(step) if step.isdecimal() else step]
    if delete:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (_without("verdict"), "at verdict: Field required"),
        (_with("mood", "good"), "at mood: Extra inputs"),
        (_with("examples.0.mood", "good"), "at examples.0.mood: Extra inputs"),
        (_with("enabled", 1), "at enabled"),
        (_with("verdict", 3), "at verdict"),
        (_with("examples.0.group", "good"), "at examples.0.group"),
        (_with("examples.0.chosen", 2), "at examples.0: Value error, chosen must name one of 2"),
        (_with("examples.0.chosen", -1), "at examples.0.chosen"),
        (_with("examples.1.before", [0.5]), r"at examples.1: .* equally long, their lengths are \(2, 1, 2\)"),
        (_with("examples.0.after", [0.5, 1.5]), "at examples.0.after.1"),
        (_with("examples.0.thoughts", []), "at examples.0.thoughts"),
        (_with("heat_map.0.difficulty", -0.1), "at heat_map.0.difficulty"),
        (_with("arms.0.gain", float("nan")), "at arms.0.gain"),
        (_with("arms.0.gain", "0.1"), "at arms.0.gain"),
        (_with("arms.1.low", 0.1), "at arms.1: Value error, the interval must run from low to high"),
        (_with("gating.0.low", 0.1), "at gating.0: Value error, the interval must run from low to high"),
        (_with("gating.0.share", 1.1), "at gating.0.share"),
        (_with("rule", {1}), "is not JSON"),
        ([], "the whole"),
    ],
)
def test_document_that_breaks_the_schema_is_refused(wrong: Any, where: str) -> None:
    for show in (exhibits.render, exhibits.markdown):
        with pytest.raises(exhibits.ExhibitError, match=where):
            show("thoughts", wrong)


def test_unknown_exhibit_is_refused_with_the_known_ones() -> None:
    for show in (exhibits.render, exhibits.markdown):
        with pytest.raises(exhibits.ExhibitError, match=r"no renderer for the exhibit 'music': known are thoughts"):
            show("music", {})
    with pytest.raises(exhibits.ExhibitError, match="known are thoughts"):
        exhibits.title("music")


def ends(svg: str, colour: str) -> list[float]:
    """Where the one line of that colour starts and ends, from left to right."""
    (path,) = re.findall(rf'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"[^>]*stroke: {colour}', svg)
    return [float(x) for x in path]


def test_chart_draws_the_interval_and_its_sign() -> None:
    def chart(low: float, high: float, value: float) -> str:
        return interval_chart([Interval("a $x^ <b>", value, low, high)], "t")

    cases = {(0.1, 0.2): "#12705b", (-0.2, -0.1): "#b42318", (-0.1, 0.3): "#667085", (-0.3, 0.1): "#667085"}
    for (low, high), colour in cases.items():
        svg = chart(low, high, 0.5 * (low + high))
        ElementTree.fromstring(svg)
        zero, _ = ends(svg, "#1d2433")
        left, right = ends(svg, colour)
        assert (right - zero) / (left - zero) == pytest.approx(high / low, abs=1e-4)  # six decimals in the file
        assert not any(f"stroke: {other}" in svg for other in {*cases.values()} - {colour})
    assert chart(0.1, 0.2, 0.15) == chart(0.1, 0.2, 0.15)
    assert chart(0.1, 0.2, 0.15) != chart(0.1, 0.2, 0.16)
    with pytest.raises(ValueError, match="at least one row"):
        interval_chart([], "t")


def test_exhibits_are_covered_by_the_digest_of_measurements_alone(tmp_path: Path) -> None:
    def put(name: str, shown: dict[str, Any] | None) -> Path:
        bundle = write_bundle(
            tmp_path / name, kind="cognate", model_config={}, tensors={"w": torch.ones(2)}, tokenizer_json="{}"
        )
        lineage = Lineage("m", 3, "nano", bundle.digest(), "c", "d", {}, {}, {"metric": 1.0})
        write_measurements(bundle, lineage, {"bytes": torch.ones(2)}, shown)
        digests.add(bundle.digest())
        return bundle.folder

    digests: set[str] = set()
    none, empty, one, same, other = (
        measurements_digest(put(name, shown))
        for name, shown in (("a", None), ("b", {}), ("c", {"x": 1}), ("d", {"x": 1}), ("e", {"x": 2}))
    )
    assert len(digests) == 1
    assert none == empty
    assert one == same
    assert len({none, one, other}) == 3


GATES = (Gate("shown", "finite", "non_finite_weights", "at_most", 0, "count"),)


class ShownConfig(tiny_forge.StepsConfig):
    """Which exhibit the phase hands over."""

    exhibit: str = "thoughts"
    verdict: str = document()["verdict"]


def show(run: PhaseContext, config: ShownConfig) -> Product:
    made_of = tiny_forge.train(run, config)
    return replace(made_of, exhibits={config.exhibit: document(verdict=config.verdict)})


SHOWN = phase_asset(
    replace(tiny_forge.PHASES["trunk"], name="shown", number=3, config=ShownConfig, compute=show),
    preset=lambda profile, asset: None,
    checks={},
)
CHECKS = asset_checks(GATES)


def materialize_shown(instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [*tiny_forge.ASSETS, SHOWN, *CHECKS],
        selection=dg.AssetSelection.assets("shown"),
        instance=instance,
        resources={"store": ModelStore(), "tracking": MlflowTracking(enabled=False), "launcher": Launcher()},
        run_config={"ops": {"shown": {"config": config}}},
        raise_on_error=False,
    )


def test_exhibit_goes_through_dagster_to_the_report(instance: dg.DagsterInstance, store: ModelStore) -> None:
    result = materialize_shown(instance)
    assert made(result) == ["shown"]
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    assert metadata["exhibit/thoughts"] == dg.MetadataValue.md(exhibits.markdown("thoughts", document()))
    (folder,) = store.versions("shown")
    assert metadata["measurements"].value == measurements_digest(folder)
    resources = {"store": store, "tracking": MlflowTracking(enabled=False), "launcher": Launcher()}
    definitions = dg.Definitions(assets=[*tiny_forge.ASSETS, SHOWN], asset_checks=CHECKS, resources=resources)
    forge = Forge(definitions, instance, store, GATES)
    ledger = collect(forge)
    assert ledger.models[0].exhibits == {"thoughts": document()}
    shown = BeautifulSoup(html_page(ledger), "html.parser").find(class_="exhibit-thoughts")
    assert shown.find_parent("section").h2.text == "shown"
    (folder / "exhibits.json").write_text("{}")
    with pytest.raises(StoreError, match="changed or damaged"):
        store.open_bundle("shown", metadata["digest"].value, metadata["measurements"].value)
    assert "changed or damaged" in collect(forge).missing["shown"]


def test_same_model_with_another_exhibit_stands_beside_the_first(
    instance: dg.DagsterInstance, store: ModelStore
) -> None:
    materialize_shown(instance)
    materialize_shown(instance, verdict="Thoughts do not help.")
    first, second = store.versions("shown")
    assert second.name.startswith(f"{first.name}.")


def test_phase_with_an_exhibit_nobody_can_show_fails_before_it_is_stored(
    instance: dg.DagsterInstance, store: ModelStore
) -> None:
    result = materialize_shown(instance, exhibit="music")
    assert not result.success
    assert "known are thoughts" in failure_text(result, "shown")
    assert store.versions("shown") == []


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors: a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_thoughts_of_a_real_run_are_what_the_renderer_reads(tmp_path: Path) -> None:
    folders = make_small_data(tmp_path)
    suite = open_suite(folders["evaluation_suite"])
    tasks = [task for task in suite.tasks if task.family == "arithmetic"]
    torch.manual_seed(0)
    parent = Cognate(CognateConfig(vocab_size=320, **SHAPE))
    config = nested(
    ReasoningConfig,
        num_thoughts=2, min_length=1, max_length=3, mixing_heads=4, positions_per_sequence=4, true_tokens=2, steps=2,
        batch_size=2, seq_len=32, baking_steps=0, measured_windows=2,
    )  # fmt: skip
    context = PhaseContext(folders=folders, suite=replace(suite, tasks=tasks[:4]))
    context.tasks = tasks
    product = make_reasoner(parent, context, config)
    shown = product.exhibits["thoughts"]
    (card, *_) = page(shown).select("article")
    assert card.select(".thoughts .chosen")
    assert {example["group"] for example in shown["examples"]} == {"best", "worst", "random"}
    gains = {group: [e["gain_bits"] for e in shown["examples"] if e["group"] == group] for group in ("best", "worst")}
    assert min(gains["best"]) > max(gains["worst"])
    for example in shown["examples"]:
        gain = math.log2(example["after"][0] / example["before"][0])
        assert example["gain_bits"] == pytest.approx(gain, abs=1e-3)
        assert len(example["thoughts"]) == 2
    assert [arm["name"] for arm in shown["arms"]] == ["thoughts", "shuffled", "pause", "random reward"]
    assert len(shown["heat_map"]) == 64
    tokenizer = context.tokenizer
    text = shown_text(suite.test.inputs[0].tolist(), tokenizer)
    assert "".join(token["text"] for token in shown["heat_map"]) == text
    gating = {rule["name"]: rule for rule in shown["gating"]}
    assert gating["everywhere"]["gain_bits_per_token"] == product.metrics["thought_gain"]
    assert shown["enabled"] == bool(product.metrics["thoughts_enabled"])
    markdown = exhibits.markdown("thoughts", shown)
    assert f"{shown['arms'][0]['gain']:+.4f}" in markdown
    folder = tmp_path / "bundle"
    bundle = write_bundle(
        folder, kind=product.kind, model_config=product.model_config, tensors=product.tensors, tokenizer_json="{}"
    )
    write_measurements(
        bundle, Lineage("a", 3, "nano", "d", "c", "k", {}, {}, {}), {"n": torch.ones(1)}, product.exhibits
    )
    assert bundle.exhibits() == {"thoughts": shown}, "every number is finite and survives as JSON"
