"""`forge up`: start the Dagster UI and the MLflow server."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

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

        stopped = threading.Event()

        def say(text: str) -> None:
            console.print(escape(text), soft_wrap=True)

        def ready() -> None:
            console.print(f"Dagster  http://127.0.0.1:{port}\nMLflow   http://127.0.0.1:{mlflow_port}")
            console.print("Ctrl-C stops both.")
            threading.Thread(target=deliver_journals, args=(home, say, stopped), daemon=True).start()

        console.print(f"Starting; logs in {home / 'logs'}", soft_wrap=True)
        environment.setdefault("PYTHONUTF8", "1")  # what the servers write must not depend on the terminal
        try:
            serve(wanted, environment, ready)
        finally:
            stopped.set()
        console.print("Stopped.")


def deliver_journals(home: Path, say: Callable[[str], None], stop: threading.Event, interval_s: float = 30.0) -> None:
    """Deliver to MLflow, now and again until `stop`, what runs tracked while it was away or before they were killed."""
    journals = home / "tracking"
    while not stop.is_set():
        if before := len(list(journals.glob("*.jsonl"))):
            from forge_resources.tracking import MlflowTracking

            try:
                left = MlflowTracking().replay(warn=say)
            except ValueError as error:
                say(f"nothing that was kept in {journals} is delivered to MLflow: {error}")
                return
            if left < before:
                say(f"MLflow was given what runs had tracked meanwhile: {before - left} of {before} journals")
        stop.wait(interval_s)
