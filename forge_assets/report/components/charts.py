"""The report's charts as inline SVG: metrics along the chain of models, each family against its rules."""

import io
from typing import Any

from markupsafe import Markup

from forge_assets.ledger import Ledger, ModelRow
from forge_assets.report.yardsticks import best_baseline

INK, ACCENT, CHANCE = "#1d2433", "#3056d3", "#b42318"


def chain(ledger: Ledger) -> list[Markup]:
    """Return charts of bits per byte and next-token accuracy with 95 % CIs, and of bytes on disk on a log axis."""
    drawn = [
        _intervals(ledger, "bits_per_byte", "Bits per byte (lower is better)", 1.0),
        _intervals(ledger, "next_token_accuracy", "Next-token accuracy, %", 100.0),
        _sizes(ledger),
    ]
    return [svg for svg in drawn if svg]


def tasks(ledger: Ledger) -> list[Markup]:
    """Return one chart per task family: accuracy with its 95 % CI, the chance level, and the best baseline."""
    families = list(dict.fromkeys(family for row in ledger.models for family in row.lineage.tasks))
    return [_family(ledger, family) for family in families]


def _intervals(ledger: Ledger, metric: str, title: str, factor: float) -> Markup:
    rows = [row for row in ledger.models if row.metric(metric) is not None]
    if not rows:
        return Markup("")
    canvas, axes = _canvas(rows)
    for y, row in enumerate(rows):
        value = factor * float(row.metric(metric) or 0.0)
        low, high = row.interval(metric) or (value / factor, value / factor)
        axes.plot([factor * low, factor * high], [y, y], color=ACCENT, linewidth=2.2, solid_capstyle="round")
        axes.plot([value], [y], "o", color=ACCENT, markersize=6)
        axes.annotate(f"{value:.3g}", (value, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(x=0.12)
    return _finish(canvas, axes, title)


def _sizes(ledger: Ledger) -> Markup:
    rows = [row for row in ledger.models if row.metric("bytes_on_disk")]
    if not rows:
        return Markup("")
    canvas, axes = _canvas(rows)
    sizes = [float(row.metric("bytes_on_disk") or 0.0) for row in rows]
    axes.barh(range(len(rows)), sizes, color=ACCENT, height=0.55)
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 4, max(sizes) * 6)
    for y, size in enumerate(sizes):
        axes.annotate(f"{size:,.0f}", (size, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    return _finish(canvas, axes, "Bytes on disk (logarithmic)")


def _family(ledger: Ledger, family: str) -> Markup:
    """Return the chart of one family's accuracy.

    Only the CI of the chance-corrected score c is recorded, so its ends are mapped back: p = chance + (1 - chance) c.
    """
    rows = [row for row in ledger.models if family in row.lineage.tasks]
    canvas, axes = _canvas(rows)
    rule = ""
    for y, row in enumerate(rows):
        scores = row.lineage.tasks[family]
        axes.plot([100 * scores["accuracy"]], [y], "o", color=ACCENT, markersize=6)
        chance = scores.get("chance")
        if chance is None:
            continue
        ends = [100 * (chance + (1 - chance) * scores[f"corrected_{end}"]) for end in ("low", "high")]
        axes.plot(ends, [y, y], color=ACCENT, linewidth=2.2, solid_capstyle="round")
        axes.plot([100 * chance] * 2, [y - 0.4, y + 0.4], color=CHANCE, linewidth=1.4, linestyle=":")
        if (best := best_baseline(scores)) is not None:
            rule = f"; dashed: {best[0]}"
            axes.plot([100 * best[1]] * 2, [y - 0.4, y + 0.4], color=CHANCE, linewidth=1.4, linestyle="--")
    axes.margins(x=0.12)
    return _finish(canvas, axes, f"{family}: accuracy, % (dotted: guessing{rule})")


def _canvas(rows: list[ModelRow]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5.4, 0.9 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasSVG(canvas)
    axes = canvas.add_subplot()
    axes.set_yticks(range(len(rows)), [row.lineage.asset for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    return canvas, axes


def _finish(canvas: Any, axes: Any, title: str) -> Markup:
    from matplotlib import rc_context

    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.tick_params(labelsize=8.5, length=0, colors=INK)
    axes.grid(visible=True, axis="x", alpha=0.25)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": title}):  # matplotlib's element ids are random otherwise: equal data, equal page
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :])
