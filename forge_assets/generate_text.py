"""Text generation from a stored model for `forge generate`: plain, with thoughts, or with experts chosen per prompt.

Heavy libraries are imported lazily: a compressed file is read without importing Dagster or MLflow.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import typer

_QUIET_S = 2.0  # without a word; then a line every so many seconds

if TYPE_CHECKING:
    from training_core.nn.cognate import Cognate
    from training_core.phases.p3_quiet_star.injection import Rule
    from training_core.store.bundle import Bundle

Switch = Literal["auto", "on", "off"]
Pieces = Iterator[tuple[str, list[str] | None]]  # a piece of text and the thoughts that preceded it


def from_artifact(path: Path, prompt: str, experts: Switch, options: dict[str, Any]) -> Pieces:
    """Generate from a compressed file alone, with the expert that its router selects (named on standard error).

    Raises:
        ValueError: when the file cannot be read, or when experts are requested and it has none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; forge report names the file") from error
    from training_core.data.tokenizer import load_tokenizer
    from training_core.formats.artifact import read_artifact
    from training_core.nn.svf import SVFModel
    from training_core.phases.p8_compression.student_experts import answering
    from training_core.text.generation import generate

    read = read_artifact(data)
    tokenizer = load_tokenizer(read.tokenizer_json)
    if experts == "off" or read.experts is None:
        if experts == "on":
            raise ValueError(f"{path} carries no experts: none of them helped when it was made; leave --experts on out")
        return ((piece, None) for piece in generate(read.model, tokenizer, prompt, **options))
    ids = tokenizer.encode(prompt).ids
    if _too_long_to_route(read.model, ids):
        return ((piece, None) for piece in generate(read.model, tokenizer, prompt, **options))
    stack = ExitStack()
    model, name = stack.enter_context(answering(read.experts, SVFModel(read.model), ids, tokenizer))
    _say([name] if name else [])
    return _within(stack, generate(model, tokenizer, prompt, **options))


def from_experts(bundle: "Bundle", prompt: str, point: int | None, options: dict[str, Any]) -> Pieces:
    """Generate from a model with experts, composed as its search chose, or as another point of the Pareto front.

    Raises:
        BundleError: when the model has no experts. ValueError: when the front has no such point.
    """
    from training_core.data.tokenizer import load_tokenizer
    from training_core.phases.p7_experts.bundles import at_point, load_experts
    from training_core.text.generation import generate

    loaded, tokenizer = load_experts(bundle), load_tokenizer(bundle.tokenizer_json())
    if point is not None:
        loaded = at_point(loaded, bundle.exhibits()["experts"], point)
    stack, ids = ExitStack(), tokenizer.encode(prompt).ids
    if _too_long_to_route(loaded.svf.model, ids):
        return _within(stack, generate(stack.enter_context(loaded.svf.using(None)), tokenizer, prompt, **options))
    model, weights = stack.enter_context(loaded.answering(ids, tokenizer))
    _say([f"{name} x {weight:.2f}" for name, weight in weights.items() if weight > 0])
    return _within(stack, generate(model, tokenizer, prompt, **options))


def from_bundle(
    bundle: "Bundle",
    asset: str,
    prompt: str,
    thoughts: Switch,
    rule: str | None,
    options: dict[str, Any],
    *,
    explain: bool,
) -> Pieces:
    """Generate from the model of an asset, with thoughts if it has them and they were found to help.

    With `explain`, the reason for not thinking is printed to standard error.

    Raises:
        ValueError: when `rule` is given but the model does not think.
    """
    from training_core.data.tokenizer import load_tokenizer
    from training_core.formats.loading import load_model
    from training_core.phases.p3_quiet_star.bundles import load_reasoner
    from training_core.phases.p3_quiet_star.generation import think_and_generate
    from training_core.text.generation import generate

    tokenizer = load_tokenizer(bundle.tokenizer_json())
    reason = "you said --thoughts off"
    if thoughts == "auto":
        reason = f"{asset} has no thoughts (a reasoning_model has)"
    if thoughts == "on" or (thoughts == "auto" and "thoughts" in bundle.model_config):
        reasoner = load_reasoner(bundle)
        if thoughts == "on" or reasoner.enabled:
            where = cast("Rule", rule or "difficulty")
            spoken = think_and_generate(reasoner, tokenizer, prompt, rule=where, **options)
            return ((piece.text, piece.thoughts) for piece in spoken)
        reason = f"the thoughts of {asset} were not found to help; --thoughts on has it think all the same"
    if rule is not None:
        raise ValueError(f"--rule says where to think, but nothing is thought: {reason}")
    if explain:
        typer.echo(f"forge: nothing is thought: {reason}", err=True)
    return ((piece, None) for piece in generate(load_model(bundle), tokenizer, prompt, **options))


def _too_long_to_route(model: "Cognate", ids: list[int]) -> bool:
    """Return whether a prompt does not fit the router, which reads it in one piece, and say so on standard error."""
    longest = model.config.max_seq_len
    if len(ids) + 1 <= longest:
        return False
    typer.echo(
        f"forge: answers without experts: their router reads {longest - 1} tokens, and the prompt has {len(ids)}",
        err=True,
    )
    return True


class Prefill:
    """Says on standard error how far a prompt is read: from the second second on, and on one line of a terminal."""

    def __init__(self, quiet_s: float = _QUIET_S) -> None:
        self._quiet_s, self._begun, self._drawn = quiet_s, time.monotonic(), False

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` tokens are read."""
        on_terminal, elapsed = sys.stderr.isatty(), time.monotonic() - self._begun
        if on_terminal and (self._drawn or (elapsed >= self._quiet_s and done < total)):
            line = f"forge: read {done:,} of {total:,} tokens of the prompt"
            typer.echo("\r" + " " * len(line) + "\r" if done == total else "\r" + line, nl=False, err=True)
            self._drawn = True
        elif not on_terminal and elapsed >= self._quiet_s and done < total:
            typer.echo(f"forge: read {done:,} of {total:,} tokens of the prompt", err=True)
            self._begun = time.monotonic()


def _within(stack: ExitStack, pieces: Iterator[str]) -> Pieces:
    """Yield the pieces while the model's composition is in force."""
    with stack:
        yield from ((piece, None) for piece in pieces)


def _say(experts: list[str]) -> None:
    typer.echo(f"forge: answers with {', '.join(experts) or 'no expert'}", err=True)
