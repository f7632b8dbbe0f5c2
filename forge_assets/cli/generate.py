"""`forge generate`: continue a text with a stored model.

With `--artifact`, neither Dagster nor MLflow is loaded.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from typer._click.core import Context
from typer._click.exceptions import NoSuchOption

from forge_assets.cli.common import errors, latest_bundle
from forge_assets.generate_text import Prefill, Switch, from_artifact, from_bundle, from_experts


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    artifact: Annotated[Path | None, typer.Option(help="A model.forge file; nothing else is needed.")] = None,
    model: Annotated[str | None, typer.Option(help="Use the latest version of a model of the graph instead.")] = None,
    thoughts: Annotated[Switch, typer.Option(help="auto: think if thoughts were measured to help.")] = "auto",
    rule: Annotated[
        str | None, typer.Option(help="Where to think: difficulty (the default), surprise, everywhere or never.")
    ] = None,
    show_thoughts: Annotated[bool, typer.Option("--show-thoughts", help="Print thoughts, in brackets.")] = False,
    experts: Annotated[Switch, typer.Option(help="auto: answer with experts where there are any.")] = "auto",
    point: Annotated[
        int | None, typer.Option(help="Compose the experts as at this point of the Pareto front (see forge report).")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum number of tokens to generate.")] = 120,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 decodes greedily.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Probability mass for nucleus sampling.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same text.")] = 0,
) -> None:
    """Continue a text with a compressed model, or with any model of the graph.

    A reasoning_model can think; an expert_model and a compressed file route the prompt to their experts.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    with errors():
        _check(prompt, options)
        options["progress"] = Prefill()
        if artifact is not None and model is None:
            if thoughts == "on" or rule is not None or point is not None:
                raise ValueError(
                    f"{artifact} is a compressed model, which cannot think: use --model reasoning_model for that; "
                    "--point needs --model expert_model"
                )
            pieces = from_artifact(artifact, prompt, experts, options)
        elif model is not None and artifact is None:
            bundle = latest_bundle(model)
            if experts == "on" or point is not None or (experts == "auto" and "experts" in bundle.model_config):
                if thoughts == "on" or rule is not None:
                    raise ValueError(f"{model} answers with experts or thinks, not both: leave one of the two out")
                pieces = from_experts(bundle, prompt, point, options)
            else:
                pieces = from_bundle(bundle, model, prompt, thoughts, rule, options, explain=show_thoughts)
        else:
            raise ValueError(
                "give either --artifact FILE or --model ASSET: it selects the model that continues the text"
            )
        typer.echo(prompt, nl=False)
        for piece, thought in pieces:
            if show_thoughts and thought is not None:
                typer.secho("".join(f"[{printable(text)}]" for text in thought), nl=False, dim=True)
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()


def _check(prompt: str, options: dict[str, Any]) -> None:
    """Check the prompt and the numbers before a model is loaded.

    Raises:
        ValueError: for bytes that are not UTF-8, and for numbers that `training_core.text.settings` refuses.
    """
    from training_core.config import ConfigError
    from training_core.text.settings import sampling_settings

    try:
        sampling_settings(**options)
    except ConfigError as error:
        option, _, problem = str(error).partition(":")
        raise ValueError(f"refused, --{option.replace('_', '-')}:{problem}") from error
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        before = len(prompt[: error.start].encode(errors="surrogateescape"))
        wrong = ord(prompt[error.start])
        what = f"0x{wrong - 0xDC00:02x}" if 0xDC80 <= wrong <= 0xDCFF else f"a lone surrogate, U+{wrong:04X},"
        raise ValueError(
            f"the prompt is not UTF-8: {what} at byte {before + 1} (after {prompt[: error.start][-20:]!r}): encode it "
            "as UTF-8"
        ) from error


class PromptCommand(typer.core.TyperCommand):
    """A command whose only argument is a text: where it begins with a dash, the error says how to give it."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            return super().parse_args(ctx, args)
        except NoSuchOption as error:
            error.message += ". A prompt that begins with a dash stands last, behind --: forge generate ... -- '-5 is'"
            raise


def printable(text: str) -> str:
    """Return `text` on one line, with line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
