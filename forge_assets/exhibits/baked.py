"""The exhibit `baked`: prompts of two cycles baked into the weights, in the order in which they took turns.

Scores and accuracies are shares. The strength of a baked prompt is 0 where it has no effect and 1 where the model
without the prompt does as it did with it; the nats per token are the KL divergence from the prompted model.
"""

from collections.abc import Sequence
from importlib import resources

from forge_assets.exhibits.baked_document import (
    BakedPrompt,
    BakedShown,
    Cycle,
    Proposal,
    RepairShown,
    Statistic,
    Tools,
    Turn,
)
from forge_assets.exhibits.calls import list_items
from forge_assets.exhibits.exhibit import Exhibit
from forge_assets.exhibits.markup import each, markdown_table, number, plain, table, visible
from forge_assets.exhibits.measured import (
    PERCENT,
    Accuracy,
    Measured,
    badge,
    measured,
    measured_text,
    note,
    text,
    tracks,
)
from forge_assets.exhibits.timeline import Lane, Mark, Point, curves, timeline

_STRENGTH = "{:.2f}"
_NATS = "{:.4f}"
_STATISTIC = "{:.3f}"
_MARKDOWN_ROWS = 8
_CYCLES: tuple[Cycle, ...] = ("tools", "persona")


def html(shown: BakedShown) -> str:
    """The exhibit as HTML: timeline, prompts, generations, stacking, tools, proposals, style, turns."""
    not_kept = f"<b>Not kept:</b> {visible(shown.not_kept, spaces='none')}"
    return (
        f"<h4>Cycles in turns</h4>{note(not_kept) if shown.not_kept else ''}{_timeline(shown)}"
        f"<h4>Prompts in the weights</h4>{_prompts(shown.prompts)}"
        f"<h4>Side by side</h4>{_generations(shown)}"
        f"<h4>Half-baking on top of half-baking</h4>{_stacking(shown)}"
        f"<h4>Tools</h4>{_tools(shown.tools)}"
        f"<h4>Proposed prompts</h4>{_proposals(shown.proposals)}"
        f"<h4>Style</h4>{_style(shown.style)}"
        f"<h4>Over the turns of a conversation</h4>{_turns(shown.turns)}"
    )


def markdown(shown: BakedShown) -> str:
    """The main numbers as Markdown, without any text that a model wrote."""
    kept = sum(step.kept for step in shown.timeline)
    switches = sum(step.decision == "switch" for step in shown.timeline)
    lines = [f"**{kept} of {len(shown.timeline)} iterations kept**, {switches} switches of cycle", ""]
    lines += [f"Not kept: {plain(shown.not_kept)}", ""] if shown.not_kept else []
    prompts = [
        [plain(x.name), f"{x.kl_before:.4f} → {x.kl_after:.4f}", _strength_text(x.strength), f"{x.target:.2f}"]
        for x in shown.prompts
    ]
    columns = ("prompt", "nats per token to the prompted", "strength (95 %)", "target")
    lines += markdown_table(columns, prompts, _MARKDOWN_ROWS) if prompts else ["No prompt was baked."]
    resolved = [[name, measured_text(accuracy)] for _, name, accuracy in _resolving(shown.tools)]
    lines += ["", *markdown_table(("issues resolved by", "share (95 %)"), resolved, len(resolved))]
    lines += ["", f"Chance: {shown.tools.chance:.1%}."]
    if shown.turns:
        last = shown.turns[-1]
        lines[-1] += f" Present at turn {last.turn}: baked {measured_text(last.baked)}, prompted "
        lines[-1] += f"{measured_text(last.prompted)}."
    return "\n".join([*lines, "", "Timeline, style and texts side by side: `forge report --html report.html`"])


def _legend(*entries: tuple[str, str]) -> str:
    """Of each entry a class and words that are HTML already."""
    return "".join(f'<span class="{kind}"><span class="key"></span></span>{words}' for kind, words in entries)


