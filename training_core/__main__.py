"""`python -m training_core MODEL ...`: make one model of the graph from folders, without an orchestrator.

    python -m training_core trunk --profile nano --out made/trunk --checkpoint state/trunk \\
        --data tokens=DIR --data task_bank=DIR --data evaluation_suite=DIR
    torchrun --nproc-per-node 2 -m training_core merged_model --parent trunk=DIR ...

The folder `--out` is a bundle, which `forge import` adds to a store. After a kill, run the same command with the same
`--checkpoint` to resume. Several processes (torchrun, or `srun` with one task each) share the training of phase 1 and
the evaluations of phase 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from training_core.config import ConfigError, with_values
from training_core.phase import OpenSandbox
from training_core.profiles import PROFILES, preset
from training_core.registry import PHASES
from training_core.reporting import Figure
from training_core.store.bundle import open_bundle
from training_core.store.identity import code_digest, digest_folder
from training_core.terminal import prepare_process
from training_core.training import distributed
from training_core.worker import Input, Job, make

INTERRUPTED = 130  # exit status
_LINE_INTERVAL_S = 5.0


class LineReporter:
    """A reporter that prints a line to standard error every few seconds, and whenever some work is finished."""

    def __init__(self) -> None:
        self._last = -float("inf")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Print the metrics, unless a line was printed in the last few seconds."""
        self._say(f"step {step}: " + ", ".join(f"{name} {value:.5g}" for name, value in values.items()))

    def progress(self, done: int, total: int, label: str) -> None:
        """Print the progress, unless a line was printed in the last few seconds and the work is not done."""
        self._say(f"{label}: {done} of {total}", always=done >= total)

    def figure(self, name: str, figure: Figure) -> None:
        """Ignore figures, which a line cannot show."""

    def _say(self, line: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self._last >= _LINE_INTERVAL_S:
            self._last = now
            print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model that the command line names, and return the exit status."""
    prepare_process()
    options = _parser().parse_args(arguments)
    try:
        sandbox = _sandbox(options.sandbox)
        phase, job = PHASES[options.model], _job(options)
        with distributed.joined(job.checkpoint):
            bundle = make(phase, job, LineReporter(), sandbox)
        if bundle is not None:
            print(json.dumps({"bundle": str(bundle.folder), "digest": bundle.digest()}))
    except KeyboardInterrupt:
        print("training_core: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"training_core: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _job(options: argparse.Namespace) -> Job:
    phase = PHASES[options.model]
    if options.out.exists():
        raise ValueError(f"{options.out} exists: name another --out, nothing is overwritten")
    if missing := [f"--parent {n}=FOLDER" for n in phase.parents if n not in dict(options.parent)]:
        raise ValueError(f"{phase.name} is made from other models: give {' '.join(missing)}")
    if missing := [f"--data {n}=FOLDER" for n in phase.data if n not in dict(options.data)]:
        raise ValueError(f"{phase.name} is made from data: give {' '.join(missing)}")
    for option in ("parent", "data", "set"):
        _require_unique(option, [name for name, _ in getattr(options, option)])
    try:
        config = with_values(preset(options.profile, phase.name), dict(options.set))
    except ConfigError as error:
        raise ConfigError(f"--set is refused: {error}") from error
    sandbox = [options.sandbox.partition(":")[0]] if options.sandbox else []
    roots = [*phase.roots(), *(sandbox if phase.sandboxed else [])]
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    return Job(
        phase=phase.name,
        profile=options.profile,
        config=config.model_dump(mode="json"),
        parents={n: Input(folder=f, digest=open_bundle(f).digest()) for n, f in options.parent},
        data={n: Input(folder=f, digest=digest_folder(f)) for n, f in options.data},
        checkpoint=options.checkpoint.resolve(),
        out=options.out.resolve(),
        code_version=code_digest(roots, extra={"config": phase.config.model_json_schema()}),
    )


def _require_unique(option: str, names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--{option} {twice[0]}=... is given {names.count(twice[0])} times: give it once")


def _sandbox(named: str) -> OpenSandbox | None:
    if not named:
        return None
    module, _, function = named.partition(":")
    try:
        opened: OpenSandbox = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--sandbox must name a function, as MODULE:FUNCTION, got {named!r} ({error})") from error
    return opened


def _parser() -> argparse.ArgumentParser:
    usage = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        "python -m training_core",
        description=usage[0],
        epilog=usage[1] + "\n\n" + usage[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=list(PHASES), metavar="MODEL", help=", ".join(PHASES))
    parser.add_argument("--profile", choices=PROFILES, default="nano", help="size profile whose configuration is used")
    named: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=FOLDER", "type": _named_folder}
    parser.add_argument("--parent", help="folder of a parent's bundle", **named)
    parser.add_argument("--data", help="folder of a data asset", **named)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        type=_field,
        help="override a configuration value (JSON), for example training.steps=100",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder for resume points; keep it for retries")
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle; must not exist yet")
    parser.add_argument(
        "--sandbox", default="", metavar="MODULE:FUNCTION", help="opens the sandbox for model-written programs"
    )
    return parser


def _named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER with a folder that exists, got {text!r}")
    return name, Path(folder).resolve()


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected PATH=VALUE, for example training.steps=100, got {text!r}")
    try:
        return name, json.loads(value, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError:
        return name, value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"a key stands twice among {', '.join(names)}: leave one out")
    return dict(pairs)


if __name__ == "__main__":
    sys.exit(main())
