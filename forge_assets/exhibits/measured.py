"""What exhibits of measured accuracies share: a value with its interval, tracks that draw it, and heat maps."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Annotated

from pydantic import Field

from forge_assets.exhibits.exhibit import Ordered
from forge_assets.exhibits.markup import number, visible

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Level = Annotated[int, Field(ge=1, le=10)]
PERCENT = "{:.1%}"
CSS = resources.files("forge_assets.exhibits").joinpath("measured.css").read_text()


class Measured(Ordered):
    """A value and its 95 % interval."""

    value: float


class Accuracy(Measured):
    """The same of a share."""

    value: Share
    low: Share
    high: Share


def measured(shown: Measured, form: str = PERCENT) -> str:
    """Value and interval as HTML."""
    return f"{number(shown.value, form)}<small>[{form.format(shown.low)}, {form.format(shown.high)}]</small>"


def measured_text(shown: Measured, form: str = PERCENT) -> str:
    """Value and interval as plain text."""
    return f"{form.format(shown.value)} ({form.format(shown.low)} to {form.format(shown.high)})"


def tracks(
    rows: Sequence[tuple[str, Measured]],
    mark: float | None = None,
    low: float = 0.0,
    high: float = 1.0,
    form: str = PERCENT,
) -> str:
    """Intervals one below the other over the range from `low` to `high`, with a line at `mark` where there is one.

    rows: the kind of each, one of the classes of `measured.css` (before, middle, after), and what it draws. What lies
    beyond the range ends at its edge.
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
    return f'<span class="tracks">{line}{lines}</span>'


def heat_map(
    corner: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]],
) -> str:
    """A table whose cells are coloured: of each row a name and cells of (colour from 0 to 1, text)."""
    head = "".join(f"<th>{visible(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{visible(name)}</th>"
        + "".join(f'<td style="--v:{colour!r}">{escape(text)}</td>' for colour, text in cells)
        + "</tr>"
        for name, cells in rows
    )
    return (
        f'<div class="wide"><table class="heat-map"><thead><tr><th class="corner">{escape(corner)}</th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def text(shown: str) -> str:
    """Text of a model or a question, as it stands."""
    return f'<div class="text">{visible(shown)}</div>'


def badge(right: bool) -> str:
    """A sign of right or wrong."""
    return f'<span class="badge {"right" if right else "wrong"}">{"right" if right else "wrong"}</span>'


def note(sentence: str) -> str:
    """A small line of explanation; `sentence` is HTML already."""
    return f'<p class="note">{sentence}</p>'
