"""The history of gates and claims for people: tables on the terminal, and sections of the report's page."""

from collections.abc import Sequence
from html import escape
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape as plain
from rich.table import Table
from rich.text import Text

from forge_assets.charts import ACCENT, CHANCE, INK
from forge_assets.gate_history import AssetGates, Entry
from forge_resources.overrides import Override, utc_text

ABSENT = "-"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 540, 150, 64, 20, 26, 26
_COLUMNS = ("when", "run", "model", "profile", "value", "required", "margin", "verdict")


def state(gates: AssetGates) -> str:
    """`open`, `OVERRIDDEN`, `CLOSED`, or `not made`."""
    if gates.version is None:
        return "not made"
    if gates.closed:
        return "CLOSED"
    return "open" if gates.override is None else "OVERRIDDEN"


def states_table(models: Sequence[AssetGates]) -> RenderableType:
    """Which gates are open now, and why not; what `forge gate list` prints."""
    table = Table("model", "gate", "why", box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    colours = {"open": "green", "CLOSED": "red", "OVERRIDDEN": "yellow"}
    for gates in models:
        word = state(gates)
        why = gates.override.describe() if gates.override is not None else "; ".join(gates.closed)
        table.add_row(gates.asset, Text(word, colours.get(word, "dim")), plain("" if word == "not made" else why))
    return table


def print_history(models: Sequence[AssetGates], console: Console, limit: int) -> None:
    """Print the last `limit` verdicts of every gate and claim, and every override there ever was."""
    parts: list[RenderableType] = []
    for gates in models:
        for (name, blocking), entries in gates.histories().items():
            title = f"{gates.asset}: {'gate' if blocking else 'claim'} {name}"
            style = {"title_justify": "left", "title_style": "bold", "header_style": "dim"}
            table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False, **style)  # type: ignore[arg-type]
            for column in _COLUMNS:
                number = column in ("value", "required", "margin")
                table.add_column(column, justify="right" if number else "left", no_wrap=True)
            for entry in entries[-limit:]:
                cells = _cells(entry)
                table.add_row(utc_text(entry.at)[5:16].replace("T", " "), *cells[1:-1], _coloured(cells[-1]))
            parts.append(table)
    parts += override_lines(models)
    if not parts:
        parts.append(Text("No gate was judged yet: forge run makes and judges models."))
    console.print(Group(*parts), soft_wrap=False)


def override_lines(models: Sequence[AssetGates]) -> list[Text]:
    """A line for every override, newest last, that says whether it is in force."""
    lines = []
    for gates in models:
        for override in reversed(gates.overrides):
            force = "in force" if override == gates.override else "expired"
            what = f"{override.asset} {override.digest[:8]} ({', '.join(override.failed)})"
            lines.append(Text(f"{what} {override.describe()} [{force}]", "yellow"))
    return lines


def history_json(models: Sequence[AssetGates]) -> dict[str, Any]:
    """Every gate and claim with all of its verdicts, and every override, as plain values."""
    return {
        "gates": [
            {
                "asset": gates.asset,
                "gate": name,
                "blocking": blocking,
                "evidence": entries[-1].evidence,
                "against": entries[-1].against,
                "verdicts": [entry.as_json() for entry in entries],
            }
            for gates in models
            for (name, blocking), entries in gates.histories().items()
        ],
        "overrides": [
            {**override.as_json(), "in_force": override == gates.override}
            for gates in models
            for override in gates.overrides
        ],
    }


def history_sections(models: Sequence[AssetGates], limit: int) -> list[tuple[str, str]]:
    """Sections of the report's page: all overrides, then for each model a plot and a table of each gate."""
    sections = [("Overrides", _overrides_html(models))]
    for gates in models:
        parts = []
        for (name, blocking), entries in gates.histories().items():
            kind = "gate" if blocking else "claim"
            figure = f"<figure>{plot(entries[-limit:], f'{kind} {name}')}</figure>"
            parts.append(f"<h3>{escape(kind)} {escape(name)}</h3>{figure}{_history_table(entries[-limit:])}")
        sections.append((f"Over time: {escape(gates.asset)}", "".join(parts)))
    return [(title, content) for title, content in sections if content]


