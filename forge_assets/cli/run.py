"""`forge run`: make and judge every model that is missing or stale, then print the ledger."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from forge_assets.cli.common import INTERRUPTED, Profile, errors, make_and_judge, open_forge
from forge_assets.config_file import read_overrides

if TYPE_CHECKING:
    from forge_assets.ledger import Ledger


def run(
    profile: Profile = "nano",
    select: Annotated[list[str] | None, typer.Option(help="Make only this asset; may be repeated.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file: asset, then fields and values.")] = None,
    force: Annotated[list[str] | None, typer.Option(help="Make this asset again even if it is fresh.")] = None,
    defaults: Annotated[
        bool,
        typer.Option("--defaults", help="Go back to the profile's values, also where an asset was made with others."),
    ] = False,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also train the controls: students that lack one part of the chain each.")
    ] = False,
) -> None:
    """Make every model that is missing or stale, judge it, and print the ledger.

    An asset keeps the configuration that it was made with, until another one is given or --defaults.
    """
    console = Console(highlight=False)
    with errors(), open_forge(profile) as forge:
        overrides = read_overrides(config)
        again = _command(profile, config, defaults=defaults, controls=controls)
        problems, interrupted = make_and_judge(
            forge, overrides, select or [], force or [], console, defaults=defaults, controls=controls
        )
        if interrupted:
            console.print(f"Interrupted; {again} continues.", soft_wrap=True)
            raise typer.Exit(INTERRUPTED)
        from forge_assets.ledger import collect
        from forge_assets.report import print_ledger

        ledger = collect(forge)
        console.print()
        print_ledger(ledger, console, verdicts=False)
        for problem in problems:
            console.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
        _next_steps(ledger, again, console)
    if problems:
        raise typer.Exit(1)


def _command(profile: str, config: Path | None, *, defaults: bool, controls: bool) -> str:
    """Return the command that goes on with this run."""
    given = f" --config {shlex.quote(str(config))}" if config is not None else ""
    flags = f"{' --defaults' if defaults else ''}{' --controls' if controls else ''}"
    return f"forge run --profile {profile}{given}{flags}"


def _next_steps(ledger: "Ledger", again: str, console: Console) -> None:
    made = ledger.artifact is not None and ledger.artifact.path
    lines = (
        f'forge generate --artifact {made} "The "' if made else f"{again}   # continues",
        "forge report --html report.html",
        "forge up",
    )
    for line in lines:
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
