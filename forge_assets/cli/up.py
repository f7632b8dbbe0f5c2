"""`forge up`: start the Dagster UI and the MLflow server."""

import os
from typing import Annotated

import typer
from rich.console import Console

from forge_assets.cli.common import ROOT, Profile, errors, set_environment


def up(
    profile: Profile = "nano",
    port: Annotated[int, typer.Option(help="Port of the Dagster pages.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow pages.")] = 5000,
) -> None:
    """Start the Dagster UI and the MLflow server; Ctrl-C stops both."""
    console = Console(highlight=False)
    with errors():
        set_environment(profile)
        from forge_assets.services import serve, services
        from forge_resources import forge_home

        home = forge_home()
        home.mkdir(parents=True, exist_ok=True)
        workspace = ROOT / "workspace.yaml"
        wanted = services(home, port, mlflow_port, workspace if workspace.is_file() else None)
        environment = dict(os.environ)
        if workspace.is_file():  # in a source tree, the packages may not be installed
            paths = [str(ROOT), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

        def ready() -> None:
            console.print(f"Dagster  http://127.0.0.1:{port}\nMLflow   http://127.0.0.1:{mlflow_port}")
            console.print("Ctrl-C stops both.")

        console.print(f"Starting; logs in {home / 'logs'}", soft_wrap=True)
        serve(wanted, environment, ready)
        console.print("Stopped.")
