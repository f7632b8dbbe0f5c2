"""`forge import`: import a bundle that was made elsewhere into the graph, and judge it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forge_assets.cli.common import errors, make_and_judge, open_forge


def import_model(
    folder: Annotated[Path, typer.Argument(help="Bundle folder: the --out of python -m training_core.")],
) -> None:
    """Import a model that was made on another machine into the store, measure it here, and judge it."""
    console = Console(highlight=False)
    with errors():
        from training_core.registry import PHASES
        from training_core.store.bundle import open_bundle

        bundle = open_bundle(folder.resolve())
        lineage = bundle.lineage()
        if lineage.asset not in PHASES:
            raise ValueError(f"{folder} holds a {lineage.asset!r}, which is no model of the graph: {', '.join(PHASES)}")
        with open_forge(lineage.profile) as forge:
            from forge_assets.importing import import_bundle
            from forge_resources.reporters import ProgressReporter

            reporter = ProgressReporter(lineage.asset)
            try:
                with forge.store.alone(lineage.asset, "forge import", console.print):
                    stored = import_bundle(forge, PHASES[lineage.asset], bundle, lineage, reporter)
            finally:
                reporter.close()
            console.print(f"imported {lineage.asset} {lineage.digest[:16]} to {stored}", soft_wrap=True)
            problems, _ = make_and_judge(forge, {lineage.asset: dict(lineage.config)}, [lineage.asset], [], console)
            for problem in problems:
                console.print(f"[red]{problem}[/]", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
