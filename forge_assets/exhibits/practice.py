"""The exhibit `practice`: what a model could do before and after it practised, on what, how, and what it forgot.

Accuracies are shares of questions answered exactly.
"""

from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Self

from pydantic import Field, model_validator

from forge_assets.exhibits.calls import ShownCall, list_items
from forge_assets.exhibits.exhibit import Document, Exhibit
from forge_assets.exhibits.markup import each, markdown_table, number, plain, table, visible
from forge_assets.exhibits.measured import (
    PERCENT,
    Accuracy,
    Count,
    Level,
    Measured,
    Share,
    badge,
    heat_map,
    measured,
    measured_text,
    note,
    text,
    tracks,
)

_HINTS = ("no hint", "a third was shown", "two thirds were shown", "all was shown")
_MARKDOWN_ARMS = 6
_POINTS = "{:+.1%}"


class LevelResult(Document):
    """One level: its kinds of question, and the accuracy on `asked` test questions before and after."""

    level: Level
    families: list[str]
    before: Accuracy
    after: Accuracy
    asked: Count


class ShownQuestion(Document):
    """A question that was practised on; `check` says how its answer is known."""

    level: Level
    family: str
    prompt: str
    answer: str
    solution: str
    check: str
    source: str


class ShownAttempt(Document):
    """An attempt: `given` is the text that the hint showed, `written` what followed, tool output included."""

    level: Level
    prompt: str
    hint: Annotated[int, Field(ge=0, lt=len(_HINTS))]
    given: str
    written: str
    calls: list[ShownCall]
    answer: str
    expected: str
    right: bool


class RoundLevel(Document):
    """What happened at one level in one round."""

    level: Level
    attempts: Count
    right_alone: Count
    right_with_hint: Count
    shown: Count
    retired: Count

    @model_validator(mode="after")
    def _parts(self) -> Self:
        parts = self.right_alone + self.right_with_hint + self.shown
        if parts > self.attempts:
            raise ValueError(f"right alone, right with a hint and shown are {parts} of {self.attempts} attempts")
        return self


class Round(Document):
    """One round of practice."""

    round: Count
    levels: list[RoundLevel]


class Stage(Document):
    """The accuracy at every level at one time."""

    name: str
    accuracy: list[Share]


class Arm(Stage):
    """One way to keep what was learned; forgetting is accuracy lost on earlier levels, `tokens` what keeping cost."""

    forgetting: Measured
    tokens: Count


class Forgetting(Document):
    """What learning the next levels does to the earlier ones. Accuracies are those of `levels`."""

    levels: list[Level]
    cache: list[Stage]
    arms: list[Arm]
    chosen: str

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        for row in (*self.cache, *self.arms):
            if len(row.accuracy) != len(self.levels):
                raise ValueError(f"{row.name!r} has {len(row.accuracy)} accuracies for {len(self.levels)} levels")
        return self


class Spend(Document):
    """Where the questions come from and what was paid for them."""

    usd: Annotated[float, Field(ge=0)]
    frontier_questions: Count
    generator_questions: Count
    note: str


class PracticeShown(Document):
    """The whole exhibit. An edge is the hardest level that is answered with the accuracy `target`; 0 is none."""

    target: Share
    edge_before: Annotated[int, Field(ge=0, le=10)]
    edge_after: Annotated[int, Field(ge=0, le=10)]
    levels: list[LevelResult]
    questions: list[ShownQuestion]
    attempts: list[ShownAttempt]
    rounds: list[Round]
    forgetting: Forgetting
    spend: Spend


def html(shown: PracticeShown) -> str:
    """The exhibit as HTML: edge, levels, rounds, attempts, forgetting, questions, spend."""
    moved = "up" if shown.edge_after > shown.edge_before else "down" if shown.edge_after < shown.edge_before else "same"
    return (
        f'<p class="headline">Edge: <b class="{moved}">{_edge(shown.edge_before)} → {_edge(shown.edge_after)}</b></p>'
        + note(f"the hardest level that is answered right {number(shown.target, '{:.0%}')} of the time")
        + f"<h4>Accuracy by level</h4>{_levels(shown)}<h4>Rounds of practice</h4>{_rounds(shown.rounds)}"
        f"<h4>Attempts</h4>{_attempts(shown.attempts)}<h4>Forgetting</h4>{_forgetting(shown.forgetting)}"
        f"<h4>Questions</h4>{_questions(shown.questions)}{_spend(shown.spend)}"
    )


def markdown(shown: PracticeShown) -> str:
    """Edge, levels, arms and spend as Markdown, without any text that a model wrote."""
    lines = [
        f"**Edge {_edge(shown.edge_before)} → {_edge(shown.edge_after)}** (the hardest level at {shown.target:.0%})",
        "",
    ]
    levels = [[str(x.level), measured_text(x.before), measured_text(x.after), str(x.asked)] for x in shown.levels]
    columns = ("level", "before (95 %)", "after (95 %)", "questions")
    lines += markdown_table(columns, levels, 10) if levels else ["No level was measured."]
    arms = [
        [
            plain(arm.name) + (" (chosen)" if arm.name == shown.forgetting.chosen else ""),
            measured_text(arm.forgetting, _POINTS),
            str(arm.tokens),
        ]
        for arm in shown.forgetting.arms
    ]
    arm_columns = ("kept by", "forgotten (95 %)", "tokens")
    lines += ["", *(markdown_table(arm_columns, arms, _MARKDOWN_ARMS) if arms else ["Forgetting was not measured."])]
    spend = shown.spend
    lines += ["", f"Questions: {spend.generator_questions} of generators, {spend.frontier_questions} of other models, "]
    lines[-1] += f"{spend.usd:.2f} USD. Attempts and rounds: `forge report --html report.html`"
    return "\n".join(lines)


