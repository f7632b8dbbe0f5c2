"""Pieces of HTML and Markdown for exhibits. Every function here escapes the text that it is given."""

import re
from collections.abc import Sequence
from html import escape
from typing import Literal

from markupsafe import Markup

_MARKS = {" ": "·", "\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_ODD_SPACES = re.compile(r"^ +| +$| {2,}")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~!&:#$])")


def visible(text: str, spaces: Literal["odd", "all", "none"] = "odd") -> Markup:
    """Return `text` as HTML in which spaces, line breaks and control characters are visible.

    `spaces` selects the spaces that become dots: leading, trailing and repeated ones ("odd"), all (for a token on its
    own), or none (for a token within running text). The surrounding element needs `white-space: pre-wrap`. Characters
    that are not printable are escaped by name, among them those that reverse the direction of the text after them.
    """
    if not text:
        return Markup('<span class="mark">(empty)</span>')
    odd = {place for match in _ODD_SPACES.finditer(text) for place in range(*match.span())}
    return Markup("").join(
        _character(c, c != " " or spaces == "all" or (spaces == "odd" and place in odd)) for place, c in enumerate(text)
    )


def number(value: float, form: str) -> Markup:
    """Return `value` as HTML, formatted by `form` (`"{:+.4f}"`), with the exact value in the markup."""
    return Markup(f'<data value="{value!r}">{escape(form.format(value))}</data>')


def interval(low: float, high: float, form: str) -> Markup:
    """Return an interval as HTML, its ends formatted by `form`."""
    return Markup(f"[{number(low, form)}, {number(high, form)}]")


def plain(text: str) -> str:
    """Return `text` escaped as one line of Markdown that shows exactly that text."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[str]:
    """Return the lines of a Markdown table of at most `most` rows; the cells are Markdown already."""

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
