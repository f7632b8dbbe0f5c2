"""A chart of values with their intervals against zero, as inline SVG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

INK, BETTER, WORSE, OPEN = "#1d2433", "#12705b", "#b42318", "#667085"


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of the chart."""

    name: str
    value: float
    low: float
    high: float

    def colour(self) -> str:
        """Return green above zero, red below, and grey if the interval contains zero, so that the sign is undecided."""
        if self.low > 0:
            return BETTER
        return WORSE if self.high < 0 else OPEN


def interval_chart(rows: Sequence[Interval], title: str) -> Markup:
    """Return the rows from top to bottom, each a point on its interval, with a line at zero. Equal rows give equal SVG.

    Raises:
        ValueError: when there are no rows.
    """
    if not rows:
        raise ValueError("a chart needs at least one row, got none: say in words that there is nothing to show")
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(4.8, 0.85 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasSVG(canvas)
    axes = canvas.add_subplot()
    axes.axvline(0.0, color=INK, linewidth=1.0)
    for y, row in enumerate(rows):
        axes.plot([row.low, row.high], [y, y], color=row.colour(), linewidth=2.4, solid_capstyle="round")
        axes.plot([row.value], [y], "o", color=row.colour(), markersize=6)
        axes.annotate(
            f"{row.value:+.4f}",
            (row.value, y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.tick_params(labelsize=8.5, length=0, colors=INK)
    axes.grid(visible=True, axis="x", alpha=0.25)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": title}):
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :])
