"""`forge sandbox`: show which sandbox would run model-written code, and build its container image."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from forge_assets.cli.common import errors

app = typer.Typer(
    name="sandbox",
    help="Where model-written code runs: an embedded interpreter, or containers. Never on the host.",
    no_args_is_help=True,
)


@app.command()
def status(
    attack: Annotated[bool, typer.Option("--probe", help="Run hostile programs in the selected sandbox.")] = False,
) -> None:
    """Show which sandbox would be used, and what an unavailable one lacks."""
    from forge_resources.sandbox import Kind, describe, open_sandbox, probe

    console = Console(highlight=False)
    kinds: dict[str, Kind] = {"would run": "auto", "embedded": "embedded", "container": "container"}
    for title, kind in kinds.items():
        console.print(f"[bold]{title:<17}[/] {escape(describe(kind))}", soft_wrap=True, highlight=False)
    if attack:
        with errors(), open_sandbox() as sandbox:
            outcome = probe(sandbox)
        console.print(escape(outcome.describe()), soft_wrap=True, highlight=False)
        if outcome.breaches:
            raise typer.Exit(1)


@app.command()
def build_image(
    source: Annotated[str, typer.Option("--from", help="Pull this image, NAME@sha256:DIGEST.")] = "",
    reference: Annotated[str, typer.Option(help="Name of the image.", envvar="FORGE_SANDBOX_IMAGE")] = "",
    force: Annotated[bool, typer.Option(help="Build it again even if the engine has it.")] = False,
) -> None:
    """Build the image of the container sandbox from Debian packages, or pull it by digest."""
    from forge_resources.sandbox.choose import connected
    from forge_resources.sandbox.engine import DEFAULT_IMAGE
    from forge_resources.sandbox.image import build_image as build
    from forge_resources.sandbox.image import has_image, pull_image

    name = reference or DEFAULT_IMAGE
    with errors(), connected() as client:
        if has_image(client, name) and not force:
            typer.echo(f"{name} is there; --force makes it again")
        else:
            made = pull_image(client, source, name) if source else build(client, name)
            typer.echo(f"{name} is {made}")
