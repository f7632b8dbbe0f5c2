"""The command line `forge`: one module per command or command group, and `common` for what they share.

Heavy libraries are imported by the command that needs them, after the environment has been set: `forge generate
--artifact` loads neither Dagster nor MLflow.
"""

import typer

from forge_assets.cli import doctor, gate, generate, import_model, params, repair, report, run, sandbox, up
from training_core.terminal import prepare_process

app = typer.Typer(
    name="forge",
    help="Train a small language model from scratch, phase by phase, and measure every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.callback()(prepare_process)
app.command("import")(import_model.import_model)
app.command()(run.run)
app.command()(report.report)
app.command(cls=generate.PromptCommand)(generate.generate)
app.command()(doctor.doctor)
app.command()(params.params)
app.command()(up.up)
app.add_typer(sandbox.app)
app.add_typer(repair.app)
app.add_typer(gate.app)
