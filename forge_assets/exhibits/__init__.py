"""What a phase shows to a person besides numbers: JSON documents, and one small module for each that renders it.

A phase hands over `Product.exhibits`, a name to a document; the bundle keeps them; `forge report --html` shows
`render`, Dagster's page of the materialization shows `markdown`. A new kind of exhibit is a module with a schema and
an `Exhibit`, and a line in `_KNOWN`. Every text in a document counts as untrusted: a model may have written it.
"""

from collections.abc import Mapping
from typing import Any

from forge_assets.exhibits import baked, character, experts, measured, practice, thoughts
from forge_assets.exhibits.exhibit import Exhibit, ExhibitError

__all__ = ["ExhibitError", "markdown", "render", "style", "title"]

_KNOWN: Mapping[str, Exhibit[Any]] = {
    "thoughts": thoughts.EXHIBIT,
    "practice": practice.EXHIBIT,
    "character": character.EXHIBIT,
    "baked": baked.EXHIBIT,
    "experts": experts.EXHIBIT,
}


def render(name: str, document: Any) -> str:
    """The exhibit as HTML without scripts or external resources; the page also needs `style`.

    Raises:
        ExhibitError: for a name without a renderer, or a document that breaks its schema.
    """
    exhibit = _exhibit(name)
    kind = f"exhibit-{name} exhibit-measures" if exhibit.measures else f"exhibit-{name}"
    return f'<div class="{kind}">{exhibit.html(exhibit.read(document))}</div>'


def markdown(name: str, document: Any) -> str:
    """The exhibit's main numbers as Markdown of at most 30 lines.

    Raises:
        ExhibitError: as for `render`.
    """
    exhibit = _exhibit(name)
    return exhibit.markdown(exhibit.read(document))


def title(name: str) -> str:
    """The exhibit's heading.

    Raises:
        ExhibitError: for a name without a renderer.
    """
    return _exhibit(name).title


def style() -> str:
    """The CSS of all exhibits."""
    return "\n".join([measured.CSS, *(exhibit.css for exhibit in _KNOWN.values())])


def _exhibit(name: str) -> Exhibit[Any]:
    if name not in _KNOWN:
        raise ExhibitError(
            f"there is no renderer for the exhibit {name!r}: known are {', '.join(_KNOWN)}; "
            "rename it or add one to forge_assets.exhibits"
        )
    return _KNOWN[name]
