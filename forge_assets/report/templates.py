"""The jinja2 environment of the report: the templates of this package and those in the packages of the phases.

Line breaks of a template next to a tag or an expression are removed (`JoinedLines`): templates can be indented without
adding white space to model text, which is shown in elements that preserve white space. Autoescape is on: the value of
an expression is escaped unless it comes from a component, which escapes its own input. Undefined names are errors.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

from forge_assets.report.cells import (
    ABSENT,
    CONTROL_COLUMNS,
    GATE_COLUMNS,
    MODEL_COLUMNS,
    VERDICT_COLUMNS,
    colour_of,
    evidence_of,
    gate_cells,
    verdict_cells,
)
from forge_assets.report.components.interval_chart import Interval, interval_chart
from forge_assets.report.components.markup import interval, number, visible
from forge_assets.report.components.measures import averages, count_rows, heat_map, shares, tracks
from forge_assets.report.components.scatter import Axis, Dot, scatter
from forge_assets.report.components.timeline import Lane, Mark, Point, curves, timeline
from forge_assets.report.components.verdict_plot import plot as verdict_plot
from forge_assets.report.yardsticks import TITLE as YARDSTICKS
from forge_resources.overrides import utc_text

_BESIDE_TAG = re.compile(r"(?<=[>}])\s*\n\s*|\s*\n\s*(?=[<{])")
_BREAK = re.compile(r"\s*\n\s*")


class JoinedLines(Extension):
    """Remove the line breaks of a template's source next to `<`, `>` and braces; replace others by a space."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Return the template as one line."""
        return _BREAK.sub(" ", _BESIDE_TAG.sub("", source))


@cache
def environment() -> Environment:
    """Return the environment that loads every template of the report, with the components that templates may use."""
    env = Environment(
        loader=ChoiceLoader(
            [
                PackageLoader("forge_assets.report", "."),
                PrefixLoader({"phases": PackageLoader("training_core.phases", ".")}),
            ]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=[JoinedLines, "jinja2.ext.do"],
    )
    env.filters |= {"visible": visible, "printable": _printable, "level_name": "level {}".format}
    env.globals |= {
        "averages": averages,
        "count_rows": count_rows,
        "curves": curves,
        "heat_map": heat_map,
        "interval": interval,
        "interval_chart": _interval_chart,
        "number": number,
        "scatter": scatter,
        "shares": shares,
        "timeline": timeline,
        "tracks": tracks,
        "zip": _zip,
    }
    env.globals |= {
        "ABSENT": ABSENT,
        "CONTROL_COLUMNS": CONTROL_COLUMNS,
        "GATE_COLUMNS": GATE_COLUMNS,
        "MODEL_COLUMNS": MODEL_COLUMNS,
        "YARDSTICKS": YARDSTICKS,
        "VERDICT_COLUMNS": VERDICT_COLUMNS,
        "colour_of": colour_of,
        "evidence_of": evidence_of,
        "gate_cells": gate_cells,
        "utc_text": utc_text,
        "verdict_cells": verdict_cells,
        "verdict_plot": verdict_plot,
    }
    env.globals |= {kind.__name__: kind for kind in (Axis, Dot, Lane, Mark, Point)}
    return env


def macro(template: str, name: str, *arguments: Any) -> Markup:
    """Call the macro `name` of a template and return its output."""
    rendered: Markup = getattr(environment().get_template(template).module, name)(*arguments)
    return rendered


def source(name: str) -> str:
    """Return a template or style sheet unrendered, for instance `phases/p6_baking/report.css`."""
    env = environment()
    assert env.loader is not None
    return env.loader.get_source(env, name)[0]


def templates_digest() -> str:
    """Return a digest of every template and style sheet, the part of the report's code that no module imports."""
    hasher = hashlib.sha256()
    for name in environment().list_templates(extensions=["css", "j2"]):
        hasher.update(f"{name}\n{source(name)}\n".encode())
    return hasher.hexdigest()[:16]


def _zip(*rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True))


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))


def _interval_chart(rows: Sequence[Any], value: str, title: str) -> Markup:
    """Return an interval chart of documents with a name, the two ends, and the value in the field `value`."""
    return interval_chart([Interval(row.name, getattr(row, value), row.low, row.high) for row in rows], title)