def _timeline(shown: BakedShown) -> str:
    if not shown.timeline:
        return note("No iteration was run.")
    lanes = [
        Lane(
            cycle,
            getattr(shown.baselines, cycle),
            [Point(x, step.score, step.kept) for x, step in enumerate(shown.timeline) if step.cycle == cycle],
        )
        for cycle in _CYCLES
    ]
    marks = [Mark(x, step.decision) for x, step in enumerate(shown.timeline) if step.decision != "continue"]
    names = [str(step.number + 1) for step in shown.timeline]
    legend = _legend(("tools", "tools"), ("persona", "persona"), ("rolled", "not kept, rolled back"))
    baselines = ", ".join(
        f"{cycle} {measured(baseline)}" for cycle in _CYCLES if (baseline := getattr(shown.baselines, cycle))
    )
    said = f"{legend}; each with its 95 % interval. The dashed lines are the parent's scores: "
    return timeline(lanes, marks, names) + note(f'{said}<span class="starts">{baselines}</span>') + _steps(shown)


def _steps(shown: BakedShown) -> str:
    rows = [
        [
            number(step.number + 1, "{}"),
            f'<b class="{step.cycle}">{step.cycle}</b>'
            + (f'<span class="prose prompt">{visible(step.prompt)}</span>' if step.prompt else ""),
            measured(step.score),
            ("none" if step.strength is None else number(step.strength, _STRENGTH))
            + f"<small>target {number(step.target, _STRENGTH)}</small>",
            ('<span class="right">kept</span>' if step.kept else '<span class="wrong">rolled back</span>')
            + _because(step.why),
            f"<b>{step.decision}</b>{_because(step.decision_why)}",
        ]
        for step in shown.timeline
    ]
    return table(("", "cycle and prompt", "score", "strength", "and was", "then"), rows)


def _because(why: str) -> str:
    return f'<span class="prose why">{visible(why, "none")}</span>' if why else ""


def _strength_text(strength: Measured | None) -> str:
    return "no effect of the prompt" if strength is None else measured_text(strength, _STRENGTH)


def _prompts(prompts: Sequence[BakedPrompt]) -> str:
    if not prompts:
        return note("No prompt was baked.")
    widest = max([1.0, *(x.strength.high for x in prompts if x.strength is not None)])
    rows = [
        [
            f'<b class="{x.cycle}">{visible(x.name)}</b><span class="prose prompt">{visible(x.text)}</span>',
            f"{number(x.kl_before, _NATS)} → {number(x.kl_after, _NATS)}",
            "" if x.strength is None else tracks([(x.cycle, x.strength)], x.target, 0.0, widest, _STRENGTH),
            _strength_text(None) if x.strength is None else measured(x.strength, _STRENGTH),
            f"{number(x.target, _STRENGTH)}<small>at scale {number(x.scale, _STATISTIC)}</small>",
            _because(x.why),
        ]
        for x in prompts
    ]
    columns = ("prompt", "nats per token to the prompted", f"0 to {widest:.2g}", "strength", "target", "found")
    said = "Strength is that of the stored model, without the prompt; the dashed line is the target of its half-bake."
    return table(columns, rows) + note(said)


def _generations(shown: BakedShown) -> str:
    if not shown.generations:
        return note("No text is shown.")
    rows = [
        [
            text(x.given) + (f'<span class="prose prompt">prompt: {visible(x.prompt)}</span>' if x.prompt else ""),
            *(text(written) for written in (x.base, x.prompted, x.half_baked, x.baked)),
        ]
        for x in shown.generations
    ]
    named = ["".join(filter(str.isprintable, name)) for name in (shown.columns.half_baked, shown.columns.baked)]
    columns = ("after", "base", "prompted", named[0] or "half-baked", named[1] or "baked")
    said = "The same beginning, continued by four models. Only the second was shown the prompt."
    return f'<div class="sides">{table(columns, rows)}</div>{note(said)}'


def _stacking(shown: BakedShown) -> str:
    said = note(visible(shown.stacking_note, "none")) if shown.stacking_note else ""
    if not shown.stacking:
        return said or note("Stacking was not measured.")
    widest = max([1.0, *(row.measured.high for row in shown.stacking)])
    rows = [
        [
            number(row.times, "{}"),
            tracks([("after", row.measured)], row.expected, 0.0, widest, _STRENGTH),
            measured(row.measured, _STRENGTH),
            number(row.expected, _STRENGTH),
        ]
        for row in shown.stacking
    ]
    columns = ("half-bakes", f"0 to {widest:.2g}", "strength", "expected, the dashed line: 1 - (1 - s)^N")
    return table(columns, rows) + said


