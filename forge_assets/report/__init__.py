"""The report for people: one HTML page that needs nothing else, tables on the terminal, Markdown for Dagster.

page         the whole page: one screen, then a fold for each phase
exhibits     what a phase shows besides numbers, drawn by the template beside its code
history      sections of the page with every verdict over time
terminal     the same ledger and history as tables
cells        what the cells of all tables say
components   macros and drawings that the templates share
templates    the jinja2 environment
"""

from forge_assets.report.cells import missing_lines
from forge_assets.report.page import html_page
from forge_assets.report.terminal import print_ledger

__all__ = ["html_page", "missing_lines", "print_ledger"]
