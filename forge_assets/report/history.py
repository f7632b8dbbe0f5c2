"""The history of gates and claims as sections of the page: every override, then for each model a plot of each gate."""

from collections.abc import Sequence

from markupsafe import Markup

from forge_assets.gate_history import AssetGates
from forge_assets.report.templates import macro

_TEMPLATE = "history.html.j2"


def history_sections(models: Sequence[AssetGates], limit: int) -> list[tuple[str, Markup]]:
    """Titles and contents; of each gate the last `limit` verdicts."""
    sections = [("Overrides", macro(_TEMPLATE, "overrides", models))]
    for gates in models:
        title, histories = f"Over time: {gates.asset}", gates.histories().items()
        sections.append((title, macro(_TEMPLATE, "histories", histories, limit)))
    return [(title, content) for title, content in sections if content]
