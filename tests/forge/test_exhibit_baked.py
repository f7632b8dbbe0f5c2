"""What the baking of prompts shows to a person: the numbers given, where they belong, and escaped text."""

import copy
import itertools
import re
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt

from forge_assets.report import exhibits
from forge_assets.report.components.timeline import Lane, Mark, Point, curves, timeline
from training_core.exhibit import MeasuredValue

ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">|\n![p](http://evil.example/p.png) $x^$ --> &amp;'


def e(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def step(number: int, cycle: str, score: dict[str, float], **changes: Any) -> dict[str, Any]:
    return {
        "number": number,
        "cycle": cycle,
        "prompt": "Repair one line.",
        "score": score,
        "kept": True,
        "why": "",
        "decision": "continue",
        "decision_why": "may still rise by 0.01",
        "strength": 0.5078125,
        "target": 0.5,
        **changes,
    }


def baked(**changes: Any) -> dict[str, Any]:
    call = {"tool": "edit", "input": "2 return a * b", "output": "3 passed", "status": "ok"}
    attempt = {
        "issue": "area(2, 3) gives 5",
        "source": "def area(a, b):\n    return a + b",
        "text": "<fix>2 return a * b</fix>",
        "calls": [call],
        "status": "resolved",
        "resolved": True,
    }
    return {
        "timeline": [
            step(0, "tools", e(0.25, 0.1875, 0.3125)),
            step(1, "tools", e(0.125, 0.0625, 0.1875), kept=False, why="it forgot", decision="switch"),
            step(2, "persona", e(0.4375, 0.375, 0.5), prompt="", strength=None),
            step(3, "persona", e(0.46875, 0.40625, 0.53125), prompt="Be brief.", decision="stop", decision_why="both"),
        ],
        "baselines": {"tools": e(0.0625, 0.03125, 0.09375), "persona": e(0.34375, 0.28125, 0.40625)},
        "prompts": [
            {
                "name": "tools 1",
                "cycle": "tools",
                "text": "Repair one line.",
                "kl_before": 0.875,
                "kl_after": 0.4375,
                "strength": e(0.515625, 0.484375, 0.546875),
                "target": 0.5,
                "scale": 0.453125,
                "why": "bisected",
            },
            {
                "name": "persona 4",
                "cycle": "persona",
                "text": "Be brief.",
                "kl_before": 0.00048828125,
                "kl_after": 0.0009765625,
                "strength": None,
                "target": 0.625,
                "scale": 1.0,
                "why": "",
            },
        ],
        "stacking": [
            {"times": 1, "expected": 0.5, "measured": e(0.5, 0.46875, 0.53125)},
            {"times": 2, "expected": 0.75, "measured": e(0.6875, 0.65625, 0.71875)},
        ],
        "stacking_note": "falls short at 2",
        "tools": {
            "base": e(0.015625, 0.0, 0.046875),
            "prompted": e(0.21875, 0.15625, 0.28125),
            "baked": e(0.203125, 0.140625, 0.265625),
            "chance": 0.0390625,
            "by_kind": [
                {"kind": "off by one", "base": e(0.0, 0.0, 0.109375), "baked": e(0.328125, 0.171875, 0.421875)}
            ],
            "attempts": [
                attempt,
                {**attempt, "calls": [{**call, "status": "timeout"}], "status": "2 of 3", "resolved": False},
                {**attempt, "calls": [], "text": "", "status": "no patch", "resolved": False},
            ],
        },
        "proposals": [
            {"iteration": 2, "text": "of the a", "score": e(0.3125, 0.25, 0.375), "chosen": False},
            {"iteration": 3, "text": "Be brief.", "score": e(0.453125, 0.390625, 0.515625), "chosen": True},
        ],
        "style": [
            {"statistic": "words_per_text", "base": 9.5, "prompted": 4.25, "half_baked": 7.125, "baked": 5.0},
        ],
        "turns": [
            {"turn": 1, "prompted": e(1.0, 0.9375, 1.0625), "baked": e(0.53125, 0.5, 0.5625)},
            {"turn": 30, "prompted": e(0.25, 0.125, 0.375), "baked": e(0.515625, 0.4921875, 0.546875)},
        ],
        "generations": [
            {
                "prompt": "Be brief.",
                "given": "Once upon",
                "base": " a time there was",
                "prompted": " a time.",
                "half_baked": " a time there.",
                "baked": "",
            },
        ],
        "columns": {"half_baked": "half-baked (.51)", "baked": "fully baked (.97)"},
        "not_kept": "",
        **changes,
    }


EMPTY: dict[str, Any] = {
    "timeline": [],
    "baselines": {},
    "prompts": [],
    "stacking": [],
    "stacking_note": "",
    "tools": {**baked()["tools"], "by_kind": [], "attempts": []},
    "proposals": [],
    "style": [],
    "turns": [],
    "generations": [],
    "not_kept": "no prompt had an effect",
}


def page(document: dict[str, Any]) -> BeautifulSoup:
    return BeautifulSoup(exhibits.render("baked", document), "html.parser")


def section(shown: BeautifulSoup, heading: str) -> BeautifulSoup:
    """What stands between a heading and the next of its size."""
    (start,) = [h for h in shown.find_all("h4") if h.text == heading]
    parts = []
    for sibling in start.find_next_siblings():
        if sibling.name == "h4":
            break
        parts.append(str(sibling))
    return BeautifulSoup("".join(parts), "html.parser")


def rows(table: Tag) -> list[list[float]]:
    """The exact numbers of each row."""
    return [[float(data["value"]) for data in row.find_all("data")] for row in table.tbody.find_all("tr")]


def cells(table: Tag) -> list[list[str]]:
    return [[td.text for td in row.find_all("td")] for row in table.tbody.find_all("tr")]


def classes(tag: Tag) -> set[str]:
    return set(tag["class"])


def leaves(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for inner in value.values() for x in leaves(inner)]
    if isinstance(value, list):
        return [x for inner in value for x in leaves(inner)]
    return [value] if isinstance(value, float) else []


CHOICES = {"cycle", "decision"}


def everywhere(value: Any, text: str) -> Any:
    """`value` with every free text in it replaced."""
    if isinstance(value, dict):
        return {key: v if key in CHOICES else everywhere(v, text) for key, v in value.items()}
    if isinstance(value, list):
        return [everywhere(item, text) for item in value]
    return text if isinstance(value, str) else value


# --- the timeline


def test_timeline_draws_scores_by_cycle_and_rolled_back_ones_hollow() -> None:
    svg = section(page(baked()), "Cycles in turns").svg
    groups = svg.find_all("g")
    assert [classes(g) for g in groups] == [
        {"full", "tools"},
        {"hollow", "tools"},
        {"full", "persona"},
        {"full", "persona"},
    ]
    assert groups[0].title.text == "25.0% (18.8% to 31.2%)"
    assert [t.text for t in svg.find_all("text", class_="name")] == ["tools", "persona"]
    across = [float(g.circle["cx"]) for g in groups]
    steps = [b - a for a, b in itertools.pairwise(across)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.11)


def test_heights_in_a_lane_are_linear_in_the_score() -> None:
    """.25 lies as far above .125 as .125 above 0, which the baseline's line of .0625 halves; intervals around them."""
    svg = section(page(baked()), "Cycles in turns").svg
    first, second = svg.find_all("g", class_="tools")
    high, low = float(first.circle["cy"]), float(second.circle["cy"])
    base = float(svg.find("line", class_="base tools")["y1"])
    assert low > high
    assert (base - low) / (low - high) == pytest.approx(0.5, abs=0.01)
    ends = [float(first.line[end]) for end in ("y1", "y2")]
    assert ends[0] - high == pytest.approx(0.5 * (low - high), abs=0.2)
    assert high - ends[1] == pytest.approx(0.5 * (low - high), abs=0.2)


def test_turns_are_shaded_and_their_ends_marked() -> None:
    svg = section(page(baked()), "Cycles in turns").svg
    tools, persona = svg.find_all("rect", class_="turn")
    assert float(tools["x"]) + float(tools["width"]) == pytest.approx(float(persona["x"]), abs=0.11)
    switch, stop = svg.find_all("line", class_="end")
    assert classes(switch) == {"end", "switch"}
    assert classes(stop) == {"end", "stop"}
    assert float(switch["x1"]) == pytest.approx(float(persona["x"]), abs=0.11)
    assert float(stop["x1"]) == pytest.approx(float(persona["x"]) + float(persona["width"]), abs=0.11)
    assert [t.text for t in svg.find_all("text", class_="middle")] == ["switch", "stop", "1", "2", "3", "4"]


def test_the_line_goes_from_the_baseline_through_what_was_kept_turn_by_turn() -> None:
    points = [
        Point(x, MeasuredValue(value=v, low=v - 1, high=v + 1), x != 1) for x, v in ((0, 2.0), (1, 9.0), (2, 3.0))
    ]
    later = Point(5, MeasuredValue(value=4.0, low=3.0, high=5.0), True)
    lane = Lane("tools", MeasuredValue(value=1.0, low=0.0, high=2.0), [*points, later])
    svg = BeautifulSoup(timeline([lane, Lane("persona", None, [])], [Mark(2, "switch")], list("123456")), "html.parser")
    first, second = (line["points"].split() for line in svg.find_all("polyline"))
    circles = [f"{g.circle['cx']},{g.circle['cy']}" for g in svg.find_all("g")]
    assert first[1:] == [circles[0], circles[2]], "the second was rolled back"
    assert first[0].split(",")[1] == svg.find("line", class_="base")["y1"]
    assert second == [circles[3]]
    assert len(svg.find_all("rect")) == 2
    assert not svg.find(class_="persona"), "a lane without anything is left out"


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e6, 1e-12])
def test_a_lane_of_one_value_has_a_range_around_it(value: float) -> None:
    lane = Lane("tools", None, [Point(0, MeasuredValue(value=value, low=value, high=value), True)])
    svg = BeautifulSoup(timeline([lane], [], ["1"]), "html.parser")
    top, height = float(svg.rect["y"]), float(svg.rect["height"])
    assert float(svg.circle["cy"]) == pytest.approx(top + height / 2, abs=0.1)
    assert 1 <= len(svg.find_all("line", class_="grid")) <= 5


