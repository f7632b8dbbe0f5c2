"""The names that the command line imports from here, until it takes them from `forge_assets.report`."""

from forge_assets.report.history import history_sections
from forge_assets.report.terminal import history_json, print_history, state, states_table

__all__ = ["history_json", "history_sections", "print_history", "state", "states_table"]
