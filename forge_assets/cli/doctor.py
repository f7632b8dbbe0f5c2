"""`forge doctor`: the resources of this machine, and the profiles that will run on it."""

from rich.console import Console
from rich.markup import escape

from forge_assets.cli.common import dagster_home, errors, forge_home_below, home_problem


def doctor() -> None:
    """Show the resources of this machine and which profiles will run on it."""
    console = Console(highlight=False)
    with errors():
        home = dagster_home()
        folder = forge_home_below(home)
        problems = [home_problem("DAGSTER_HOME", home), home_problem("FORGE_HOME", folder)]
        from forge_resources.compute import REQUIREMENTS, inspect_machine, obstacles

        machine = inspect_machine(folder)
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
        if problem := problems[0] or problems[1]:
            facts["home"] = problem
        for name, fact in facts.items():
            console.print(f"[bold]{name:<17}[/] {escape(fact)}", soft_wrap=True, highlight=False)
        for needs in REQUIREMENTS:
            lacks = obstacles(machine, needs)
            verdict = f"[yellow]will not run: {'; '.join(lacks)}[/]" if lacks else f"[green]will run[/], {needs.time}"
            console.print(f"[bold]{needs.profile:<17}[/] {verdict}", soft_wrap=True, highlight=False)
