"""`forge repair`: turn two releases of a package into a SWE-bench instance, and check the grading harness on it."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forge_assets.cli.common import errors, latest_bundle

if TYPE_CHECKING:
    from forge_resources.swebench.releases import ReleaseRunner
    from forge_resources.swebench.trials import Trial
    from training_core.store.bundle import Bundle
    from training_core.tasks.repair.instances import Instance

app = typer.Typer(
    name="repair", help="Program repair on released packages, graded as in SWE-bench.", no_args_is_help=True
)
LONGEST_REASON = 160  # characters


@app.callback()
def repair() -> None:
    """Program repair on released packages, graded as in SWE-bench."""


@app.command()
def release(
    name: Annotated[str, typer.Argument(help="The package, by the name of its folder.")],
    old_version: Annotated[str, typer.Argument(help="The older release; pip downloads its source.")] = "",
    new_version: Annotated[str, typer.Argument(help="The newer release.")] = "",
    old: Annotated[Path | None, typer.Option(help="Source of the older release (.tar.gz) instead.")] = None,
    new: Annotated[Path | None, typer.Option(help="Source of the newer release (.tar.gz) instead.")] = None,
    patch: Annotated[Path | None, typer.Option(help="A unified diff to grade.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the graph, or a bundle folder, to attempt the repair.")
    ] = None,
) -> None:
    """Run the newer tests on the older source in a container to find the FAIL_TO_PASS and PASS_TO_PASS tests.

    The grading harness is then checked on patches whose outcome is known. To read the metadata of a downloaded source
    release, pip runs the build that it declares, as it does when installing one; with --old and --new, nothing of a
    release runs outside the sandbox.
    """
    console = Console(highlight=False)
    with errors(), tempfile.TemporaryDirectory() as folder:
        archives = _archives(name, (old_version, new_version), (old, new), Path(folder))
        good = _run(console, name, archives, patch, model)
    if not good:
        raise typer.Exit(1)


def _archives(
    name: str, versions: tuple[str, str], paths: tuple[Path | None, Path | None], folder: Path
) -> tuple[Path, Path]:
    from forge_resources.swebench.archives import download_release

    archives = []
    for version, path, which in zip(versions, paths, ("older", "newer"), strict=True):
        if not version and path is None:
            raise ValueError(f"which is the {which} release of {name}? Give its version, or --{which[:3]} FILE")
        archives.append(path if path is not None else download_release(name, version, folder))
    return archives[0], archives[1]


def _run(console: Console, name: str, archives: tuple[Path, Path], patch: Path | None, model: str | None) -> bool:
    """Build the instance, print it, grade the patches, and return whether every outcome is the expected one."""
    from forge_resources.sandbox import open_sandbox
    from forge_resources.swebench.archives import read_archive
    from forge_resources.swebench.releases import release_instance
    from forge_resources.swebench.trials import grade_patch, trials

    old, new = (read_archive(path) for path in archives)
    diff = None if patch is None else _diff(patch)
    bundle = None if model is None else _bundle(model)
    with open_sandbox("container") as sandbox:
        instance, runner = release_instance(name, old, new, sandbox)
        console.print(f"[bold]{escape(name)}[/], in {escape(sandbox.name)}", soft_wrap=True)
        console.print(f"FAIL_TO_PASS {len(instance.fail_to_pass)}, PASS_TO_PASS {len(instance.pass_to_pass)}")
        console.print(f"[dim]{escape(instance.issue)}[/]", soft_wrap=True)
        made = list(trials(instance, runner))
        if diff is not None:
            made.append(grade_patch(instance, runner, str(patch), diff))
        if bundle is not None:
            made.append(_attempt(console, instance, runner, bundle, str(model)))
    console.print(_table(instance, made))
    wrong = [trial.label for trial in made if not trial.as_expected]
    for label in wrong:
        console.print(f"[red]The harness is wrong: {escape(label)} must have another outcome.[/]")
    return not wrong


def _diff(patch: Path) -> str:
    try:
        return patch.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{patch} cannot be read: {error.strerror}; name the file of the patch") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{patch}, line {line} is not UTF-8 at byte {error.start}: write it again with git diff > FILE"
        ) from error


def _bundle(model: str) -> "Bundle":
    """Return the bundle in the folder `model`, or the latest bundle of the asset `model`."""
    from training_core.store.bundle import open_bundle

    return open_bundle(Path(model)) if Path(model).is_dir() else latest_bundle(model)


def _attempt(console: Console, instance: "Instance", runner: "ReleaseRunner", bundle: "Bundle", label: str) -> "Trial":
    """Let a stored model attempt the repair, print its prompt and completion, and return the graded attempt."""
    import torch

    from forge_resources.swebench.trials import Trial
    from training_core.data.tokenizer import load_tokenizer
    from training_core.formats.loading import load_model
    from training_core.tasks.repair.excerpts import attempt_excerpt
    from training_core.tasks.repair.grading import grade

    tokenizer = load_tokenizer(bundle.tokenizer_json())
    attempt = attempt_excerpt(load_model(bundle), tokenizer, instance, torch.Generator().manual_seed(0))
    console.print("The model was shown", f"[dim]{escape(attempt.prompt)}[/]", sep="\n", soft_wrap=True)
    console.print(f"and wrote {escape(repr(attempt.text))}", soft_wrap=True)
    return Trial(label, None, grade(instance, attempt.files, runner), attempt.why)


def _table(instance: "Instance", made: "list[Trial]") -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("patch", "status", "FAIL_TO_PASS", "PASS_TO_PASS", "what"):
        table.add_column(column, overflow="fold")
    failing, passing = len(instance.fail_to_pass), len(instance.pass_to_pass)
    for trial in made:
        grade = trial.grade
        ran = grade.status != "does_not_apply"
        missed = [*grade.still_failing, *grade.broken]
        what = [trial.detail, f"{missed[0][0]}: {missed[0][1]}" if ran and missed else ""]
        table.add_row(
            escape(trial.label),
            f"[{'green' if grade.resolved else 'yellow'}]{grade.status}[/]"
            + ("" if trial.as_expected else " [red]![/]"),
            f"{failing - len(grade.still_failing)}/{failing}" if ran else "not run",
            f"{passing - len(grade.broken)}/{passing}" if ran else "not run",
            escape("; ".join(part[:LONGEST_REASON] for part in what if part)),
        )
    return table