def test_many_iterations_widen_the_drawing() -> None:
    many = [step(i, "tools", e(0.25, 0.125, 0.375)) for i in range(200)]
    svg = section(page(baked(timeline=many)), "Cycles in turns").svg
    assert float(svg["width"]) > 200 * 29
    assert svg.parent["class"] == ["wide"], "and it scrolls"


def test_iterations_are_told_in_words() -> None:
    table = section(page(baked()), "Cycles in turns").table
    assert rows(table) == [
        [1, 0.25, 0.5078125, 0.5],
        [2, 0.125, 0.5078125, 0.5],
        [3, 0.4375, 0.5],
        [4, 0.46875, 0.5078125, 0.5],
    ]
    told = cells(table)
    assert told[0] == [
        "1",
        "toolsRepair one line.",
        "25.0%[18.8%, 31.2%]",
        "0.51target 0.50",
        "kept",
        "continuemay still rise by 0.01",
    ]
    assert told[1][4:] == ["rolled backit forgot", "switchmay still rise by 0.01"]
    assert told[2][1:4] == ["persona", "43.8%[37.5%, 50.0%]", "nonetarget 0.50"]
    assert told[3][5] == "stopboth"


def test_what_was_not_kept_is_told_and_else_not_mentioned() -> None:
    for shown in (exhibits.render("baked", baked()), exhibits.markdown("baked", baked())):
        assert "Not kept" not in shown
    for shown in (exhibits.render("baked", baked(not_kept="why")), exhibits.markdown("baked", baked(not_kept="why"))):
        assert shown.count("Not kept") == 1


