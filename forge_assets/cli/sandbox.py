"""`forge sandbox`: what model-written code would run in, and the image of its containers."""

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
    attack: Annotated[bool, typer.Option("--probe", help="Run hostile programs in the one that would run.")] = False,
) -> None:
    """Say which sandbox would run, and for the other one what it lacks."""
    from forge_resources.sandbox import Kind, describe, open_sandbox, probe

    console = Console(highlight=False)
    kinds: dict[str, Kind] = {"would run": "auto", "embedded": "embedded", "container": "container"}
    for title, kind in kinds.items():
        console.print(f"[bold]{title:<17}[/] {escape(describe(kind))}", soft_wrap=True, highlight=False)
    if attack:
        with errors(), open_sandbox() as sandbox:
            found = probe(sandbox)
        console.print(escape(found.describe()), soft_wrap=True, highlight=False)
        if found.breaches:
            raise typer.Exit(1)


@app.command()
def build_image(
    source: Annotated[str, typer.Option("--from", help="Pull this image, NAME@sha256:DIGEST.")] = "",
    reference: Annotated[str, typer.Option(help="The name it gets.", envvar="FORGE_SANDBOX_IMAGE")] = "",
    force: Annotated[bool, typer.Option(help="Make it again though the engine has it.")] = False,
) -> None:
    """Make the image of the container sandbox: of Debian's packages, or pulled by digest."""
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