def _history_table(entries: Sequence[Entry]) -> str:
    head = "".join(f"<th>{title}</th>" for title in _COLUMNS)
    rows = []
    for entry in reversed(entries):
        cells = _cells(entry)
        verdict = escape(cells[-1])
        if entry.override is not None:
            verdict = f"{verdict}, {escape(entry.override.describe())}"
        elif entry.reason:
            verdict = f"{verdict}, {escape(entry.reason)}"
        body = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells[:-1])
        rows.append(f'<tr>{body}<td class="{"good" if entry.passed else "bad"}">{verdict}</td></tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _overrides_html(models: Sequence[AssetGates]) -> str:
    def row(gates: AssetGates, override: Override) -> str:
        cells = (
            utc_text(override.at),
            override.asset,
            override.digest[:8],
            override.verdict,
            override.who,
            override.reason,
            "in force" if override == gates.override else "expired",
        )
        return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"

    rows = [row(gates, override) for gates in models for override in gates.overrides]
    titles = ("when", "asset", "model", "what had failed", "who", "reason", "now")
    head = "".join(f"<th>{title}</th>" for title in titles)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide">{table}</div>' if rows else ""


def _cells(entry: Entry) -> list[str]:
    """When, run, model, profile, value, requirement, margin, verdict."""
    sign = ("≥" if entry.direction == "at_least" else "≤") if entry.threshold is not None else ""
    return [
        utc_text(entry.at),
        entry.run_id[:8],
        entry.digest[:8] + ("" if entry.stored else "*"),
        entry.profile or ABSENT,
        ABSENT if entry.value is None else f"{entry.value:.4g}",
        ABSENT if entry.threshold is None else f"{sign} {entry.threshold:g}",
        ABSENT if entry.margin is None else f"{entry.margin:+.3g}",
        "passed" if entry.passed else ("FAILED" if entry.override is None else "OVERRIDDEN"),
    ]


def _coloured(verdict: str) -> Text:
    return Text(verdict, {"passed": "green", "FAILED": "red", "OVERRIDDEN": "yellow"}[verdict])


def plot(entries: Sequence[Entry], title: str) -> str:
    """The value at each verdict, oldest left, and its threshold (dotted), as inline SVG.

    A filled dot passed, a red ring failed, a cross on the lower edge was not measured.
    """
    numbers = [n for entry in entries for n in (entry.value, entry.threshold) if n is not None]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    spread = (high - low) or max(abs(high), 1.0) * 0.1

    def y(number: float) -> float:
        return _HEIGHT - _BOTTOM - (number - low + 0.1 * spread) / (1.2 * spread) * (_HEIGHT - _TOP - _BOTTOM)

    step = (_WIDTH - _LEFT - _RIGHT) / max(len(entries), 1)
    xs = [_LEFT + step * (index + 0.5) for index in range(len(entries))]
    parts = [_text(0, 14, title, 12)]
    parts += [_text(_LEFT - 6, y(number) + 3, f"{number:.4g}", 10, "end") for number in dict.fromkeys((low, high))]
    for x, entry in zip(xs, entries, strict=True):
        if entry.threshold is not None:
            ends = f'x1="{x - step / 2:.1f}" x2="{x + step / 2:.1f}" y1="{y(entry.threshold):.1f}"'
            dotted = f'stroke="{CHANCE}" stroke-width="1.4" stroke-dasharray="2 3"'
            parts.append(f'<line class="threshold" {ends} y2="{y(entry.threshold):.1f}" {dotted}/>')
    path = " ".join(f"{x:.1f},{y(e.value):.1f}" for x, e in zip(xs, entries, strict=True) if e.value is not None)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{ACCENT}" stroke-width="1"/>' if path else "")
    parts += [_dot(x, None if e.value is None else y(e.value), e) for x, e in zip(xs, entries, strict=True)]
    if entries:
        parts.append(_text(_LEFT, _HEIGHT - 6, utc_text(entries[0].at)[:16], 10))
        if len(entries) > 1:
            parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 6, utc_text(entries[-1].at)[:16], 10, "end"))
    frame = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="system-ui, sans-serif"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>{"".join(parts)}</svg>'


def _dot(x: float, y: float | None, entry: Entry) -> str:
    """The mark of one verdict, which says what it is when it is pointed at."""
    words = " ".join(cell for cell in _cells(entry))
    if entry.override is not None:
        words += f", {entry.override.describe()}"
    told = f"<title>{escape(words)}</title>"
    if y is None:
        bottom = _HEIGHT - _BOTTOM
        cross = f"M{x - 4:.1f} {bottom - 4}l8 8m0 -8l-8 8"
        return f'<path class="unmeasured" d="{cross}" stroke="{CHANCE}" stroke-width="1.6">{told}</path>'
    fill, stroke = (ACCENT, ACCENT) if entry.passed else ("none", CHANCE)
    look = f'fill="{fill}" stroke="{stroke}" stroke-width="2"'
    word = "passed" if entry.passed else "failed"
    return f'<circle class="{word}" cx="{x:.1f}" cy="{y:.1f}" r="4" {look}>{told}</circle>'


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{INK}" text-anchor="{anchor}">{escape(text)}</text>'