# --- prompts, texts, stacking


def test_prompts_with_their_strength_against_the_target() -> None:
    table = section(page(baked()), "Prompts in the weights").table
    assert rows(table) == [[0.875, 0.4375, 0.515625, 0.5, 0.453125], [0.00048828125, 0.0009765625, 0.625, 1.0]]
    tools, persona = table.tbody.find_all("tr")
    assert tools.find(class_="dot")["style"] == "left:51.562%"
    assert tools.find(class_="reach")["style"] == "left:48.438%;right:calc(100% - 54.688%)"
    assert tools.find(class_="mark-line")["style"] == "left:50.000%"
    assert persona.find(class_="track") is None
    assert "no effect of the prompt" in persona.text


def test_a_strength_above_one_widens_the_range() -> None:
    above = [{**baked()["prompts"][0], "strength": e(1.5, 1.0, 2.0)}]
    table = section(page(baked(prompts=above)), "Prompts in the weights").table
    assert table.find(class_="dot")["style"] == "left:75.000%"
    assert "0 to 2" in table.thead.text


def test_generations_stand_side_by_side() -> None:
    table = section(page(baked()), "Side by side").table
    assert [th.text for th in table.thead.find_all("th")] == [
        "after",
        "base",
        "prompted",
        "half-baked (.51)",
        "fully baked (.97)",
    ]
    assert cells(table) == [
        ["Once uponprompt: Be brief.", "·a time there was", "·a time.", "·a time there.", "(empty)"]
    ]


