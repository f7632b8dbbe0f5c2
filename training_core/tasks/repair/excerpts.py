"""Attempts at programs larger than the model's context: the model sees an excerpt of a file around the line that the
gold patch changes first, and may write one line edit.

This is SWE-bench's "oracle" retrieval (arXiv:2310.06770, section 4.1) narrowed to the context length: the model is told
where to look, which no user could tell it. It can only flatter the model, so a score of 0 here is truly 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.tasks.repair.edits import PatchError, apply_edit, parse_fix
from training_core.tasks.repair.instances import Instance
from training_core.text.sampling import continue_rows

ISSUE_SHARE = 4  # the issue gets at most 1 / ISSUE_SHARE of the context
_FIRST_FIX = re.compile(r"<fix>((?:(?!<fix>|</fix>).)*)</fix>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ExcerptAttempt:
    """One attempt at an excerpt.

    prompt: the model's input. text: its completion. files: the files after its fix; unchanged if it wrote none, None if
    the fix does not apply. why: the reason why it does not apply, else empty.
    """

    prompt: str
    text: str
    files: Mapping[str, str] | None
    why: str


def attempt_excerpt(
    model: Cognate, tokenizer: Tokenizer, instance: Instance, generator: torch.Generator, *, max_tokens: int = 48
) -> ExcerptAttempt:
    """Make one greedy attempt and apply the first fix in it.

    Raises:
        ValueError: when `max_tokens` leaves no room for a single line.
    """
    path, line = first_change(instance)
    room = model.config.max_seq_len - max_tokens
    prompt = excerpt(tokenizer, instance, path, line, room)
    (drawn,) = continue_rows(model, [tokenizer.encode(prompt).ids], max_tokens, generator, temperature=0.0)
    text = tokenizer.decode([token for token in drawn.ids if token != END_OF_TEXT_ID])
    fix = _FIRST_FIX.search(text)
    if fix is None:
        return ExcerptAttempt(prompt, text, dict(instance.files), "")
    try:
        repaired = apply_edit(instance.files[path], parse_fix(fix[1]))
    except PatchError as error:
        return ExcerptAttempt(prompt, text, None, str(error))
    return ExcerptAttempt(prompt, text, {**instance.files, path: repaired}, "")


def first_change(instance: Instance) -> tuple[str, int]:
    """Return the path of the file that the gold patch changes most, and its first changed line (1-based).

    Raises:
        ValueError: when the gold patch changes no existing file.
    """
    changes = []
    for path, source in sorted(instance.files.items()):
        old, new = source.split("\n"), instance.gold_files.get(path, "").split("\n")
        if old != new and path in instance.gold_files:
            same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            changes.append((len(set(old) ^ set(new)), path, min(same + 1, len(old))))
    if not changes:
        raise ValueError(f"{instance.name}: the true repair changes no file of the older release; nothing can be shown")
    _, path, line = max(changes)
    return path, line


def excerpt(tokenizer: Tokenizer, instance: Instance, path: str, line: int, room: int) -> str:
    """Return a prompt of at most `room` tokens: the issue, cut to a quarter of them, and as many numbered lines around
    `line` as fit.

    Raises:
        ValueError: when not even that line fits.
    """
    issue = tokenizer.decode(tokenizer.encode(instance.issue).ids[: room // ISSUE_SHARE]).replace("\n", " ")
    lines = instance.files[path].split("\n")
    first = last = line

    def written(first: int, last: int) -> str:
        numbered = "\n".join(f"{number} {lines[number - 1]}" for number in range(first, last + 1))
        return f"Issue: {issue}\n{numbered}\nFix:"

    def fits(first: int, last: int) -> bool:
        return len(tokenizer.encode(written(first, last)).ids) <= room

    if not fits(first, last):
        raise ValueError(f"line {line} of {path} does not fit in {room} tokens beside the issue: lower max_tokens")
    while True:
        sides = []
        if first > 1 and fits(first - 1, last):
            sides.append((line - first, first - 1, last))
        if last < len(lines) and fits(first, last + 1):
            sides.append((last - line, first, last + 1))
        if not sides:
            return written(first, last)
        _, first, last = min(sides)  # grow the shorter side
