"""`forge doctor`: the resources of this machine, and the profiles that will run on it."""

import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from forge_assets.cli.common import dagster_home, errors


def doctor() -> None:
    """Show the resources of this machine and which profiles will run on it."""
    console = Console(highlight=False)
    with errors():
        home = dagster_home()
        from forge_resources.compute import REQUIREMENTS, inspect_machine, obstacles

        machine = inspect_machine(Path(os.environ.get("FORGE_HOME") or home / "forge"))
        facts = {
            "processor": f"{machine.cores} cores",
            "memory": f"{machine.memory_bytes / 1e9:.1f} GB, {machine.available_bytes / 1e9:.1f} GB free",
            "GPU": f"{machine.gpu}, {machine.gpu_bytes / 1e9:.1f} GB" if machine.gpu else "none that torch can use",
            "container engine": machine.engine
            or "none: the docker-compose deployment and the container sandbox will not run; all else does",
            "sandbox": machine.sandbox,
            "free disk": f"{machine.disk_free_bytes / 1e9:.1f} GB for {machine.home}",
            "versions": ", ".join(f"{name} {number}" for name, number in machine.versions.items()),
        }
        for name, fact in facts.items():
            console.print(f"[bold]{name:<17}[/] {escape(fact)}", soft_wrap=True, highlight=False)
        for needs in REQUIREMENTS:
            lacks = obstacles(machine, needs)
            verdict = f"[yellow]will not run: {'; '.join(lacks)}[/]" if lacks else f"[green]will run[/], {needs.time}"
            console.print(f"[bold]{needs.profile:<17}[/] {verdict}", soft_wrap=True, highlight=False)