def test_stacking_stands_against_what_is_expected() -> None:
    shown = section(page(baked()), "Half-baking on top of half-baking")
    assert rows(shown.table) == [[1, 0.5, 0.5], [2, 0.6875, 0.75]]
    assert [line["style"] for line in shown.find_all(class_="mark-line")] == ["left:50.000%", "left:75.000%"]
    assert shown.find_all("p")[-1].text == "falls short at 2"
    alone = section(page(baked(stacking=[])), "Half-baking on top of half-baking")
    assert alone.text == "falls short at 2"


# --- tools, proposals, style, turns


def test_tools_against_parent_prompt_and_chance() -> None:
    shown = section(page(baked()), "Tools")
    resolved, kinds = shown.find_all("table")
    assert rows(resolved) == [[0.015625], [0.21875], [0.203125]]
    assert {line["style"] for line in shown.find_all(class_="mark-line")} == {"left:3.906%"}
    assert rows(kinds) == [[0.0, 0.328125]]
    right, timed_out, nothing = shown.find_all("article")
    assert right.find(class_="top").text == "rightresolved"
    assert right.find("li").text == "edit 2 return a * b → 3 passed"
    assert timed_out.find("li").text.endswith(" timeout")
    assert nothing.find("ul") is None
    assert nothing.find_all(class_="text")[-1].text == "(empty)"


def test_proposals_show_which_was_chosen() -> None:
    table = section(page(baked()), "Proposed prompts").table
    assert rows(table) == [[3, 0.3125], [4, 0.453125]]
    assert [tr.find(class_="chosen") is not None for tr in table.tbody.find_all("tr")] == [False, True]
    assert [classes(t) for t in table.find_all(class_="track")] == [{"track", "before"}, {"track", "after"}]
    assert table.find(class_="reach")["style"] == "left:0.000%;right:calc(100% - 47.059%)"  # .25 to .515625


def test_style_is_a_table_of_four_columns() -> None:
    table = section(page(baked()), "Style").table
    assert cells(table) == [["words per text", "9.500", "4.250", "7.125", "5.000"]]


def test_turns_are_curves_with_bands() -> None:
    shown = section(page(baked()), "Over the turns of a conversation")
    assert rows(shown.table) == [[1, 1.0, 0.53125], [30, 0.25, 0.515625]]
    assert [classes(line) for line in shown.find_all("polyline")] == [{"middle"}, {"after"}]
    prompted = [tuple(map(float, p.split(","))) for p in shown.polyline["points"].split()]
    (x1, y1), (x30, y30) = prompted
    assert x30 > x1
    assert y30 > y1, "less is lower"
    assert [c.title.text for c in shown.find_all("circle")][:2] == ["1.00 (0.94 to 1.06)", "0.25 (0.12 to 0.38)"]
    band = [float(p.split(",")[1]) for p in shown.polygon["points"].split()]
    unit = (y30 - y1) / 0.75
    assert band == pytest.approx(
        [y1 + 0.0625 * unit, y30 + 0.125 * unit, y30 - 0.125 * unit, y1 - 0.0625 * unit], abs=0.15
    )


def test_curves_of_one_place_and_beyond_their_range() -> None:
    value = MeasuredValue(value=-2.0, low=-3.0, high=4.0)
    svg = BeautifulSoup(curves([7], [("after", [value])], "{:.1f}"), "html.parser")
    assert 100 < float(svg.circle["cx"]) < 400
    ys = [float(p.split(",")[1]) for p in svg.polygon["points"].split()]
    assert max(ys) <= 238.1
    assert min(ys) >= 17.9
    assert [t.text for t in svg.find_all("text", class_="last")] == ["-2", "0", "2", "4"]


# --- the whole


def test_every_number_of_the_document_is_on_the_page() -> None:
    html = exhibits.render("baked", baked())
    shown = {float(v) for v in re.findall(r'value="(-?[\d.e-]+)"', html)}
    ends = re.findall(r"\[(-?[\d.]+)(%?), (-?[\d.]+)(%?)\]", html)
    shown_ends = {
        round(float(v) / (100 if percent else 1), 4) for low, p, high, q in ends for v, percent in ((low, p), (high, q))
    }
    missing = {x for x in leaves(baked()) if x not in shown and not any(abs(x - end) <= 0.0051 for end in shown_ends)}
    assert missing == set()


