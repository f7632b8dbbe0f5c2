"""The command line: `forge run`, `report`, `gate`, `generate`, `doctor`, `up`.

Heavy libraries are imported by the command that needs them, after the environment was set: `forge generate --artifact`
loads neither Dagster nor MLflow.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from forge_assets.cli_gates import app as gate_app
from forge_assets.cli_gates import report_gates
from forge_assets.cli_import import import_model
from forge_assets.cli_repair import app as repair_app
from forge_assets.cli_sandbox import app as sandbox_app
from forge_assets.speaking import Switch, from_artifact, from_bundle, from_experts

if TYPE_CHECKING:
    from forge_assets.freshness import Forge
    from forge_assets.ledger import Ledger
    from training_core.store.bundle import Bundle

app = typer.Typer(
    name="forge",
    help="Trains a small language model from scratch, phase by phase, and measures every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(sandbox_app)
app.add_typer(repair_app)
app.add_typer(gate_app)
app.command("import")(import_model)
INTERRUPTED = 130
WAITING_SPINS = "1000"  # of a thread that waits for another; by default .3 million, which a busy core makes endless
_ROOT = Path(__file__).resolve().parents[1]
Profile = Annotated[str, typer.Option(help="nano, mini or forge_25m.", envvar="FORGE_PROFILE")]


@app.command()
def run(
    profile: Profile = "nano",
    select: Annotated[list[str] | None, typer.Option(help="Make only this asset; may be repeated.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file: asset, then fields and values.")] = None,
    force: Annotated[list[str] | None, typer.Option(help="Make this asset again though it is fresh.")] = None,
) -> None:
    """Make every model that is missing or stale, judge it, and print the ledger."""
    console = Console(highlight=False)
    with _errors(), _forge(profile) as forge:
        overrides = _overrides(config)
        problems, interrupted = _run(forge, overrides, select or [], force or [], console)
        if interrupted:
            console.print("Interrupted; run again to continue.")
            raise typer.Exit(INTERRUPTED)
        from forge_assets.ledger import collect
        from forge_assets.report import print_ledger

        ledger = collect(forge)
        console.print()
        print_ledger(ledger, console, verdicts=False)
        for problem in problems:
            console.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
        _next_steps(ledger, console)
    if problems:
        raise typer.Exit(1)


@app.command()
def report(
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the ledger as one HTML page.")] = None,
    gates: Annotated[bool, typer.Option("--gates", help="The history of every gate and claim over runs.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the latest verdicts as JUnit XML.")] = None,
    profile: Profile = "nano",
) -> None:
    """Show what was measured, and every gate and claim."""
    with _errors(), _forge(profile) as forge:
        if gates or junit is not None:
            report_gates(forge, Console(highlight=False), html=html, junit=junit, as_json=as_json)
            return
        from forge_assets.ledger import collect
        from forge_assets.report import html_page, missing_lines, print_ledger

        ledger = collect(forge)
        if html is not None:
            html.write_text(html_page(ledger))
        if as_json:
            typer.echo(json.dumps(ledger.as_json(), indent=2, allow_nan=False))
            for line in missing_lines(ledger):
                typer.echo(line, err=True)
        elif html is not None:
            typer.echo(f"wrote {html.resolve()}")
        else:
            print_ledger(ledger, Console(highlight=False))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    artifact: Annotated[Path | None, typer.Option(help="A model.forge file; nothing else is needed.")] = None,
    model: Annotated[str | None, typer.Option(help="A model of the graph instead, as it was last made.")] = None,
    thoughts: Annotated[Switch, typer.Option(help="auto: think if that was found to help.")] = "auto",
    rule: Annotated[
        str | None, typer.Option(help="Where to think: difficulty (the default), surprise, everywhere or never.")
    ] = None,
    show_thoughts: Annotated[bool, typer.Option("--show-thoughts", help="Print thoughts, in brackets.")] = False,
    experts: Annotated[Switch, typer.Option(help="auto: answer with experts where there are any.")] = "auto",
    point: Annotated[
        int | None, typer.Option(help="Compose the experts as at this point of the search's front (forge report).")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 120,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Mass of the tokens drawn from.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
) -> None:
    """Continue a text with a compressed model, or with any model of the graph.

    A reasoning_model can think, an expert_model and a compressed file answer with the experts that they route to.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    with _errors():
        if artifact is not None and model is None:
            if thoughts == "on" or rule is not None or point is not None:
                raise ValueError(
                    f"{artifact} is a compressed model, which cannot think: use --model reasoning_model for that; "
                    "another --point has --model expert_model"
                )
            pieces = from_artifact(artifact, prompt, experts, options)
        elif model is not None and artifact is None:
            bundle = _latest(model)
            if experts == "on" or point is not None or (experts == "auto" and "experts" in bundle.model_config):
                if thoughts == "on" or rule is not None:
                    raise ValueError(f"{model} answers with experts or thinks, not both: leave one of the two out")
                pieces = from_experts(bundle, prompt, point, options)
            else:
                pieces = from_bundle(bundle, model, prompt, thoughts, rule, options, explain=show_thoughts)
        else:
            raise ValueError("give either --artifact FILE or --model ASSET: it says which model goes on from the text")
        typer.echo(prompt, nl=False)
        for piece, thought in pieces:
            if show_thoughts and thought is not None:
                typer.secho("".join(f"[{_printable(text)}]" for text in thought), nl=False, dim=True)
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()


