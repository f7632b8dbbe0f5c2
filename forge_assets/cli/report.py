"""`forge report`: show the ledger or the history of every gate in the terminal, or write JSON, HTML or JUnit XML."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from forge_assets.cli.common import Profile, errors, open_forge

if TYPE_CHECKING:
    from forge_assets.graph_view import Forge


def report(
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the ledger as one HTML page.")] = None,
    gates: Annotated[bool, typer.Option("--gates", help="The history of every gate and claim over runs.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the latest verdicts as JUnit XML.")] = None,
    profile: Profile = "nano",
) -> None:
    """Show all measurements, gates and claims."""
    with errors(), open_forge(profile) as forge:
        if gates or junit is not None:
            _report_gates(forge, Console(highlight=False), html=html, junit=junit, as_json=as_json)
            return
        from forge_assets.ledger import collect
        from forge_assets.report import html_page, missing_lines, print_ledger

        ledger = collect(forge)
        if html is not None:
            html.write_text(html_page(ledger), encoding="utf-8")
        if as_json:
            typer.echo(json.dumps(ledger.as_json(), indent=2, allow_nan=False))
            for line in missing_lines(ledger):
                typer.echo(line, err=True)
        elif html is not None:
            typer.echo(f"wrote {html.resolve()}")
        else:
            print_ledger(ledger, Console(highlight=False))


def _report_gates(forge: "Forge", console: Console, *, html: Path | None, junit: Path | None, as_json: bool) -> None:
    """Write and print the output of `forge report --gates` and `--junit`."""
    from forge_assets.forge_report import ReportConfig
    from forge_assets.gate_history import collect_gates
    from forge_assets.junit import junit_xml
    from forge_assets.ledger import collect
    from forge_assets.report import html_page
    from forge_assets.report.history import history_sections
    from forge_assets.report.terminal import history_json, print_history

    models = collect_gates(forge)
    limit = ReportConfig().verdicts
    if html is not None:
        html.write_text(html_page(collect(forge), history_sections(models, limit)), encoding="utf-8")
    if junit is not None:
        junit.write_text(junit_xml(models), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(history_json(models), indent=2, allow_nan=False))
        return
    written = [path for path in (html, junit) if path is not None]
    for path in written:
        typer.echo(f"wrote {path.resolve()}")
    if not written:
        print_history(models, console, limit)
