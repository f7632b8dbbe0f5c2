"""`forge gate`: list the state of every gate, and override a gate that failed."""

import json
from typing import Annotated

import psutil
import typer
from rich.console import Console

from forge_assets.cli.common import errors, open_forge

app = typer.Typer(
    name="gate", help="Quality gates: list their state, and override one that failed.", no_args_is_help=True
)


@app.command("list")
def list_gates(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """List for every model whether its gate is open, closed (and why) or overridden (by whom and why)."""
    with errors(), open_forge("nano") as forge:
        from forge_assets.gate_history import collect_gates
        from forge_assets.report.terminal import state, states_table

        models = collect_gates(forge)
        if as_json:
            rows = [
                {
                    "asset": gates.asset,
                    "state": state(gates),
                    "closed": list(gates.closed),
                    "override": None if gates.override is None else gates.override.as_json(),
                }
                for gates in models
            ]
            typer.echo(json.dumps(rows, indent=2, allow_nan=False))
        else:
            Console(highlight=False).print(states_table(models))


@app.command()
def override(
    asset: Annotated[str, typer.Argument(help="The model whose gate failed.")],
    reason: Annotated[str, typer.Option(help="Why the model may be used anyway. It stays in the report permanently.")],
) -> None:
    """Open a failed gate for the version that failed it, and only for that version: the next one is judged again."""
    with errors(), open_forge("nano") as forge:
        import dagster as dg

        from forge_resources.gatekeeping import override_gate

        checks = [check for check in forge.checks_of(asset) if check.name == "gate"] if asset in forge.assets() else []
        if not checks:
            models = [name for name in forge.assets() if forge.checks_of(name)]
            raise ValueError(f"there is no model {asset!r}: choose {', '.join(models)}")
        who = psutil.Process().username()
        made = override_gate(forge.instance, dg.AssetKey(asset), checks, reason=reason, who=who)
        typer.echo(f"{asset} {made.digest[:8]}: {', '.join(made.failed)} {made.describe()}")
        typer.echo(f"The verdict stays red. The next materialization of {asset} closes the gate again.")