@pytest.mark.parametrize("text", [ATTACK, "zzz" * 20_000, "\u202e\x00\x1b[31m", ""])
def test_text_of_a_model_cannot_leave_its_place(text: str) -> None:
    clean, shown = page(baked()), page(everywhere(baked(), text))
    assert shown.find(["script", "img", "a", "link", "iframe", "style"]) is None
    assert not [tag for tag in shown.find_all(True) if any(name.startswith("on") for name in tag.attrs)]
    for kind in ("article", "svg", "tr"):
        assert len(shown.find_all(kind)) == len(clean.find_all(kind))
    assert not [tag for tag in shown.find_all(True) for value in tag.attrs.values() if "zzz" in str(value)]
    assert "\u202e" not in str(shown)
    if text == ATTACK:
        assert shown.find("article").find(class_="text").text == ATTACK.replace("\n", "↵\n")


def test_markdown_has_the_main_numbers_and_no_text_of_a_model() -> None:
    lines = exhibits.markdown("baked", baked())
    assert lines.startswith("**3 of 4 iterations kept**, 1 switches of cycle")
    assert "| tools 1 | 0.8750 → 0.4375 | 0.52 (0.48 to 0.55) | 0.50 |" in lines
    assert "| persona 4 | 0.0005 → 0.0010 | no effect of the prompt | 0.62 |" in lines
    assert "| baked, no prompt | 20.3% (14.1% to 26.6%) |" in lines
    assert "Present at turn 30: baked 51.6% (49.2% to 54.7%), prompted 25.0% (12.5% to 37.5%)." in lines
    assert "Be brief" not in lines
    many = baked(prompts=baked()["prompts"] * 30, not_kept="why")
    assert len(exhibits.markdown("baked", many).splitlines()) <= 30
    attacked = MarkdownIt("commonmark").enable("table").render(exhibits.markdown("baked", everywhere(baked(), ATTACK)))
    assert BeautifulSoup(attacked, "html.parser").find(["script", "img", "a"]) is None


def test_what_is_empty_says_so_in_words() -> None:
    shown = page(baked(**EMPTY))
    said = [p.text for p in shown.find_all("p", class_="note")]
    for sentence in (
        "Not kept: no prompt had an effect",
        "No iteration was run.",
        "No prompt was baked.",
        "No text is shown.",
        "Stacking was not measured.",
        "No attempt is shown.",
        "No prompt was proposed.",
        "Style was not measured.",
        "Drift was not measured.",
    ):
        assert sentence in said
    assert shown.find("svg") is None
    assert "No prompt was baked." in exhibits.markdown("baked", baked(**EMPTY))


def test_one_cycle_alone_has_one_lane() -> None:
    alone = baked(timeline=baked()["timeline"][:1], baselines={"tools": e(0.0625, 0.03125, 0.09375), "persona": None})
    svg = section(page(alone), "Cycles in turns").svg
    assert [t.text for t in svg.find_all("text", class_="name")] == ["tools"]


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("mood", "good", "at mood: Extra inputs"),
        ("timeline.0.cycle", "memory", "at timeline.0.cycle"),
        ("timeline.0.decision", "wait", "at timeline.0.decision"),
        ("timeline.1.number", -1, "at timeline.1.number"),
        ("timeline.0.score.value", float("nan"), "at timeline.0.score.value"),
        ("timeline.0.score.low", 0.5, "at timeline.0.score: .* from low to high"),
        ("timeline.0.strength", "half", "at timeline.0.strength"),
        ("baselines.tools.high", float("inf"), "at baselines.tools.high"),
        ("prompts.0.kl_after", float("nan"), "at prompts.0.kl_after"),
        ("stacking.0.times", 0, "at stacking.0.times"),
        ("tools.chance", 1.5, "at tools.chance"),
        ("tools.base.low", -0.1, "at tools.base.low"),
        ("tools.attempts.0.calls.0.status", None, "at tools.attempts.0.calls.0.status"),
        ("turns.0.turn", 0, "at turns.0.turn"),
        ("generations.0.baked", 3, "at generations.0.baked"),
        ("columns.baked", None, "at columns.baked"),
    ],
)
def test_document_that_breaks_the_schema_is_refused(path: str, value: Any, where: str) -> None:
    wrong = copy.deepcopy(baked())
    *way, last = path.split(".")
    place: Any = wrong
    for part in way:
        place = place[int(part) if part.isdecimal() else part]
    place[int(last) if last.isdecimal() else last] = value
    for show in (exhibits.render, exhibits.markdown):
        with pytest.raises(exhibits.ExhibitError, match=where):
            show("baked", wrong)


def test_styles_are_of_this_exhibit_alone() -> None:
    assert ".exhibit-baked .drawing" in exhibits.style()
    for selector in re.findall(r"(?m)^([^@{}]+)\{", exhibits.style()):
        assert all(part.strip().startswith(".exhibit-") for part in selector.split(",")), selector