@app.command()
def doctor() -> None:
    """Say what this machine has and which profiles will run on it."""
    console = Console(highlight=False)
    with _errors():
        home = _dagster_home()
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
            found = obstacles(machine, needs)
            verdict = f"[yellow]will not run: {'; '.join(found)}[/]" if found else f"[green]will run[/], {needs.time}"
            console.print(f"[bold]{needs.profile:<17}[/] {verdict}", soft_wrap=True, highlight=False)


@app.command()
def up(
    profile: Profile = "nano",
    port: Annotated[int, typer.Option(help="Port of the Dagster pages.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow pages.")] = 5000,
) -> None:
    """Start the Dagster UI and the MLflow server; Ctrl-C stops both."""
    console = Console(highlight=False)
    with _errors():
        _environment(profile)
        from forge_assets.services import serve, services
        from forge_resources import forge_home

        home = forge_home()
        home.mkdir(parents=True, exist_ok=True)
        workspace = _ROOT / "workspace.yaml"
        wanted = services(home, port, mlflow_port, workspace if workspace.is_file() else None)
        environment = dict(os.environ)
        if workspace.is_file():  # a source tree need not be installed
            paths = [str(_ROOT), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

        def ready() -> None:
            console.print(f"Dagster  http://127.0.0.1:{port}\nMLflow   http://127.0.0.1:{mlflow_port}")
            console.print("Ctrl-C stops both.")

        console.print(f"Starting; logs in {home / 'logs'}", soft_wrap=True)
        serve(wanted, environment, ready)
        console.print("Stopped.")


def _latest(asset: str) -> "Bundle":
    """The bundle of the latest materialization of `asset`, of whatever profile that was."""
    with _forge("nano") as forge:
        import dagster as dg

        from forge_resources.gatekeeping import latest_materialization

        models = [name for name in forge.assets() if forge.checks_of(name)]
        if asset not in models:
            raise ValueError(f"there is no model {asset!r}: choose {', '.join(models)}")
        record = latest_materialization(forge.instance, dg.AssetKey(asset))
        if record is None:
            raise ValueError(f"{asset} was not made yet: forge run makes it")
        return forge.store.open_materialized(asset, record)


def _printable(text: str) -> str:
    """`text` on one line, with line ends and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _run(
    forge: "Forge",
    overrides: Mapping[str, Mapping[str, Any]],
    select: list[str],
    force: list[str],
    console: Console,
) -> tuple[list[str], bool]:
    """Do what has to be done; the problems met, and whether the user interrupted."""
    from forge_assets.freshness import plan, resolve_config
    from forge_assets.run_graph import execute, release_dead_runs, terminal

    configs = resolve_config(forge, overrides)
    release_dead_runs(forge.instance)
    steps = plan(forge, configs, select=select, force=force)
    problems = [f"{step.asset}: {step.reason}" for step in steps if step.action == "closed"]
    kept = [step.asset for step in steps if step.action == "keep"]
    if kept:
        console.print(f"[dim]fresh: {', '.join(kept)}[/]")
    if any(step.action == "closed" and step.inputs is not None for step in steps):
        problems.append(
            "Running again would change nothing: change the configuration or the code, or make an asset "
            "again with --force ASSET."
        )
    if not any(step.action in ("make", "judge") for step in steps):
        return problems, False
    for step in steps:
        if step.action in ("make", "judge") and step.inputs is not None:
            console.print(f"[dim]{step.action} {step.asset}: {escape(step.reason)}[/]", soft_wrap=True)
    if below := [step.asset for step in steps if step.action == "make" and step.inputs is None]:
        console.print(f"[dim]and what is made from it: {', '.join(below)}[/]", soft_wrap=True)
    with terminal() as stream:
        outcome = execute(forge, steps, overrides, Console(file=stream, highlight=False))
    return [*problems, *outcome.problems], outcome.interrupted


@contextmanager
def _forge(profile: str) -> Iterator["Forge"]:
    """The graph at `profile` on the instance in DAGSTER_HOME."""
    _environment(profile)
    import dagster as dg

    from forge_assets.definitions import defs
    from forge_assets.freshness import Forge
    from forge_resources.model_store import ModelStore

    with dg.DagsterInstance.get() as instance:
        yield Forge(defs, instance, ModelStore())


def _environment(profile: str) -> None:
    """Set what Dagster, MLflow and torch read when they are imported; make the home when it is new."""
    home = _dagster_home()
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["FORGE_PROFILE"] = profile
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", WAITING_SPINS)  # read by libgomp when torch is imported
    warnings.simplefilter("ignore")
    for name in ("dagster", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from training_core.profiles import PROFILES

    if profile not in PROFILES:
        raise ValueError(f"there is no profile {profile!r}: choose {', '.join(PROFILES)}")
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(_instance_settings())


def _dagster_home() -> Path:
    """DAGSTER_HOME; else `dagster_home` in the source tree, or in the current folder when installed."""
    if given := os.environ.get("DAGSTER_HOME"):
        return Path(given).resolve()
    root = _ROOT if (_ROOT / "workspace.yaml").is_file() else Path.cwd()
    return root / "dagster_home"


def _instance_settings() -> str:
    """The committed `dagster.yaml`, from the source tree or from the installed package."""
    places = (_ROOT / "dagster_home" / "dagster.yaml", _ROOT / "forge_resources" / "dagster.yaml")
    for place in places:
        if place.is_file():
            return place.read_text()
    raise ValueError(f"dagster.yaml is missing from {places[0]}: restore it, or install agent-forge again")


def _overrides(path: Path | None) -> dict[str, dict[str, Any]]:
    """The configuration in a YAML file: asset to fields, or the launchpad's form (`ops: ... config:`)."""
    if path is None:
        return {}
    import yaml

    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must map assets to fields and values, for instance 'trunk: {{steps: 400}}'")
    if isinstance(document.get("ops"), dict):
        return {asset: dict((entry or {}).get("config") or {}) for asset, entry in document["ops"].items()}
    return document


def _next_steps(ledger: "Ledger", console: Console) -> None:
    made = ledger.artifact is not None and ledger.artifact.path
    lines = (
        f'forge generate --artifact {made} "The "' if made else f"forge run --profile {ledger.profile}   # goes on",
        "forge report --html report.html",
        "forge up",
    )
    for line in lines:
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


@contextmanager
def _errors() -> Iterator[None]:
    """Print what the user can put right as one line, without a traceback (`FORGE_DEBUG=1` shows it)."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted; run again to continue.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if os.environ.get("FORGE_DEBUG") == "1":
            raise
        Console(stderr=True).print(
            f"[red]forge:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True, highlight=False
        )
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
