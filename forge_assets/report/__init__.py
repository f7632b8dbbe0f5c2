"""The report for people: one self-contained HTML page, tables in the terminal, Markdown for Dagster.

page         the HTML page: a first screen, then a collapsible section per phase
exhibits     what a phase shows in addition to metrics, rendered by the template in its package
history      page sections with every verdict over time
terminal     the ledger and the history as terminal tables
cells        the text of table cells, shared by page and terminal
components   macros and drawings shared by the templates
templates    the jinja2 environment
"""

from forge_assets.report.cells import missing_lines
from forge_assets.report.page import html_page
from forge_assets.report.terminal import print_ledger

__all__ = ["html_page", "missing_lines", "print_ledger"]
