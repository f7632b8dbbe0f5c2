"""Timelines of alternating cycles, and curves with intervals, as inline SVG that takes its colours from the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from forge_assets.report.components.measures import PERCENT, measured_text
from training_core.exhibit import MeasuredValue

_LEFT, _RIGHT, _TOP, _LANE, _GAP, _FOOT = 52.0, 14.0, 18.0, 110.0, 28.0, 36.0
_WIDTH, _LEAST_STEP, _MOST_STEP = 900.0, 30.0, 84.0
_CURVE_WIDTH, _CURVE_HEIGHT = 460.0, 220.0
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A measured score at a position on the axis, drawn filled if `kept` and hollow otherwise."""

    x: int
    score: MeasuredValue
    kept: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """The scores of one cycle. `name` is a single word of this project, because it is also the CSS class."""

    name: str
    baseline: MeasuredValue | None
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Mark:
    """An event after the score at `x`."""

    x: int
    name: str


@dataclass(frozen=True, slots=True)
class _Scale:
    """A linear map from values in [low, high] to positions in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def timeline(lanes: Sequence[Lane], marks: Sequence[Mark], names: Sequence[str], form: str = PERCENT) -> Markup:
    """Return one lane per cycle, stacked over a shared axis labelled `names`; empty lanes are left out.

    In a lane, each turn of the cycle is shaded, and a line joins the scores that were kept; the first line starts at
    the baseline, which is dashed.
    """
    shown = [lane for lane in lanes if lane.points or lane.baseline is not None]
    step = min(_MOST_STEP, max(_LEAST_STEP, (_WIDTH - _LEFT - _RIGHT) / max(1, len(names))))
    width = _LEFT + step * len(names) + _RIGHT
    bottom = _TOP + len(shown) * (_LANE + _GAP) - _GAP
    across = _Scale(-0.5, len(names) - 0.5, _LEFT, width - _RIGHT)
    parts = []
    for i, lane in enumerate(shown):
        top = _TOP + i * (_LANE + _GAP)
        parts += _lane(lane, across, top, form)
    for mark in marks:
        x = across(mark.x + 0.5)
        parts.append(
            f'<line class="end {mark.name}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:.1f}" y2="{bottom + 20:.1f}"/>'
        )
        parts.append(_text("middle", x, bottom + 31, mark.name))
    parts += [_text("middle", across(x), bottom + 15, name) for x, name in enumerate(names)]
    return _svg(width, bottom + _FOOT, parts)


def curves(x: Sequence[int], series: Sequence[tuple[str, Sequence[MeasuredValue]]], form: str) -> Markup:
    """Return curves over `x` with bands for their intervals, on a vertical axis that includes 0 and 1.

    series: the CSS class and the values of each curve.
    """
    ends = [end for _, values in series for value in values for end in (value.low, value.high)]
    height = _Scale(min(0.0, *ends), max(1.0, *ends), _TOP + _CURVE_HEIGHT, _TOP)
    beside = 0.0 if x[-1] > x[0] else 0.5
    across = _Scale(x[0] - beside, x[-1] + beside, _LEFT + 10, _CURVE_WIDTH - _RIGHT - 10)
    parts = _ticks(height, _LEFT, _CURVE_WIDTH - _RIGHT, "{:.2g}")
    for kind, values in series:
        lower = [(across(at), height(value.low)) for at, value in zip(x, values, strict=True)]
        upper = [(across(at), height(value.high)) for at, value in zip(x, values, strict=True)]
        line = [(across(at), height(value.value)) for at, value in zip(x, values, strict=True)]
        parts.append(f'<polygon class="band {kind}" points="{_points([*lower, *reversed(upper)])}"/>')
        parts.append(f'<polyline class="{kind}" points="{_points(line)}"/>')
        parts += [
            f'<circle class="full {kind}" cx="{px:.1f}" cy="{py:.1f}" r="3.5">'
            f"<title>{measured_text(value, form)}</title></circle>"
            for (px, py), value in zip(line, values, strict=True)
        ]
    parts += [_text("middle", across(at), _TOP + _CURVE_HEIGHT + 15, str(at)) for at in x]
    return _svg(_CURVE_WIDTH, _TOP + _CURVE_HEIGHT + _FOOT, parts)


def _lane(lane: Lane, across: _Scale, top: float, form: str) -> list[str]:
    measured = [point.score for point in lane.points] + ([] if lane.baseline is None else [lane.baseline])
    low, high = min(score.low for score in measured), max(score.high for score in measured)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5  # equal values span no range of their own
    height = _Scale(low - room, high + room, top + _LANE, top)
    parts = _ticks(height, across.start, across.end, "{:.3g}%", 100.0)
    parts.append(_text(f"name {lane.name}", across.start, top - 5, lane.name))
    for i, (first, last) in enumerate(_runs([point.x for point in lane.points])):
        start, end = across(first - 0.5), across(last + 0.5)
        parts.append(
            f'<rect class="turn {lane.name}" x="{start:.1f}" y="{top:.1f}" width="{end - start:.1f}" height="{_LANE}"/>'
        )
        kept = [point for point in lane.points if point.kept and first <= point.x <= last]
        line = [(across(point.x), height(point.score.value)) for point in kept]
        if i == 0 and lane.baseline is not None:
            line.insert(0, (start, height(lane.baseline.value)))
        parts.append(f'<polyline class="{lane.name}" points="{_points(line)}"/>')
    if lane.baseline is not None:
        y, ends = height(lane.baseline.value), f'x1="{across.start:.1f}" x2="{across.end:.1f}"'
        parts.append(f'<line class="base {lane.name}" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
    for point in lane.points:
        x, score = across(point.x), point.score
        parts.append(
            f'<g class="{"full" if point.kept else "hollow"} {lane.name}"><title>{measured_text(score, form)}</title>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{height(score.low):.1f}" y2="{height(score.high):.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{height(score.value):.1f}" r="5"/></g>'
        )
    return parts


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last place of each run of consecutive places."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return runs


def _ticks(height: _Scale, left: float, right: float, form: str, factor: float = 1.0) -> list[str]:
    """Return grid lines at round values, with their labels."""
    parts = []
    for value in _round_values(height.low, height.high):
        y = height(value)
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("last", left - 6, y + 3.5, form.format(factor * value)))
    return parts


def _round_values(low: float, high: float) -> list[float]:
    """Return at most `_TICKS` + 1 tick values: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * _TICKS >= high - low)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(kind: str, x: float, y: float, words: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<div class="wide"><svg class="drawing" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.1f} {height:.1f}">{"".join(parts)}</svg></div>'
    )
