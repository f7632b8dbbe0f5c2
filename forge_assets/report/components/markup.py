"""Pieces of HTML and Markdown that exhibits are made of. Everything here escapes the text that it is given."""

import re
from collections.abc import Sequence
from html import escape
from typing import Literal

from markupsafe import Markup

_MARKS = {" ": "·", "\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_ODD_SPACES = re.compile(r"^ +| +$| {2,}")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~!&:#$])")


def visible(text: str, spaces: Literal["odd", "all", "none"] = "odd") -> Markup:
    """`text` as HTML in which spaces, line breaks and control characters can be seen.

    `spaces` says which spaces become dots: those at the ends or in a row, all (for a token on its own), or none (for
    a token in a running text). The element around needs `white-space: pre-wrap`. Characters that are not printable
    are named instead of sent: among them are those that reverse the direction of what follows.
    """
    if not text:
        return Markup('<span class="mark">(empty)</span>')
    odd = {place for match in _ODD_SPACES.finditer(text) for place in range(*match.span())}
    return Markup("").join(
        _character(c, c != " " or spaces == "all" or (spaces == "odd" and place in odd)) for place, c in enumerate(text)
    )


def number(value: float, form: str) -> Markup:
    """`value` as HTML: written in `form` (`"{:+.4f}"`), with the exact value in the markup."""
    return Markup(f'<data value="{value!r}">{escape(form.format(value))}</data>')


def interval(low: float, high: float, form: str) -> Markup:
    """An interval as HTML."""
    return Markup(f"[{number(low, form)}, {number(high, form)}]")


def plain(text: str) -> str:
    """`text` as Markdown that shows exactly that text, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[str]:
    """The lines of a Markdown table of cells that are Markdown already, of at most `most` rows."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [line(columns), line(["---"] * len(columns)), *(line(row) for row in rows[:most])]
    return [*lines, "", f"{len(rows) - most} more rows are in the report."] if len(rows) > most else lines


def _character(character: str, marked: bool) -> Markup:
    if character in _MARKS:
        return Markup(f'<span class="mark">{_MARKS[character]}</span>' if marked else character)
    if character.isprintable():
        return Markup(escape(character))
    return Markup(f'<span class="mark">{escape(ascii(character)[1:-1])}</span>')
