"""A plot of the verdicts on one gate over time, as inline SVG."""

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from forge_assets.gate_history import GateEntry
from forge_assets.report.cells import verdict_cells
from forge_assets.report.components.charts import ACCENT, CHANCE, INK
from forge_resources.overrides import utc_text

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 540, 150, 64, 20, 26, 26


def plot(entries: Sequence[GateEntry], title: str) -> Markup:
    """Return a plot of the value at each verdict, oldest on the left, with its threshold (dotted), as inline SVG.

    A filled dot is a pass, a red ring a failure, and a cross on the lower edge a value that was not measured.
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
    return Markup(f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>{"".join(parts)}</svg>')


def _dot(x: float, y: float | None, entry: GateEntry) -> str:
    """Return the mark of one verdict, with its cells as a tooltip."""
    words = " ".join(cell for cell in verdict_cells(entry))
    if entry.override is not None:
        words += f", {entry.override.describe()}"
    tooltip = f"<title>{escape(words)}</title>"
    if y is None:
        bottom = _HEIGHT - _BOTTOM
        cross = f"M{x - 4:.1f} {bottom - 4}l8 8m0 -8l-8 8"
        return f'<path class="unmeasured" d="{cross}" stroke="{CHANCE}" stroke-width="1.6">{tooltip}</path>'
    fill, stroke = (ACCENT, ACCENT) if entry.passed else ("none", CHANCE)
    look = f'fill="{fill}" stroke="{stroke}" stroke-width="2"'
    word = "passed" if entry.passed else "failed"
    return f'<circle class="{word}" cx="{x:.1f}" cy="{y:.1f}" r="4" {look}>{tooltip}</circle>'


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{INK}" text-anchor="{anchor}">{escape(text)}</text>'
