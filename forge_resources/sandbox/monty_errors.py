"""Classification of the embedded interpreter's errors: the program's own fault, a limit, or a missing feature."""

import builtins
import importlib
import re
import sys
from collections.abc import Container
from typing import Any

from pydantic_monty import MontyCrashedError, MontyError

from training_core.tasks.sandbox import Status

DATA = (type(None), bool, int, float, complex, str, bytes)
GROUPS = (list, tuple, set, frozenset)
MAX_VALUES = 1_000_000
TEXT_LENGTH = 500

# The interpreter represents functions, iterators and modules to its host by a text of this form.
OBJECT_TEXT = re.compile(
    r"<(function|bound method|built-in \w+|async function|coroutine)\b.* at 0x[0-9a-f]+>"
    r"|<\w+_iterator object>|<module '.*'>"
)
OUT_OF_TIME = re.compile(r"(feed|turn|sleep|total sleep)\b.*\blimit exceeded")
OUT_OF_MEMORY = re.compile(r"memory limit exceeded|exceeded its memory limit|exceeds the memory limit")
LACKING = re.compile(r"does not yet support|Internal error in monty|is not supported|not implemented in monty")
NO_NAME = re.compile(r"name '(\w+)' is not defined")
NO_MODULE = re.compile(r"No module named '(\w+)")
NO_IMPORT = re.compile(r"cannot import name '\w+' from '(\w+)")
NO_MODULE_ATTRIBUTE = re.compile(r"module '(\w+)' has no attribute '(\w+)'")
NO_ATTRIBUTE = re.compile(r"'(\w+)' object has no attribute '(\w+)'")
# Modules that the interpreter has in part. Only these are imported here to see what is missing, because the module's
# name comes from the program's own text.
PARTIAL_MODULES = frozenset(
    {"asyncio", "collections", "copy", "dataclasses", "datetime", "functools", "itertools", "json", "math", "operator",
     "os", "pathlib", "random", "re", "sys", "time", "typing"}
)  # fmt: skip


def classify(error: MontyError | None) -> tuple[Status, str]:
    """Return the status of a program that ended with `error`, and the error in one line.

    A program can forge the text of its error, but this only changes the name of its own failure.
    """
    if error is None:
        return "ok", ""
    if isinstance(error, MontyCrashedError):
        return ("timeout", "killed at the time limit") if error.timed_out else ("error", "the interpreter crashed")
    raised = error.exception()
    message = str(raised)
    kind = type(raised).__name__
    text = " ".join(f"{kind}: {message}".split())[:TEXT_LENGTH] if message else kind
    if isinstance(raised, TimeoutError) and OUT_OF_TIME.search(message):
        return "timeout", text
    if isinstance(raised, MemoryError):
        return "memory", text
    return ("unsupported" if _lacking(raised, message) else "error"), text


def _lacking(raised: BaseException, message: str) -> bool:
    """Whether the error is about something that Python has and the interpreter lacks."""
    if isinstance(raised, RuntimeError | SyntaxError) and LACKING.search(message):
        return True
    if isinstance(raised, NameError) and (match := NO_NAME.search(message)):
        return hasattr(builtins, match[1])
    if isinstance(raised, ImportError) and (match := NO_MODULE.search(message) or NO_IMPORT.search(message)):
        return match[1] in sys.stdlib_module_names
    if not isinstance(raised, AttributeError):
        return False
    if match := NO_MODULE_ATTRIBUTE.search(message):
        return match[1] in PARTIAL_MODULES and hasattr(importlib.import_module(match[1]), match[2])
    if match := NO_ATTRIBUTE.search(message):
        return hasattr(getattr(builtins, match[1], None), match[2])
    return False


def not_data(value: Any, stand_ins: Container[str] = ()) -> str:
    """Return what in a value is not plain data, in words; empty if all of it is. `stand_ins`: texts that represent
    objects."""
    waiting = [value]
    for _ in range(MAX_VALUES):
        if not waiting:
            return ""
        value = waiting.pop()
        kind = type(value)
        if kind is str and (value in stand_ins or OBJECT_TEXT.fullmatch(value)):
            return "an object of its own"
        if kind in GROUPS:
            waiting.extend(value)
        elif kind is dict:
            waiting.extend(value.keys())
            waiting.extend(value.values())
        elif kind not in DATA:
            return f"a {kind.__name__}"
    return f"more than {MAX_VALUES} values"
