"""What practice and character show to a person: the numbers given, escaped text, and no document with a hole in it."""

import copy
import re
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt

from forge_assets.report import exhibits
from forge_assets.report.components.measures import heat_map, tracks
from training_core.exhibit import MeasuredValue

ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">|\n![p](http://evil.example/p.png) $x^$ --> &amp;'


def e(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def practice(**changes: Any) -> dict[str, Any]:
    call = {"tool": "calculator", "input": "17+25", "output": "42", "status": "ok"}
    attempt = {
        "level": 4,
        "prompt": "17+25",
        "hint": 0,
        "given": "",
        "written": " <<17+25=42>> The answer is 42",
        "calls": [call],
        "answer": "42",
        "expected": "42",
        "right": True,
    }
    return {
        "target": 0.75,
        "edge_before": 0,
        "edge_after": 3,
        "levels": [
            {
                "level": 1,
                "families": ["copy", "first"],
                "before": e(0.125, 0.0625, 0.25),
                "after": e(0.9375, 0.875, 0.96875),
                "asked": 64,
            },
            {
                "level": 4,
                "families": ["sum"],
                "before": e(0.0, 0.0, 0.03125),
                "after": e(0.4375, 0.375, 0.5),
                "asked": 48,
            },
        ],
        "questions": [
            {
                "level": 4,
                "family": "sum",
                "prompt": "17+25",
                "answer": "42",
                "solution": "<<17+25=42>>",
                "check": "exact",
                "source": "chain_sum",
            },
            {
                "level": 1,
                "family": "copy",
                "prompt": "copy b a",
                "answer": "b a",
                "solution": "",
                "check": "exact",
                "source": "copy",
            },
        ],
        "attempts": [
            attempt,
            {
                **attempt,
                "level": 1,
                "prompt": "copy b a",
                "hint": 2,
                "given": " b",
                "written": " b",
                "calls": [],
                "answer": "b b",
                "expected": "b a",
                "right": False,
            },
            {**attempt, "hint": 3, "calls": [{**call, "tool": "python", "status": "timeout"}]},
        ],
        "rounds": [
            {
                "round": 1,
                "levels": [
                    {"level": 1, "attempts": 40, "right_alone": 10, "right_with_hint": 5, "shown": 20, "retired": 2}
                ],
            },
            {
                "round": 2,
                "levels": [
                    {"level": 1, "attempts": 32, "right_alone": 24, "right_with_hint": 8, "shown": 0, "retired": 12},
                    {"level": 4, "attempts": 16, "right_alone": 0, "right_with_hint": 4, "shown": 8, "retired": 0},
                ],
            },
        ],
        "forgetting": {
            "levels": [1, 4],
            "stages": [
                {"name": "before", "accuracy": [0.9375, 0.0]},
                {"name": "next level", "accuracy": [0.5, 0.4375]},
            ],
            "arms": [
                {"name": "none", "accuracy": [0.5, 0.4375], "forgetting": e(0.4375, 0.3125, 0.5), "tokens": 0},
                {
                    "name": "dreams",
                    "accuracy": [0.875, 0.375],
                    "forgetting": e(0.0625, -0.03125, 0.125),
                    "tokens": 12345,
                },
            ],
            "chosen": "dreams",
        },
        "spend": {"usd": 1.5, "frontier_questions": 7, "generator_questions": 1200, "note": "two models"},
        **changes,
    }


def character(**changes: Any) -> dict[str, Any]:
    return {
        "not_kept": "the rules cost 4.5 points",
        "rules": [
            {
                "name": "Honesty",
                "prompt": "Always tell the truth.",
                "kl_before": 0.125,
                "kl_after": 0.03125,
                "strength": 0.75,
                "base": e(0.5, 0.375, 0.625),
                "prompted": e(0.5625, 0.4375, 0.6875),
                "baked": e(0.75, 0.625, 0.875),
            },
            {
                "name": "Growth",
                "prompt": "Learn.",
                "kl_before": 0.000001,
                "kl_after": 0.25,
                "strength": None,
                "base": e(0.46875, 0.375, 0.625),
                "prompted": e(0.5, 0.4375, 0.6875),
                "baked": e(0.25, 0.125, 0.4375),
            },
        ],
        "pairs": [
            {
                "rule": "Honesty",
                "situation": "He broke a cup.",
                "better": "He said so.",
                "worse": "He hid it.",
                "base_margin": -0.0625,
                "baked_margin": 0.25,
            },
        ],
        "council": {
            "archetypes": [{"name": "Sage", "prompt": "Think slowly.", "accuracy": 0.375}],
            "agreement": 0.2099,
            "single": e(0.5, 0.375, 0.625),
            "self_consistency": e(0.53125, 0.40625, 0.65625),
            "council": e(0.5625, 0.4375, 0.6875),
            "tokens": {"single": 20.5, "self_consistency": 101.0, "council": 104.0},
            "votes": [
                {
                    "question": "first of b a",
                    "answer": "b",
                    "votes": [{"archetype": "Sage", "answer": "b"}, {"archetype": "Jester", "answer": "a"}],
                    "decided": "a",
                    "right": False,
                },
            ],
        },
        "ooda": {
            "accuracy": e(0.59375, 0.46875, 0.71875),
            "direct": e(0.5, 0.375, 0.625),
            "tokens": 31.25,
            "direct_tokens": 20.5,
            "episodes": [
                {
                    "question": "2+3",
                    "expected": "5",
                    "steps": [{"stage": "observe", "text": "entropy 1.2"}, {"stage": "act", "text": "use a tool"}],
                    "answer": "5",
                    "right": True,
                },
            ],
        },
        "temperature": {
            "edges": [0.3, 0.6, 1.2, 2.4],
            "confusion": [[6, 2, 0], [1, 4, 3], [0, 0, 0]],
            "model": e(0.625, 0.375, 0.8125),
            "best_possible": e(0.6875, 0.4375, 0.875),
            "within_one": 0.96875,
            "chance": 0.1,
        },
        **changes,
    }


DOCUMENTS = {"practice": practice, "character": character}


def page(name: str, document: Any) -> BeautifulSoup:
    return BeautifulSoup(exhibits.render(name, document), "html.parser")


def section(shown: BeautifulSoup, heading: str) -> BeautifulSoup:
    """What stands between a heading and the next of its size."""
    (start,) = [h for h in shown.find_all("h4") if h.text == heading]
    parts = []
    for each in start.find_next_siblings():
        if each.name == "h4":
            break
        parts.append(str(each))
    return BeautifulSoup("".join(parts), "html.parser")


def rows(table: Tag) -> list[list[float]]:
    """The exact numbers of each row."""
    return [[float(data["value"]) for data in row.find_all("data")] for row in table.tbody.find_all("tr")]


def leaves(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for each in value.values() for x in leaves(each)]
    if isinstance(value, list):
        return [x for each in value for x in leaves(each)]
    return [value] if isinstance(value, float) else []


def everywhere(value: Any, text: str) -> Any:
    """`value` with every text in it replaced."""
    if isinstance(value, dict):
        return {key: everywhere(v, text) for key, v in value.items()}
    if isinstance(value, list):
        return [everywhere(item, text) for item in value]
    return text if isinstance(value, str) else value


# --- practice


def test_levels_before_and_after() -> None:
    shown = page("practice", practice())
    table = section(shown, "Accuracy by level").table
    assert rows(table) == [[1, 0.125, 0.9375, 64], [4, 0.0, 0.4375, 48]]
    assert table.tbody.tr.text.startswith("1copyfirst12.5%[6.2%, 25.0%]93.8%[87.5%, 96.9%]64")
    before, after = table.tbody.tr.find_all(class_="track")
    assert [before["class"], after["class"]] == [["track", "before"], ["track", "after"]]
    assert before.find(class_="reach")["style"] == "left:6.250%;right:calc(100% - 25.000%)"
    assert after.find(class_="dot")["style"] == "left:93.750%"
    assert {line["style"] for line in table.find_all(class_="mark-line")} == {"left:75.000%"}


@pytest.mark.parametrize(
    ("before", "after", "said", "kind"),
    [(0, 3, "none → level 3", "up"), (3, 2, "level 3 → level 2", "down"), (2, 2, "level 2 → level 2", "same")],
)
def test_edge_comes_first(before: int, after: int, said: str, kind: str) -> None:
    shown = page("practice", practice(edge_before=before, edge_after=after))
    first = next(shown.div.children)
    assert first.text == f"Edge: {said}"
    assert first.b["class"] == [kind]
    assert exhibits.markdown("practice", practice(edge_before=before, edge_after=after)).startswith(f"**Edge {said}**")


def test_rounds_are_shares_of_their_attempts() -> None:
    table = section(page("practice", practice()), "Rounds of practice").table
    assert [th.text for th in table.thead.find_all("th")] == ["round", "level 1", "level 4"]
    assert rows(table) == [[1, 40, 2], [2, 32, 12, 16, 0]]
    widths = [[i["style"] for i in bar.find_all("i")] for bar in table.find_all(class_="bar")]
    assert widths[0] == ["width:25.000%", "width:12.500%", "width:50.000%"]
    assert widths[2] == ["width:0.000%", "width:25.000%", "width:50.000%"]
    assert table.find(class_="bar")["title"] == "10 right alone, 5 with a hint, 20 shown, of 40"
    first_round = table.tbody.find_all("tr")[0].find_all("td")
    assert first_round[2].text == "", "level 4 was not reached then"


def test_attempts_show_hint_calls_and_outcome() -> None:
    alone, hinted, told = section(page("practice", practice()), "Attempts").find_all("article")
    assert alone.find(class_="top").text == "rightlevel 4no hint"
    assert alone.find(class_="given") is None
    assert alone.find("li").text == "calculator 17+25 → 42"
    assert hinted.find(class_="top").text == "wronglevel 1two thirds were shown"
    assert hinted.find(class_="given").text == " b"
    assert hinted.find(class_="calls") is None
    assert hinted.text.endswith("b b / b a")
    assert told.find(class_="top").text == "rightlevel 4all was shown"
    assert told.find("li").text == "python 17+25 → 42 timeout"


def test_forgetting_is_a_heat_map_and_arms_with_intervals() -> None:
    shown = section(page("practice", practice()), "Forgetting")
    heat, arms = shown.find_all("table")
    assert [th.text for th in heat.thead.find_all("th")] == ["accuracy", "level 1", "level 4"]
    assert [[td.text for td in tr.find_all("td")] for tr in heat.tbody.find_all("tr")] == [
        ["94%", "0%"],
        ["50%", "44%"],
    ]
    assert [td["style"] for td in heat.find_all("td")] == ["--v:0.9375", "--v:0.0", "--v:0.5", "--v:0.4375"]
    assert rows(arms) == [[0.4375, 0.46875, 0], [0.0625, 0.625, 12345]]
    assert [tr.find(class_="chosen") is not None for tr in arms.tbody.find_all("tr")] == [False, True]
    none, dreams = arms.find_all(class_="track")
    assert none.find(class_="reach")["style"] == "left:81.250%;right:calc(100% - 100.000%)"  # .3125 and .5 in -.5 .. .5
    assert dreams.find(class_="reach")["style"] == "left:46.875%;right:calc(100% - 62.500%)"
    assert {line["style"] for line in arms.find_all(class_="mark-line")} == {"left:50.000%"}


def test_questions_and_spend() -> None:
    shown = section(page("practice", practice()), "Questions")
    assert [[td.text for td in tr.find_all("td")] for tr in shown.table.tbody.find_all("tr")] == [
        ["4", "sum", "17+25", "<<17+25=42>>", "42", "chain_sumexact"],
        ["1", "copy", "copy b a", "", "b a", "copyexact"],
    ]
    assert shown.find_all("p")[-1].text == "Questions: 1,200 of generators, 7 of other models, for 1.50 USD. two models"


# --- character


def test_rules_stand_beside_base_and_prompt() -> None:
    table = section(page("character", character()), "Rules").table
    assert rows(table) == [[0.5, 0.5625, 0.75, 0.125, 0.03125], [0.46875, 0.5, 0.25, 0.000001, 0.25]]
    honesty, growth = table.tbody.find_all("tr")
    assert honesty.text.startswith("HonestyAlways tell the truth.50.0%[37.5%, 62.5%]")
    assert honesty.text.endswith("0.1250 → 0.0312strength +0.75")
    assert growth.text.endswith("strength no effect of the prompt")
    assert [track["class"][1] for track in honesty.find_all(class_="track")] == ["before", "middle", "after"]
    assert honesty.find_all(class_="dot")[2]["style"] == "left:75.000%"
    assert honesty.find(class_="mark-line")["style"] == "left:50.000%"


def test_pairs_show_which_is_better_and_the_sign_of_the_margin() -> None:
    (card,) = section(page("character", character()), "Scenario pairs").find_all("article")
    assert card.find(class_="better").text == "He said so."
    assert card.find(class_="worse").text == "He hid it."
    assert (card.find(class_="wrong").text, card.find(class_="right").text) == ("-0.0625", "+0.2500")


def test_council_against_its_baselines() -> None:
    shown = section(page("character", character()), "Council of archetypes")
    compared, voices, votes = shown.find_all("table")
    assert rows(compared) == [[0.5, 20.5], [0.53125, 101.0], [0.5625, 104.0]]
    assert rows(voices) == [[0.375]]
    assert "kappa): +0.210" in shown.text
    assert [td.text for td in votes.find_all("td")] == ["Sage", "b", "Jester", "a"]
    assert shown.find("article").text.startswith("wrongfirst of b a")
    assert shown.find("article").text.endswith("a / b")
    none = page("character", character(council={**character()["council"], "agreement": None}))
    assert "kappa): not defined" in none.text


def test_episodes_run_step_by_step() -> None:
    shown = section(page("character", character()), "Observe, orient, decide, act")
    assert rows(shown.table) == [[0.5, 20.5], [0.59375, 31.25]]
    assert [li.text for li in shown.find("ol").find_all("li")] == ["observeentropy 1.2", "actuse a tool"]
    assert shown.find("article").text.endswith("5 / 5")


def test_confusion_is_coloured_by_shares_of_rows_over_the_largest() -> None:
    shown = section(page("character", character()), "At which temperature was this drawn?")
    heat, compared = shown.find_all("table")
    assert [th.text for th in heat.thead.find_all("th")][1:] == ["0.30 to 0.60", "0.60 to 1.20", "1.20 to 2.40"]
    assert [int(td.text) for td in heat.find_all("td")] == [6, 2, 0, 1, 4, 3, 0, 0, 0]
    colours = [float(td["style"].removeprefix("--v:")) for td in heat.find_all("td")]
    assert colours == [1.0, 0.25 / 0.75, 0.0, 0.125 / 0.75, 0.5 / 0.75, 0.5, 0.0, 0.0, 0.0]
    assert rows(compared) == [[0.625], [0.6875]]
    assert {line["style"] for line in compared.find_all(class_="mark-line")} == {"left:10.000%"}
    assert [float(data["value"]) for data in shown.find("p").find_all("data")] == [0.1, 0.96875]


# --- both


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_number_of_the_document_is_on_the_page(name: str) -> None:
    document = DOCUMENTS[name]()
    html = exhibits.render(name, document)
    shown = {float(v) for v in re.findall(r'(?:value="|--v:)(-?[\d.e-]+)', html)}
    shown |= {round(float(v) / 100, 7) for v in re.findall(r"(?:left:|100% - )(-?[\d.]+)%", html)}
    ranges = {0.3, 0.6, 1.2, 2.4} if name == "character" else set()  # in the names of the ranges
    arms = [0.3125, 0.5, -0.03125, 0.125] if name == "practice" else []  # drawn from -.5 to .5
    shown |= {x for x in arms if x + 0.5 in shown}
    assert set(leaves(document)) - shown - ranges == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_text_of_a_model_cannot_leave_its_place(name: str) -> None:
    clean, shown = page(name, DOCUMENTS[name]()), page(name, everywhere(DOCUMENTS[name](), ATTACK))
    assert shown.find(["script", "img", "a", "link", "iframe", "style"]) is None
    assert not [tag for tag in shown.find_all(True) if any(each.startswith("on") for each in tag.attrs)]
    assert len(shown.find_all("article")) == len(clean.find_all("article"))
    assert len(shown.find_all("td")) == len(clean.find_all("td"))
    assert shown.find("article").find(class_=["text", "prose"]).text == ATTACK.replace("\n", "↵\n")
    text = exhibits.markdown(name, everywhere(DOCUMENTS[name](), ATTACK))
    rendered = BeautifulSoup(MarkdownIt("commonmark").enable("table").render(text), "html.parser")
    assert rendered.find(["script", "img", "a"]) is None
    plain = BeautifulSoup(
        MarkdownIt("commonmark").enable("table").render(exhibits.markdown(name, DOCUMENTS[name]())), "html.parser"
    )
    cells = [[len(row.find_all("td")) for row in each.find_all("tr")] for each in (rendered, plain)]
    assert cells[0] == cells[1]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tooltips_hold_no_text_of_the_document(name: str) -> None:
    shown = page(name, everywhere(DOCUMENTS[name](), "zzz"))
    assert not [tag for tag in shown.find_all(True) for value in tag.attrs.values() if "zzz" in str(value)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_markdown_shows_the_main_numbers_in_at_most_30_lines(name: str) -> None:
    assert len(exhibits.markdown(name, DOCUMENTS[name]()).splitlines()) < 30
    levels = [{**practice()["levels"][0], "level": level} for level in range(1, 11)]
    forgetting = {**practice()["forgetting"], "arms": practice()["forgetting"]["arms"] * 20}
    many = {
        "practice": practice(levels=levels, forgetting=forgetting),
        "character": character(rules=character()["rules"] * 20),
    }
    assert len(exhibits.markdown(name, many[name]).splitlines()) <= 30


def test_markdown_of_practice_and_character() -> None:
    text = exhibits.markdown("practice", practice())
    assert "| 1 | 12.5% (6.2% to 25.0%) | 93.8% (87.5% to 96.9%) | 64 |" in text
    assert "| dreams (chosen) | +6.2% (-3.1% to +12.5%) | 12345 |" in text
    assert "1200 of generators, 7 of other models, 1.50 USD" in text
    text = exhibits.markdown("character", character())
    strength = "| Honesty | 50.0% (37.5% to 62.5%) | 56.2% (43.8% to 68.8%) | 75.0% (62.5% to 87.5%) | +0.75 |"
    assert strength in text
    assert "| council | 56.2% (43.8% to 68.8%) | 104 |" in text
    assert "Own temperature: 62.5% (37.5% to 81.2%) of 3 ranges right" in text


def test_what_is_empty_says_so_in_words() -> None:
    none = {"levels": [], "stages": [], "arms": [], "chosen": ""}
    shown = page("practice", practice(levels=[], questions=[], attempts=[], rounds=[], forgetting=none))
    assert [p.text for p in shown.find_all("p", class_="note")][1:-1] == [
        "No level was measured.",
        "Nothing was practised.",
        "No attempt is shown.",
        "Forgetting was not measured.",
        "No question is shown.",
    ]
    assert shown.find(["table", "article"]) is None
    text = exhibits.markdown("practice", practice(levels=[], forgetting=none))
    assert "No level was measured." in text
    assert "Forgetting was not measured." in text
    council = {**character()["council"], "archetypes": [], "votes": []}
    shown = page(
        "character", character(rules=[], pairs=[], council=council, ooda={**character()["ooda"], "episodes": []})
    )
    said = [p.text for p in shown.find_all("p", class_="note")]
    for sentence in ("No rule was baked.", "No pair is shown.", "There is no archetype.", "No vote is shown."):
        assert sentence in said
    assert "No episode is shown." in said


def _with(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *way, last = path.split(".")
    place: Any = changed
    for step in way:
        place = place[int(step) if step.isdecimal() else step]
    place[int(last) if last.isdecimal() else last] = value
    return changed


@pytest.mark.parametrize(
    ("name", "path", "value", "where"),
    [
        ("practice", "mood", "good", "at mood: Extra inputs"),
        ("practice", "target", 1.5, "at target"),
        ("practice", "edge_after", 11, "at edge_after"),
        ("practice", "levels.0.level", 0, "at levels.0.level"),
        ("practice", "levels.0.before.low", 0.3, "at levels.0.before: .* from low to high"),
        ("practice", "levels.0.after.high", 1.01, "at levels.0.after.high"),
        ("practice", "attempts.0.hint", 4, "at attempts.0.hint"),
        ("practice", "rounds.0.levels.0.attempts", 34, "at rounds.0.levels.0: .* are 35 of 34 attempts"),
        ("practice", "forgetting.stages.0.accuracy", [0.5], "at forgetting: .* 'before' has 1 accuracies for 2 levels"),
        ("practice", "forgetting.arms.1.accuracy", [0.5] * 3, "at forgetting: .* 'dreams' has 3 accuracies"),
        ("practice", "spend.usd", -1.0, "at spend.usd"),
        ("character", "rules.0.strength", "high", "at rules.0.strength"),
        ("character", "rules.0.baked.value", -0.1, "at rules.0.baked.value"),
        ("character", "temperature.edges", [0.3, 0.6, 0.6, 2.4], "at temperature: .* edges must rise"),
        ("character", "temperature.edges", [0.3, 0.6, 1.2], "at temperature: .* confusion must be 2 x 2"),
        ("character", "temperature.confusion.1", [1, 4], "at temperature: .* confusion must be 3 x 3"),
        ("character", "council.tokens.council", -1.0, "at council.tokens.council"),
        ("character", "pairs.0.base_margin", float("nan"), "at pairs.0.base_margin"),
    ],
)
def test_document_that_breaks_the_schema_is_refused(name: str, path: str, value: Any, where: str) -> None:
    wrong = _with(DOCUMENTS[name](), path, value)
    for show in (exhibits.render, exhibits.markdown):
        with pytest.raises(exhibits.ExhibitError, match=where):
            show(name, wrong)


def test_tracks_end_at_the_edge_of_their_range() -> None:
    inner = BeautifulSoup(tracks([("after", MeasuredValue(value=2.0, low=-1.0, high=3.0))], 0.25), "html.parser")
    assert inner.find(class_="reach")["style"] == "left:0.000%;right:calc(100% - 100.000%)"
    assert inner.find(class_="dot")["style"] == "left:100.000%"
    assert inner.find(class_="track")["title"] == "200.0% (-100.0% to 300.0%)"


def test_heat_map_escapes_its_names() -> None:
    shown = BeautifulSoup(heat_map("<i>", ["<b>c"], [("<b>r", [(0.5, "<b>")])]), "html.parser")
    assert [th.text for th in shown.find_all("th")] == ["<i>", "<b>c", "<b>r"]
    assert shown.find("td").text == "<b>"


def test_styles_are_on_the_page_and_of_these_exhibits_alone() -> None:
    for selector in re.findall(r"(?m)^([^@{}]+)\{", exhibits.style()):
        assert all(part.strip().startswith(".exhibit-") for part in selector.split(",")), selector
    assert ".exhibit-measures .tracks" in exhibits.style()


def test_rules_that_were_not_kept_are_told() -> None:
    for shown in (exhibits.render("character", character()), exhibits.markdown("character", character())):
        assert shown.count("Not kept") == 1
    kept = character() | {"not_kept": ""}
    for shown in (exhibits.render("character", kept), exhibits.markdown("character", kept)):
        assert "Not kept" not in shown
