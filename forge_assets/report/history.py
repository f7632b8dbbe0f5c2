"""The history of gates and claims as page sections: every override, then a plot of each gate by model."""

from collections.abc import Sequence

from markupsafe import Markup

from forge_assets.gate_history import AssetGates
from forge_assets.report.templates import macro

_TEMPLATE = "history.html.j2"


def history_sections(models: Sequence[AssetGates], limit: int) -> list[tuple[str, Markup]]:
    """Return titles and contents of the sections, with the last `limit` verdicts of each gate."""
    sections = [("Overrides", macro(_TEMPLATE, "overrides", models))]
    for gates in models:
        title, histories = f"Over time: {gates.asset}", gates.histories().items()
        sections.append((title, macro(_TEMPLATE, "histories", histories, limit)))
    return [(title, content) for title, content in sections if content]
