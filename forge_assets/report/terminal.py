"""The ledger and the history of gates as tables in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape as plain
from rich.table import Table
from rich.text import Text

from forge_assets.gate_history import AssetGates
from forge_assets.ledger import Ledger
from forge_assets.report.cells import (
    CONTROL_COLUMNS,
    GATE_COLUMNS,
    MODEL_COLUMNS,
    VERDICT_COLUMNS,
    artifact_line,
    chain_lines,
    colour_of,
    control_cells,
    corpus_lines,
    gate_cells,
    missing_lines,
    model_cells,
    outdated_lines,
    verdict_cells,
)
from forge_assets.report.yardsticks import TITLE as YARDSTICKS
from forge_assets.report.yardsticks import baseline_lines, yardsticks
from forge_resources.overrides import utc_text


def print_ledger(ledger: Ledger, console: Console, *, verdicts: bool = True) -> None:
    """Print the models and what is missing; with `verdicts` also every gate and claim, and the compressed file."""
    parts: list[RenderableType] = []
    if ledger.models:
        parts.append(_models_table(ledger))
        if ledger.controls:
            parts.append(_controls_table(ledger))
        parts += [Text.from_markup(f"[yellow]{plain(line)}[/]") for line in outdated_lines(ledger)]
    if verdicts and ledger.gates:
        parts.append(_gates_table(ledger))
    if ledger.artifact is not None and verdicts:
        parts.append(Text(artifact_line(ledger.artifact)))
    columns, rows = yardsticks(ledger)
    if rows:
        parts.append(_cells_table(YARDSTICKS, columns, rows))
    notes = [*baseline_lines(ledger), *chain_lines(ledger), *corpus_lines(ledger), *missing_lines(ledger)]
    parts += [Text.from_markup(f"[dim]{plain(line)}[/]") for line in notes]
    console.print(Group(*parts), soft_wrap=False)


def print_history(models: Sequence[AssetGates], console: Console, limit: int) -> None:
    """Print the last `limit` verdicts of every gate and claim, and all overrides, expired ones included."""
    parts: list[RenderableType] = []
    for gates in models:
        for (name, blocking), entries in gates.histories().items():
            table = _table(f"{gates.asset}: {'gate' if blocking else 'claim'} {name}")
            for column in VERDICT_COLUMNS:
                number = column in ("value", "required", "margin")
                table.add_column(column, justify="right" if number else "left", no_wrap=True)
            for entry in entries[-limit:]:
                cells = verdict_cells(entry)
                table.add_row(utc_text(entry.at)[5:16].replace("T", " "), *cells[1:-1], _coloured(cells[-1]))
            parts.append(table)
    parts += override_lines(models)
    if not parts:
        parts.append(Text("No gate was judged yet: forge run makes and judges models."))
    console.print(Group(*parts), soft_wrap=False)


def state(gates: AssetGates) -> str:
    """Return the state of a gate: `open`, `OVERRIDDEN`, `CLOSED`, or `not made`."""
    if gates.version is None:
        return "not made"
    if gates.closed:
        return "CLOSED"
    return "open" if gates.override is None else "OVERRIDDEN"


def states_table(models: Sequence[AssetGates]) -> RenderableType:
    """Return the table that `forge gate list` prints: the state of every gate, and why it is closed or overridden."""
    table = Table("model", "gate", "why", box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    colours = {"open": "green", "CLOSED": "red", "OVERRIDDEN": "yellow"}
    for gates in models:
        word = state(gates)
        why = gates.override.describe() if gates.override is not None else "; ".join(gates.closed)
        table.add_row(gates.asset, Text(word, colours.get(word, "dim")), plain("" if word == "not made" else why))
    return table


def override_lines(models: Sequence[AssetGates]) -> list[Text]:
    """Return a line for every override, newest last, that says whether it is in force."""
    lines = []
    for gates in models:
        for override in reversed(gates.overrides):
            force = "in force" if override == gates.override else "expired"
            what = f"{override.asset} {override.digest[:8]} ({', '.join(override.failed)})"
            lines.append(Text(f"{what} {override.describe()} [{force}]", "yellow"))
    return lines


def history_json(models: Sequence[AssetGates]) -> dict[str, Any]:
    """Return every gate and claim with all of its verdicts, and every override, as plain values."""
    return {
        "gates": [
            {
                "asset": gates.asset,
                "gate": name,
                "blocking": blocking,
                "evidence": entries[-1].evidence,
                "against": entries[-1].against,
                "verdicts": [entry.as_json() for entry in entries],
            }
            for gates in models
            for (name, blocking), entries in gates.histories().items()
        ],
        "overrides": [
            {**override.as_json(), "in_force": override == gates.override}
            for gates in models
            for override in gates.overrides
        ],
    }


def _table(title: str) -> Table:
    """Return an empty table, styled narrowly enough for a terminal of 80 columns."""
    style = {"title_justify": "left", "title_style": "bold", "header_style": "dim"}
    return Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False, **style)  # type: ignore[arg-type]


def _models_table(ledger: Ledger) -> Table:
    table = _table(f"Ledger, profile {ledger.profile}")
    for title in MODEL_COLUMNS:
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    for row in ledger.models:
        cells = model_cells(ledger, row)
        table.add_row(*cells[:-2], *(f"[{colour_of(cell)}]{cell}[/]" for cell in cells[-2:]))
    return table


def _cells_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = _table(title)
    for name in columns:
        first = name == columns[0]
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
    for row in rows:
        table.add_row(*row)
    return table


def _controls_table(ledger: Ledger) -> Table:
    table = _table("Controls: students that lack one part of the chain, beside the file")
    for title in CONTROL_COLUMNS:
        table.add_column(title, justify="left" if title in ("control", "better") else "right", no_wrap=True)
    for row in ledger.controls:
        table.add_row(*control_cells(row))
    return table


def _gates_table(ledger: Ledger) -> Table:
    table = _table("Gates and claims")
    for title in GATE_COLUMNS:
        number = title in ("value", "required", "margin")
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in ledger.gates:
        cells = gate_cells(row)
        table.add_row(*cells[:-1], f"[{colour_of(cells[-1])}]{cells[-1]}[/]")
    return table


def _coloured(verdict: str) -> Text:
    return Text(verdict, {"passed": "green", "FAILED": "red", "OVERRIDDEN": "yellow"}[verdict])