def _resolving(tools: Tools) -> list[tuple[str, str, Accuracy]]:
    return [
        ("before", "the parent", tools.base),
        ("middle", "with the tool prompt", tools.prompted),
        ("after", "baked, no prompt", tools.baked),
    ]


def _tools(tools: Tools) -> str:
    rows = [
        [f"<b>{name}</b>", tracks([(kind, accuracy)], tools.chance), measured(accuracy)]
        for kind, name, accuracy in _resolving(tools)
    ]
    said = f"Chance, the dashed line: {number(tools.chance, PERCENT)}. An issue is resolved when every test passes "
    said += "that failed because of it, and every other test still does."
    kinds = [
        [
            visible(x.kind),
            tracks([("before", x.base), ("after", x.baked)], tools.chance),
            measured(x.base),
            measured(x.baked),
        ]
        for x in tools.by_kind
    ]
    by_kind = table(("kind of issue", "0 to 100 %", "the parent", "baked"), kinds) if kinds else ""
    cards = each(
        [_attempt(x) for x in tools.attempts], "No attempt is shown.", lambda x: f'<div class="cards">{x}</div>'
    )
    return table(("resolved by", "0 to 100 %", "share"), rows) + note(said) + by_kind + f"<h5>Attempts</h5>{cards}"


def _attempt(shown: RepairShown) -> str:
    calls = list_items(shown.calls)
    return (
        f'<article><p class="top">{badge(shown.resolved)}<span>{visible(shown.status)}</span></p>{text(shown.issue)}'
        f'<div class="label">The source</div>{text(shown.source)}'
        f'<div class="label">The model wrote</div>{text(shown.text)}'
        + (f'<div class="label">Tools</div><ul class="calls">{calls}</ul>' if calls else "")
        + "</article>"
    )


def _proposals(proposals: Sequence[Proposal]) -> str:
    if not proposals:
        return note("No prompt was proposed.")
    low, high = min(x.score.low for x in proposals), max(x.score.high for x in proposals)
    high = high if high > low else low + 1.0
    rows = [
        [
            number(x.iteration + 1, "{}"),
            f'<span class="prose proposal">{visible(x.text)}</span>'
            + (' <span class="chosen">chosen</span>' if x.chosen else ""),
            tracks([("after" if x.chosen else "before", x.score)], None, low, high),
            measured(x.score),
        ]
        for x in proposals
    ]
    columns = ("iteration", "sampled from the model", f"{low:.0%} to {high:.0%}", "score with it in front")
    return table(columns, rows)


def _style(style: Sequence[Statistic]) -> str:
    if not style:
        return note("Style was not measured.")
    rows = [
        [
            visible(x.statistic.replace("_", " ")),
            *(number(value, _STATISTIC) for value in (x.base, x.prompted, x.half_baked, x.baked)),
        ]
        for x in style
    ]
    return table(("statistic", "base", "prompted", "half-baked", "baked"), rows)


def _turns(turns: Sequence[Turn]) -> str:
    if not turns:
        return note("Drift was not measured.")
    drawn = curves(
        [x.turn for x in turns],
        [("middle", [x.prompted for x in turns]), ("after", [x.baked for x in turns])],
        _STRENGTH,
    )
    rows = [[number(x.turn, "{}"), *(measured(m, _STRENGTH) for m in (x.prompted, x.baked))] for x in turns]
    legend = _legend(("middle", "the prompt shown once, at the beginning"), ("after", "baked, no prompt"))
    said = "How much of the prompt's effect is present at a turn; 1 is that of the prompt directly before it."
    table_of_turns = table(("turn", "prompted", "baked"), rows)
    return f'<div class="beside"><div>{drawn}</div><div>{table_of_turns}</div></div>{note(f"{legend}. {said}")}'


_CSS = resources.files("forge_assets.exhibits").joinpath("baked.css").read_text()
EXHIBIT = Exhibit("Baked prompts", BakedShown, html, markdown, _CSS)
