"""What experts and their search show to a person: the numbers given, where they belong, and escaped text."""

import copy
import re
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt

from forge_assets.report import exhibits
from forge_assets.report.components.scatter import Axis, Dot, scatter

ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def e(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def point(number: int, accuracy: float, ratio: float, size: int, *, chosen: bool = False) -> dict[str, Any]:
    return {
        "number": number, "chosen": chosen, "accuracy": accuracy, "latency_ms": 2.0 * ratio, "latency_ratio": ratio,
        "bytes": size, "bits_per_byte": 2.25, "says": f"composition {number}", "composition": {"cycles": 1},
    }  # fmt: skip


def shown(**changes: Any) -> dict[str, Any]:
    def family(name: str, expert: str) -> dict[str, Any]:
        return {
            "family": name, "expert": expert, "questions": 16, "expected": e(0.25, 0.125, 0.375), "exact": 0.1875,
            "nats": 1.5,
        }  # fmt: skip

    def learned(method: str, value: float, kept: bool) -> dict[str, Any]:
        return {"method": method, "gain": e(value, value - 0.0625, value + 0.0625), "bytes": 1560, "kept": kept}

    expert = {
        "name": "copying", "families": ["copying", "lists"], "says": "Nearest is expert 2.", "parameters": 6,
        "bytes": 1560, "learned": [learned("reward", 0.125, False), learned("supervised", 0.25, True)],
        "rewards": [-0.5, 0.75],
        "spectra": [{"matrix": "core.0.mlp.up", "multipliers": [1.5, 1.0, 0.5, 1.0, 1.0, 1.0]}],
    }  # fmt: skip
    answers = [("none", "no expert", 0.25), ("oracle", "the family's", 0.5), ("searched", "the composition", 0.4375)]
    document = {
        "discovery": {
            "criterion": "The smallest within one standard error.", "chosen": 3, "stability": 0.9375, "resamples": 64,
            "note": "", "profile": [family("copying", "copying"), family("sums", "sums")],
            "similarity": [[1.0, -0.25], [-0.25, 1.0]],
            "curve": [{"experts": 2, "gain": 0.125, "error": 0.03125}, {"experts": 3, "gain": 0.375, "error": 0.0}],
        },
        "experts": [expert],
        "heat": {"families": ["copying", "sums"], "rows": ["other", "copying"], "cells": [[0.25, 0.5], [0.75, 0.5]]},
        "routing": {
            "routers": [
                {"name": "classifier", "accuracy": e(0.875, 0.75, 0.9375), "entropy": 1.5, "chance": 0.5, "note": ""},
                {"name": "prompt", "accuracy": e(0.0, 0.0, 0.0625), "entropy": 0.0, "chance": 0.5,
                 "note": "always other: it does not route"},
            ],
            "labels": ["other", "copying"], "confusion": [[3, 1], [2, 10]],
        },
        "answering": [
            {"name": name, "kind": kind, "accuracy": e(value, value - 0.0625, value + 0.0625),
             "over_none": e(value - 0.25, value - 0.375, value - 0.125)}
            for kind, name, value in answers
        ],
        "costs": [{"name": "both", "milliseconds": 2.5, "ratio": 2.25}],
        "search": {
            "rule": "The cheapest with nine tenths of the gain.", "evaluations": 600, "measured": 350, "raced_out": 7,
            "too_slow": 90, "front": [point(0, 0.25, 1.0, 0), point(1, 0.4375, 2.5, 4992, chosen=True)],
            "climbs": [{"seed": 0, "evaluations": [10, 20], "search": [0.25, 0.5], "random": [0.25, 0.375]}],
        },
        "not_kept": "",
    }  # fmt: skip
    return document | changes


def page(document: dict[str, Any]) -> BeautifulSoup:
    return BeautifulSoup(exhibits.render("experts", document), "html.parser")


def text(tag: Tag | BeautifulSoup) -> str:
    return re.sub(r"\s+", " ", tag.get_text(" "))


def test_numbers_stand_where_they_belong() -> None:
    html = page(shown())
    told = text(html)
    assert "copying : copying, lists" in told or "copying: copying, lists" in told
    answers = html.find("h4", string="Answers to test questions").find_next("tbody").find_all("tr")  # type: ignore[union-attr]
    assert [[data["value"] for data in row.find_all("data")] for row in answers] == [
        ["0.25", "0.0"], ["0.5", "0.25"], ["0.4375", "0.1875"]
    ]  # fmt: skip
    assert "The same number in 93.8% of 64 resampled profiles." in told.replace(" %", "%")
    assert "600 compositions asked for, 350 measured (the others had come before), 7 stopped early" in told
    assert "90 beyond the bound on time" in told
    climb = html.find("h5", string="Against random compositions").find_next("tbody")  # type: ignore[union-attr]
    assert [data["value"] for data in climb.find_all("data")] == ["0", "20", "0.5", "0.375", "0.125"]  # type: ignore[union-attr]
    heat = html.find("h4", string="Each expert on each family").find_next("tbody").find_all("tr")  # type: ignore[union-attr]
    assert [[cell.get_text() for cell in row.find_all("td")] for row in heat] == [
        ["25.0%", "50.0%"],
        ["75.0%", "50.0%"],
    ]
    assert [[cell["style"] for cell in row.find_all("td")] for row in heat] == [
        ["--v:0.0", "--v:0.5"], ["--v:1.0", "--v:0.5"]
    ], "colours compare within a family; a family that is alike everywhere is in the middle"  # fmt: skip


def test_the_front_can_be_read_from_every_axis() -> None:
    """Three plots of which one is shown, a card and a link for each point, and a row where the link leads."""
    html = page(shown())
    assert len(html.find_all("input", attrs={"name": "front"})) == len(html.find_all("svg", class_="drawing")) == 3
    assert len(html.find_all("input", checked=True)) == 1
    for plot in html.find_all("svg", class_="drawing"):
        dots = plot.find_all("a", class_="dot")
        assert [dot["href"] for dot in dots] == ["#front-0", "#front-1"], "the chosen one is drawn last"
        assert "chosen" in dots[1]["class"]
        assert "43.8%, 5.00 ms (2.50 passes)" in text(dots[1])
        assert float(dots[0].circle["cy"]) > float(dots[1].circle["cy"]), "more accurate is higher"
    assert [row["id"] for row in html.find_all("tr", class_="point")] == ["front-0", "front-1"]
    across = [float(plot.find_all("circle")[1]["cx"]) for plot in html.find_all("svg", class_="drawing")[:2]]
    assert across == pytest.approx([640 - 24 - 550 * 0.06 / 1.12] * 2, abs=0.1)
    with pytest.raises(ValueError, match="a scatter needs points and an axis"):
        scatter("x", Axis("a", "{}", []), [], [])
    drawn = scatter("x", Axis("a", "{:.1f}", [1.0]), [Axis("b", "{:.1f}", [2.0])], [Dot(["card"], "row", False)])
    assert "NaN" not in drawn, "of one point there is no range"


def test_no_expert_no_front_and_a_refusal_are_said() -> None:
    empty = shown(experts=[], not_kept="the family sums would be worse", answering=[], costs=[])
    empty["search"] = empty["search"] | {"front": [], "climbs": []}
    told = text(page(empty))
    assert "There is no expert." in told
    assert "Without experts: the family sums would be worse" in told
    assert "Nothing was answered." in told
    assert "Without experts: the family sums would be worse" in exhibits.markdown("experts", empty)


def test_markdown_has_the_main_numbers() -> None:
    lines = exhibits.markdown("experts", shown()).splitlines()
    assert len(lines) <= 30
    assert lines[0] == "**1 experts**, the same in 94% of 64 resamples"
    assert any("the composition" in line and "43.8% (37.5% to 50.0%)" in line and "+18.8%" in line for line in lines)
    assert "Chosen of 2 points of the front: composition 1; 2.50 times the time of one pass, 4,992 bytes." in lines


def test_text_of_a_stranger_stays_text() -> None:
    document = shown(not_kept=ATTACK)
    document["experts"][0] |= {"name": ATTACK, "families": [ATTACK], "says": ATTACK}
    document["search"]["front"][1]["says"] = ATTACK
    document["routing"]["labels"] = [ATTACK, "b"]
    html = page(document)
    assert not html.find_all("script")
    assert not html.find_all("img")
    rendered = BeautifulSoup(MarkdownIt().render(exhibits.markdown("experts", document)), "html.parser")
    assert not rendered.find_all(["script", "img"])
    assert ATTACK in rendered.get_text()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("discovery", "similarity"), [[1.0]], "similarity must be 2 x 2"),
        (("search", "climbs", 0, "random"), [0.5], "must have equal lengths"),
        (("heat", "cells", 0, 0), 1.5, "less than or equal to 1"),
        (("experts", 0, "rewards"), ["a"], "valid number"),
    ],
)
def test_a_document_that_breaks_its_schema_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    document = copy.deepcopy(shown())
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(exhibits.ExhibitError, match=message):
        exhibits.render("experts", document)
