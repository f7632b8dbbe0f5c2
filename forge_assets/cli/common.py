"""Code shared by the commands: the environment, the graph on its instance, a run of it, and one-line errors.

Heavy libraries are imported by the function that needs them, after the environment has been set.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from forge_resources import require_addressable

if TYPE_CHECKING:
    from forge_assets.graph_view import Forge
    from training_core.store.bundle import Bundle

INTERRUPTED = 130
WAITING_SPINS = "1000"  # busy-wait iterations of an OpenMP thread; libgomp's 300,000 are very slow on a shared core
ROOT = Path(__file__).resolve().parents[2]
Profile = Annotated[str, typer.Option(help="nano, mini or forge_25m.", envvar="FORGE_PROFILE")]


@contextmanager
def errors() -> Iterator[None]:
    """Print errors that the user can fix as one line, without a traceback (`FORGE_DEBUG=1` shows it)."""
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


@contextmanager
def open_forge(profile: str) -> Iterator["Forge"]:
    """Yield the graph at `profile` on the instance in DAGSTER_HOME."""
    set_environment(profile)
    import dagster as dg

    from forge_assets.definitions import defs
    from forge_assets.graph_view import Forge
    from forge_resources.model_store import ModelStore

    with dg.DagsterInstance.get() as instance:
        yield Forge(defs, instance, ModelStore())


def set_environment(profile: str) -> None:
    """Set the environment variables that Dagster, MLflow and torch read on import; create DAGSTER_HOME if missing."""
    home = dagster_home()
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["FORGE_PROFILE"] = profile
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    set_waiting()
    warnings.simplefilter("ignore")
    for name in ("dagster", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from training_core.profiles import PROFILES

    if profile not in PROFILES:
        raise ValueError(f"there is no profile {profile!r}: choose {', '.join(PROFILES)}")
    for variable, folder in (("DAGSTER_HOME", home), ("FORGE_HOME", forge_home_below(home))):
        if problem := home_problem(variable, folder, make=True):
            raise ValueError(problem)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(_instance_settings(), encoding="utf-8")


def set_waiting() -> None:
    """Let torch's threads sleep soon when they wait; to be called before torch is imported, which reads it."""
    os.environ.setdefault("GOMP_SPINCOUNT", WAITING_SPINS)


def dagster_home() -> Path:
    """Return DAGSTER_HOME; by default `dagster_home` in the source tree or, if installed, in the current folder."""
    if given := os.environ.get("DAGSTER_HOME"):
        return Path(given).resolve()
    root = ROOT if (ROOT / "workspace.yaml").is_file() else Path.cwd()
    return root / "dagster_home"


def home_problem(variable: str, home: Path, *, make: bool = False) -> str | None:
    """Return why nothing can be kept in `home`, which `variable` names, and what to change; None if something can.

    With `make`, the folder is made if it is missing.
    """
    change = f"set {variable} to a folder that you may write to"
    try:
        require_addressable(home)
        if make:
            home.mkdir(parents=True, exist_ok=True)
        nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    except OSError as error:
        return f"{home} cannot be made ({error.strerror}): {change}"
    except ValueError as error:
        return str(error)
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return None
    return f"{home} cannot be {'written to' if nearest == home else f'made in {nearest}'}: {change}"


def forge_home_below(dagster_home: Path) -> Path:
    """Return FORGE_HOME, by default `forge` in `dagster_home`."""
    return Path(os.environ.get("FORGE_HOME") or dagster_home / "forge")


def _instance_settings() -> str:
    """Return the committed `dagster.yaml`, from the source tree or from the installed package."""
    places = (ROOT / "dagster_home" / "dagster.yaml", ROOT / "forge_resources" / "dagster.yaml")
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise ValueError(f"dagster.yaml is missing from {places[0]}: restore it, or install agent-forge again")


def latest_bundle(asset: str) -> "Bundle":
    """Return the bundle of the latest materialization of `asset`, whatever its profile."""
    with open_forge("nano") as forge:  # the profile does not matter: nothing is made
        import dagster as dg

        from forge_resources.gatekeeping import latest_materialization

        models = [name for name in forge.assets() if forge.makes_model(name)]
        if asset not in models:
            raise ValueError(f"there is no model {asset!r}: choose {', '.join(models)}")
        record = latest_materialization(forge.instance, dg.AssetKey(asset))
        if record is None:
            raise ValueError(f"{asset} was not made yet: forge run makes it")
        return forge.store.open_materialized(asset, record)


def make_and_judge(
    forge: "Forge",
    overrides: Mapping[str, Mapping[str, Any]],
    select: list[str],
    force: list[str],
    console: Console,
    *,
    defaults: bool = False,
    controls: bool = False,
) -> tuple[list[str], bool]:
    """Make stale assets and judge unjudged ones; return the problems, and whether the user interrupted the run.

    With `controls`, the controls are among them.
    """
    from forge_assets.freshness import kept_lines, plan, resolve_config
    from forge_assets.run_graph import execute, release_dead_runs, terminal

    configs = resolve_config(forge, overrides, select=select, defaults=defaults)
    release_dead_runs(forge.instance)
    steps = plan(forge, configs, select=select, force=force, controls=controls)
    for line in kept_lines(forge, overrides, [step.asset for step in steps]) if not defaults else ():
        console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    for note in (step.note for step in steps if step.note):
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    problems = [f"{step.asset}: {step.reason}" for step in steps if step.action == "closed"]
    kept = [step.asset for step in steps if step.action == "keep"]
    if kept:
        console.print(f"[dim]fresh: {', '.join(kept)}[/]")
    if any(step.action == "closed" and step.gated for step in steps):
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
        outcome = execute(forge, steps, configs, Console(file=stream, highlight=False), defaults=defaults)
    return [*problems, *outcome.problems], outcome.interrupted
