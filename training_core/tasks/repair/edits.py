"""The line edit: replaces one line of a file. It is short enough for a small model to learn.

    <fix>2 return a + b</fix>      line 2 becomes "return a + b", with its indentation kept

An edit that changes nothing, or whose line number is not in the file, does not apply: it is rejected, never corrected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, CLOSE = "<fix>", "</fix>"
_LAST_FIX = re.compile(r"<fix>((?:(?!<fix>|</fix>).)*)</fix>\Z", re.DOTALL)
_LINE_AND_TEXT = re.compile(r" *([0-9]{1,6})(?: (.*))?", re.DOTALL)


class PatchError(ValueError):
    """Raised when a patch or an edit does not apply; the message says why."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces `line` (1-based) by `text`; the line's indentation is kept and is not part of the text."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"{OPEN}{self.line} {self.text}{CLOSE}"


def apply_edit(source: str, edit: Edit) -> str:
    """Return the source with the edited line replaced.

    Raises:
        PatchError: when there is no such line, the text is empty or of several lines, or nothing changes.
    """
    lines = source.split("\n")
    count = len(lines) - 1 if lines[-1] == "" else len(lines)
    if not 1 <= edit.line <= count:
        raise PatchError(f"line {edit.line} is not in the file: its lines are 1 to {count}")
    text = edit.text.strip(" ")
    if not text or len(text.splitlines()) != 1:
        raise PatchError(f"an edit writes one line, got {edit.text!r}")
    old = lines[edit.line - 1]
    new = old[: len(old) - len(old.lstrip())] + text
    if new == old:
        raise PatchError(f"line {edit.line} reads {text!r} already: an edit must change it")
    lines[edit.line - 1] = new
    return "\n".join(lines)


def edit_between(source: str, other: str) -> Edit:
    """Return the edit that turns `source` into `other`.

    Raises:
        PatchError: when they differ in more than one line, or in its indentation.
    """
    pairs = list(enumerate(zip(source.split("\n"), other.split("\n"), strict=False), 1))
    changed = [(number, new) for number, (old, new) in pairs if old != new]
    if len(changed) == 1:
        edit = Edit(changed[0][0], changed[0][1].strip(" "))
        if apply_edit(source, edit) == other:
            return edit
    raise PatchError("the sources do not differ by one edited line; write them so that they do")


def last_fix(text: str) -> str | None:
    """Return the body of the fix that a text ends with; None if it does not end with a fix."""
    match = _LAST_FIX.search(text)
    return None if match is None else match[1]


def parse_fix(written: str) -> Edit:
    """Parse the body of a fix, "LINE CODE".

    Raises:
        PatchError: when it is not of that form.
    """
    match = _LINE_AND_TEXT.fullmatch(written)
    if match is None:
        raise PatchError(f"a fix is written as LINE CODE, got {written!r:.80}")
    return Edit(int(match[1]), match[2] or "")