def _edge(level: int) -> str:
    return f"level {level}" if level else "none"


def _levels(shown: PracticeShown) -> str:
    if not shown.levels:
        return note("No level was measured.")
    rows = [
        [
            number(x.level, "{}"),
            "".join(f'<span class="family">{visible(family)}</span>' for family in x.families),
            tracks([("before", x.before), ("after", x.after)], shown.target),
            measured(x.before),
            measured(x.after),
            number(x.asked, "{}"),
        ]
        for x in shown.levels
    ]
    legend = '<span class="before"><span class="key"></span></span>before <span class="after"><span class="key"></span>'
    legend += f"</span>after, each with its 95 % interval; the dashed line is {shown.target:.0%}"
    return table(("level", "kinds of question", "0 to 100 %", "before", "after", "asked"), rows) + note(legend)


def _rounds(rounds: Sequence[Round]) -> str:
    if not rounds:
        return note("Nothing was practised.")
    levels = sorted({x.level for made in rounds for x in made.levels})
    rows = []
    for made in rounds:
        at = {x.level: x for x in made.levels}
        rows.append([number(made.round, "{}"), *(_bar(at[level]) if level in at else "" for level in levels)])
    legend = "".join(
        f'<span class="{kind}"><span class="key"></span></span>{name}'
        for kind, name in (("alone", "right alone"), ("hinted", "right with a hint"), ("told", "shown"))
    )
    legend += (
        '<span class="rest"><span class="key"></span></span>wrong; below: attempts, and questions retired as known'
    )
    return table(("round", *(f"level {level}" for level in levels)), rows) + note(legend)


def _bar(at: RoundLevel) -> str:
    parts = (("alone", at.right_alone), ("hinted", at.right_with_hint), ("told", at.shown))
    said = f"{at.right_alone} right alone, {at.right_with_hint} with a hint, {at.shown} shown, of {at.attempts}"
    segments = "".join(
        f'<i class="{kind}" style="width:{100 * n / max(1, at.attempts):.3f}%"></i>' for kind, n in parts
    )
    counts = f"{number(at.attempts, '{}')} · {number(at.retired, '{}')}"
    return f'<span class="bar" title="{said}">{segments}</span><small>{counts}</small>'


def _attempts(attempts: Sequence[ShownAttempt]) -> str:
    return each([_attempt(x) for x in attempts], "No attempt is shown.", lambda x: f'<div class="cards">{x}</div>')


def _attempt(shown: ShownAttempt) -> str:
    given = f'<span class="given">{visible(shown.given, "none")}</span>' if shown.given else ""
    calls = list_items(shown.calls)
    return (
        f'<article><p class="top">{badge(shown.right)}<span>level {number(shown.level, "{}")}</span>'
        f"<span>{_HINTS[shown.hint]}</span></p>{text(shown.prompt)}"
        f'<div class="label">The model wrote</div><div class="text">{given}{visible(shown.written, "none")}</div>'
        + (f'<div class="label">Tools</div><ul class="calls">{calls}</ul>' if calls else "")
        + f'<div class="label">Answer, and the right one</div>'
        f'<div class="text"><span class="{"right" if shown.right else "wrong"}">{visible(shown.answer)}</span> '
        f"/ {visible(shown.expected)}</div></article>"
    )


def _forgetting(shown: Forgetting) -> str:
    columns = [f"level {level}" for level in shown.levels]
    parts = []
    if shown.cache:
        parts.append(heat_map("accuracy", columns, [(x.name, _cells(x)) for x in shown.cache]))
    if not shown.arms:
        return "".join(parts) + note("Forgetting was not measured.")
    widest = max(0.05, *(abs(end) for arm in shown.arms for end in (arm.forgetting.low, arm.forgetting.high)))
    rows = [
        [
            f"<b>{visible(arm.name)}</b>" + (' <span class="chosen">chosen</span>' if arm.name == shown.chosen else ""),
            tracks([("after", arm.forgetting)], 0.0, -widest, widest, _POINTS),
            measured(arm.forgetting, _POINTS),
            number(sum(arm.accuracy) / max(1, len(arm.accuracy)), PERCENT),
            number(arm.tokens, "{:,}"),
        ]
        for arm in shown.arms
    ]
    columns = ["kept by", f"{-widest:+.0%} to {widest:+.0%}", "forgotten", "mean over levels", "tokens rehearsed"]
    legend = "Forgotten: accuracy lost on earlier levels while the next were learned. Right of the line is a loss."
    return "".join(parts) + table(columns, rows) + note(legend)


def _cells(row: Stage) -> list[tuple[float, str]]:
    return [(share, f"{share:.0%}") for share in row.accuracy]


def _questions(questions: Sequence[ShownQuestion]) -> str:
    if not questions:
        return note("No question is shown.")
    rows = [
        [
            number(q.level, "{}"),
            visible(q.family),
            text(q.prompt),
            text(q.solution) if q.solution else "",
            text(q.answer),
            f"{visible(q.source)}<small>{visible(q.check)}</small>",
        ]
        for q in questions
    ]
    return table(("level", "kind", "question", "worked", "answer", "from, known by"), rows)


def _spend(spend: Spend) -> str:
    return note(
        f"Questions: {number(spend.generator_questions, '{:,}')} of generators, "
        f"{number(spend.frontier_questions, '{:,}')} of other models, for {number(spend.usd, '{:.2f}')} USD. "
        f'<span class="prose">{visible(spend.note, "none") if spend.note else ""}</span>'
    )


_CSS = resources.files("forge_assets.exhibits").joinpath("practice.css").read_text()
EXHIBIT = Exhibit("Practice", PracticeShown, html, markdown, _CSS)
