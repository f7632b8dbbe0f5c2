"""The points of a Pareto front as an interactive drawing without scripts.

The reader picks the pair of axes; a card appears under the pointer, and each point links to its table row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

_WIDTH, _HEIGHT = 640.0, 300.0
_LEFT, _RIGHT, _TOP, _FOOT = 66.0, 24.0, 16.0, 44.0
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Axis:
    """A measured quantity: its name with the unit, its number format, and a value for every point."""

    name: str
    form: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Dot:
    """A point: the lines of its card, the target of its link, and whether it was chosen."""

    card: Sequence[str]
    link: str
    chosen: bool


def scatter(name: str, upward: Axis, across: Sequence[Axis], dots: Sequence[Dot]) -> Markup:
    """Return plots of `upward` against each axis in `across`, one of which the reader selects.

    `name` must be unique on the page: it names the radio buttons.

    Raises:
        ValueError: when there is nothing to draw.
    """
    if not dots or not across:
        raise ValueError(f"a scatter needs points and an axis, got {len(dots)} and {len(across)}: say so in words")
    inputs, labels, drawings = [], [], []
    for i, axis in enumerate(across):
        key = f"{name}-{i}"
        checked = " checked" if i == 0 else ""
        inputs.append(f'<input type="radio" name="{name}" id="{key}" class="pick pick-{i}"{checked}>')
        labels.append(f'<label for="{key}">{escape(axis.name)}</label>')
        drawings.append(f'<div class="plot plot-{i}">{_drawing(upward, axis, dots)}</div>')
    picks = f'{"".join(inputs)}<div class="picks">{"".join(labels)}</div>'
    return Markup(f'<div class="scatter">{picks}{"".join(drawings)}</div>')


def _drawing(upward: Axis, across: Axis, dots: Sequence[Dot]) -> str:
    low_x, high_x = _range(across.values)
    low_y, high_y = _range(upward.values)

    def x(value: float) -> float:
        return _LEFT + (value - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _FOOT - (value - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - _FOOT)

    parts = []
    for i in range(_TICKS + 1):
        at_x, at_y = (low + i * (high - low) / _TICKS for low, high in ((low_x, high_x), (low_y, high_y)))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(at_y):.1f}" y2="{y(at_y):.1f}"/>')
        parts.append(_label("last", _LEFT - 6, y(at_y) + 4, upward.form.format(at_y)))
        parts.append(_label("middle", x(at_x), _HEIGHT - _FOOT + 16, across.form.format(at_x)))
    parts.append(_label("middle", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, across.name))
    order = sorted(range(len(dots)), key=lambda i: dots[i].chosen)  # the chosen one is drawn last, above the others
    for i in order:
        parts.append(_dot(dots[i], x(across.values[i]), y(upward.values[i])))
    return (
        f'<svg class="drawing" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(upward.name)} over {escape(across.name)}">'
        f"{_label('start', 4, 11, upward.name)}{''.join(parts)}</svg>"
    )


def _dot(dot: Dot, x: float, y: float) -> str:
    """Return a point with its card, which CSS shows while the point is hovered or focused."""
    width, height = 8 + 6.2 * max(len(line) for line in dot.card), 8 + 15 * len(dot.card)
    left = x + 12 if x + 12 + width < _WIDTH else x - 12 - width
    top = min(max(2.0, y - height / 2), _HEIGHT - height - 2)
    lines = "".join(_label("start", left + 6, top + 15 + 15 * i, line) for i, line in enumerate(dot.card))
    return (
        f'<a class="{"dot chosen" if dot.chosen else "dot"}" href="#{escape(dot.link)}">'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if dot.chosen else 5}"/>'
        f'<g class="card"><rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5"/>'
        f"{lines}</g></a>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _label(kind: str, x: float, y: float, words: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'
