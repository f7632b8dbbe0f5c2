"""Pieces of HTML and Markdown that exhibits are made of. Everything here escapes the text that it is given."""

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Literal

_MARKS = {" ": "·", "\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_ODD_SPACES = re.compile(r"^ +| +$| {2,}")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~!&:#$])")


def visible(text: str, spaces: Literal["odd", "all", "none"] = "odd") -> str:
    """`text` as HTML in which spaces, line breaks and control characters can be seen.

    `spaces` says which spaces become dots: those at the ends or in a row, all (for a token on its own), or none (for
    a token in a running text). The element around needs `white-space: pre-wrap`. Characters that are not printable
    are named instead of sent: among them are those that reverse the direction of what follows.
    """
    if not text:
        return '<span class="mark">(empty)</span>'
    odd = {place for match in _ODD_SPACES.finditer(text) for place in range(*match.span())}
    return "".join(
        _character(c, c != " " or spaces == "all" or (spaces == "odd" and place in odd)) for place, c in enumerate(text)
    )


def number(value: float, form: str) -> str:
    """`value` as HTML: written in `form` (`"{:+.4f}"`), with the exact value in the markup."""
    return f'<data value="{value!r}">{escape(form.format(value))}</data>'


def interval(low: float, high: float, form: str) -> str:
    """An interval as HTML."""
    return f"[{number(low, form)}, {number(high, form)}]"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; those that start with a `number` are set as such."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def plain(text: str) -> str:
    """`text` as Markdown that shows exactly that text, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[str]:
    """The lines of a Markdown table of cells that are Markdown already, of at most `most` rows."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [line(columns), line(["---"] * len(columns)), *(line(row) for row in rows[:most])]
    return [*lines, "", f"{len(rows) - most} more rows are in the report."] if len(rows) > most else lines


def each(items: Sequence[str], empty: str, wrap: Callable[[str], str] = str) -> str:
    """The items in a row inside `wrap`, or the sentence `empty` where there are none."""
    return wrap("".join(items)) if items else f'<p class="note">{escape(empty)}</p>'


def _cell(cell: str) -> str:
    return f'<td class="number">{cell}</td>' if cell.startswith("<data") else f"<td>{cell}</td>"


def _character(character: str, marked: bool) -> str:
    if character in _MARKS:
        return f'<span class="mark">{_MARKS[character]}</span>' if marked else character
    if character.isprintable():
        return escape(character)
    return f'<span class="mark">{escape(ascii(character)[1:-1])}</span>'
