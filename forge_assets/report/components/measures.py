"""Drawings of measured values: tracks that show intervals, and heat maps."""

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from forge_assets.report.components.markup import visible
from training_core.exhibit import MeasuredValue

PERCENT = "{:.1%}"
Cell = tuple[float, str]  # colour from 0 to 1, text


def measured_text(shown: MeasuredValue, form: str = PERCENT) -> str:
    """Return value and interval as plain text."""
    return f"{form.format(shown.value)} ({form.format(shown.low)} to {form.format(shown.high)})"


def tracks(
    rows: Sequence[tuple[str, MeasuredValue]],
    mark: float | None = None,
    low: float = 0.0,
    high: float = 1.0,
    form: str = PERCENT,
) -> Markup:
    """Return stacked intervals over the range from `low` to `high`, with a line at `mark` if one is given.

    rows: a class of `measures.css` (before, middle, after) and the measured value of each track. Values outside the
    range are clipped to its edge.
    """

    def place(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.3f}%"

    lines = "".join(
        f'<span class="track {kind}" title="{measured_text(shown, form)}">'
        f'<i class="reach" style="left:{place(shown.low)};right:calc(100% - {place(shown.high)})"></i>'
        f'<i class="dot" style="left:{place(shown.value)}"></i></span>'
        for kind, shown in rows
    )
    line = "" if mark is None else f'<i class="mark-line" style="left:{place(mark)}"></i>'
    return Markup(f'<span class="tracks">{line}{lines}</span>')


def heat_map(
    corner: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell]]],
) -> Markup:
    """Return a table of coloured cells; each row has a name and cells of (colour from 0 to 1, text)."""
    head = "".join(f"<th>{visible(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{visible(name)}</th>"
        + "".join(f'<td style="--v:{colour!r}">{escape(text)}</td>' for colour, text in cells)
        + "</tr>"
        for name, cells in rows
    )
    return Markup(
        f'<div class="wide"><table class="heat-map"><thead><tr><th class="corner">{escape(corner)}</th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def shares(values: Sequence[float]) -> list[Cell]:
    """Return heat-map cells that show shares in whole percent."""
    return [(share, f"{share:.0%}") for share in values]


def count_rows(
    names: Sequence[str], counts: Sequence[Sequence[int]], relative: bool = False
) -> list[tuple[str, list[Cell]]]:
    """Return heat-map rows that show counts, coloured by their share of the row.

    With `relative`, the colours are scaled so that the largest share in the map gets the full colour.
    """
    shares_of_rows = [[count / max(1, sum(row)) for count in row] for row in counts]
    strongest = max(max(row) for row in shares_of_rows) or 1.0 if relative else 1.0
    return [
        (name, [(share / strongest, str(count)) for share, count in zip(row_shares, row, strict=True)])
        for name, row_shares, row in zip(names, shares_of_rows, counts, strict=True)
    ]


def averages(values: Sequence[float], most: int) -> list[float]:
    """Return at most `most` values by averaging neighbours."""
    size = max(1, -(-len(values) // most))
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]
