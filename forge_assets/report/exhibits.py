"""Exhibits: what a phase shows in addition to metrics, as HTML for the report and as Markdown for Dagster.

A phase declares its exhibit in `exhibit.py`, and renders it with the macro of the exhibit's name in `report.html.j2`
and the styles in `report.css` of the same package. To add an exhibit, add these files and a line in `_KNOWN`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from markupsafe import Markup
from pydantic import ValidationError

from forge_assets.report import markdown as as_markdown
from forge_assets.report.templates import macro, source
from training_core.exhibit import Document
from training_core.phases.p3_quiet_star.exhibit import ThoughtsExhibit
from training_core.phases.p5_curriculum.exhibit import CharacterExhibit, PracticeExhibit
from training_core.phases.p6_baking.exhibit import BakedExhibit
from training_core.phases.p7_experts.exhibit import ExpertsExhibit

D = TypeVar("D", bound=Document)


class ExhibitError(ValueError):
    """An exhibit has no renderer, or its document does not match the renderer's schema."""


@dataclass(frozen=True, slots=True)
class Exhibit(Generic[D]):
    """The renderer of documents of the class `document`.

    `phase` is the package that holds the template; `markdown` returns at most 30 lines. With `measures`, the styles of
    `measures.css` apply in addition to the phase's own.
    """

    title: str
    document: type[D]
    phase: str
    markdown: Callable[[D], str]
    measures: bool = True

    def read(self, document: Any) -> D:
        """Validate a document as JSON, which is how the bundle stores it, and return it as its class.

        Raises:
            ExhibitError: naming the first field that violates the schema.
        """
        try:
            return self.document.model_validate_json(json.dumps(document))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ExhibitError(
                f"the exhibit {self.title!r} breaks {self.document.__name__} in {error.error_count()} places, "
                f"first at {place}: {first['msg']}, got {first['input']!r:.80}. Change what the phase hands over."
            ) from error
        except (TypeError, ValueError) as error:
            raise ExhibitError(f"the exhibit {self.title!r} is not JSON ({error})") from error


_KNOWN: Mapping[str, Exhibit[Any]] = {
    "thoughts": Exhibit("Thoughts", ThoughtsExhibit, "p3_quiet_star", as_markdown.thoughts, measures=False),
    "practice": Exhibit("Practice", PracticeExhibit, "p5_curriculum", as_markdown.practice),
    "character": Exhibit("Character", CharacterExhibit, "p5_curriculum", as_markdown.character),
    "baked": Exhibit("Baked prompts", BakedExhibit, "p6_baking", as_markdown.baked),
    "experts": Exhibit("Experts", ExpertsExhibit, "p7_experts", as_markdown.experts),
}


def render(name: str, document: Any) -> Markup:
    """Return the exhibit as HTML without scripts or external resources; the page must also contain `style()`.

    Raises:
        ExhibitError: for a name without a renderer, or a document that violates its schema.
    """
    exhibit = _exhibit(name)
    kind = f"exhibit-{name} exhibit-measures" if exhibit.measures else f"exhibit-{name}"
    shown = macro(f"phases/{exhibit.phase}/report.html.j2", name, exhibit.read(document))
    return Markup('<div class="{}">{}</div>').format(kind, shown)


def markdown(name: str, document: Any) -> str:
    """Return the exhibit's main numbers as Markdown of at most 30 lines.

    Raises:
        ExhibitError: as for `render`.
    """
    exhibit = _exhibit(name)
    return exhibit.markdown(exhibit.read(document))


def title(name: str) -> str:
    """Return the exhibit's heading.

    Raises:
        ExhibitError: for a name without a renderer.
    """
    return _exhibit(name).title


def written(name: str, document: Any) -> list[tuple[str, str]]:
    """Return sample texts of the stored model, (beginning, continuation); empty if the exhibit has no readable ones.

    They belong to the baked prompt that was kept last, because its half-baked model is the stored one.
    """
    if name != "baked":
        return []
    try:
        shown = BakedExhibit.model_validate_json(json.dumps(document))
    except (ValidationError, TypeError, ValueError):
        return []
    last = next((step.prompt for step in reversed(shown.timeline) if step.kept), None)
    return [(x.given, x.half_baked) for x in shown.generations if x.prompt == last]


def style() -> str:
    """Return the CSS of all exhibits; every selector starts with the class of its exhibit."""
    phases = dict.fromkeys(exhibit.phase for exhibit in _KNOWN.values())
    return "\n".join(source(name) for name in ("measures.css", *(f"phases/{phase}/report.css" for phase in phases)))


def _exhibit(name: str) -> Exhibit[Any]:
    if name not in _KNOWN:
        raise ExhibitError(
            f"there is no renderer for the exhibit {name!r}: known are {', '.join(_KNOWN)}; "
            "rename it or add one to forge_assets.report.exhibits"
        )
    return _KNOWN[name]
