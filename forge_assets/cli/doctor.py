"""`forge doctor`: the resources of this machine, and the profiles that will run on it."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from forge_assets.cli.common import dagster_home, errors, forge_home_below, home_problem, set_waiting

MEASURED_S = 10.0  # of training steps at each profile's shape


def doctor(
    measure: Annotated[bool, typer.Option(help="Take training steps for half a minute to estimate hours.")] = True,
) -> None:
    """Show the resources of this machine, which profiles will run on it, and how long their training takes."""
    console = Console(highlight=False)
    with errors():
        set_waiting()
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
            time = f"; {_training_time(needs.profile)}" if measure else ""
            console.print(f"[bold]{needs.profile:<17}[/] {verdict}{time}", soft_wrap=True, highlight=False)


def _training_time(profile_name: str) -> str:
    """How long the training steps of a profile take on this machine, from some at the trunk's shape."""
    from training_core.profiles import profile_of, training_tokens
    from training_core.training.speed import tokens_per_second

    profile = profile_of(profile_name)
    trunk = profile.trunk
    speed = tokens_per_second(trunk.shape, profile.tokenizer.vocab_size, trunk.training, MEASURED_S)
    minutes = training_tokens(profile) / speed / 60
    time = f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:,.0f} hours"
    return f"its training steps take about {time} here ({speed:,.0f} tokens/s), measuring comes on top"
