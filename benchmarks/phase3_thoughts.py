"""The cost of thoughts: evaluating text with and without them, and parallel against sequential thought generation.

    python -m benchmarks.phase3_thoughts [--profile nano] [--bundle PATH] [--rows 4] [--length 128] [--repeats 5]

All times are measured in one process, in turn within every repeat; medians and ratios are reported. Memory is measured
in a separate process per mode: the peak that evaluation adds to the loaded model (resident set, sampled; on a GPU,
torch's allocator). Without --bundle (a reasoning_model), a random model of the profile's shape is used, with
thresholds calibrated on the evaluated text, so that the shares of thinking positions are the configured ones. All
generators think the same number of thoughts of the same length:

    parallel     one trace of the text, then a branch for each position and thought, all at once
    one stream   the text is streamed once; thoughts branch off after each token
    re-stream    the prefix of each position is streamed from the start before thinking
    re-run       for each thought token, `forward` runs on the whole prefix and thought; the thoughts then enter the
                 memory and the attention window, so that only the cost is comparable
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from training_core.nn.branching import Branches
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phases.p3_quiet_star.bundles import Reasoner, load_reasoner
from training_core.phases.p3_quiet_star.injection import Rule, ThoughtInjector, read_signals
from training_core.phases.p3_quiet_star.policy import act
from training_core.phases.p3_quiet_star.thoughts import Thinker, Thoughts
from training_core.profiles import profile_of
from training_core.store.bundle import open_bundle
from training_core.training.device import best_device

MODES: dict[str, Rule] = {
    "off": "never",
    "surprise": "surprise",
    "difficulty": "difficulty",
    "everywhere": "everywhere",
}
SAMPLED_EVERY_S = 0.001
Work = Callable[[], object]


def open_reasoner(profile: str, bundle: Path | None, tokens_BS: Tensor) -> Reasoner:
    """Return the reasoner of `bundle`, or a random one, on the best device."""
    if bundle is not None:
        reasoner = load_reasoner(open_bundle(bundle))
    else:
        torch.manual_seed(0)
        sizes = profile_of(profile)
        shape = CognateConfig(vocab_size=sizes.tokenizer.vocab_size, **sizes.trunk.shape.model_dump())
        thinker = Thinker(Cognate(shape), sizes.reasoning_model.thoughts).eval()
        thinker.initialise_delimiters([1], torch.Generator().manual_seed(0))
        torch.nn.init.normal_(thinker.head.output.weight, std=0.02)
        injector = ThoughtInjector(sizes.reasoning_model.injection)
        injector.calibrate([read_signals(thinker.cognate, thinker.cognate.trace(tokens_BS), tokens_BS)])
        reasoner = Reasoner(thinker, injector, enabled=True)
    reasoner.thinker.to(best_device())
    reasoner.injector.to(best_device())
    return reasoner


def text(profile: str, bundle: Path | None, rows: int, length: int) -> Tensor:
    """Return random tokens (rows, length) of the model's vocabulary."""
    vocab = (
        open_bundle(bundle).model_config["cognate"]["vocab_size"]
        if bundle is not None
        else profile_of(profile).tokenizer.vocab_size
    )
    return torch.randint(1, vocab, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def evaluate(reasoner: Reasoner, tokens_BS: Tensor, rule: Rule) -> tuple[Tensor, float]:
    """Return logits (batch, seq, vocab) with thoughts where `rule` thinks, and the share of thinking positions."""
    thinker, model = reasoner.thinker, reasoner.thinker.cognate
    if rule == "never":
        return model(tokens_BS).logits, 0.0
    trace = model.trace(tokens_BS)
    percentiles = reasoner.injector.percentiles(read_signals(model, trace, tokens_BS))
    where = reasoner.injector.decide(rule, percentiles)
    logits = model.logits(trace.y)
    most = int(where.sum(1).max())
    if most == 0:
        return logits, 0.0
    # Rows with fewer thinking positions are padded with other positions, whose thoughts are discarded below.
    positions = where.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    thoughts = thinker.think(trace, positions, torch.Generator().manual_seed(0))
    base = trace.y.gather(1, positions[..., None].expand(-1, -1, trace.y.shape[-1]))
    mixed = thinker.talk(base, thoughts).together
    mixed = torch.where(where.gather(1, positions)[..., None], mixed, model.logits(base))
    return logits.scatter(1, positions[..., None].expand_as(mixed), mixed), float(where.double().mean())


@torch.no_grad()
def parallel(thinker: Thinker, tokens_S: Tensor, positions: Sequence[int], given: Tensor | None = None) -> Thoughts:
    """Return all thoughts of a text, generated at once; `given` (1, positions, N, L) fixes their tokens."""
    at = torch.tensor([list(positions)], device=tokens_S.device)
    return thinker.think(thinker.cognate.trace(tokens_S[None]), at, torch.Generator().manual_seed(0), given)


@torch.no_grad()
def one_stream(
    thinker: Thinker, tokens_S: Tensor, positions: Sequence[int], given: Tensor | None = None
) -> list[Thoughts]:
    """Return the thoughts of a text that is streamed once, thinking after each of `positions`."""
    model, count = thinker.cognate, thinker.config.num_thoughts
    state, generator, thoughts = model.stream(1), torch.Generator().manual_seed(0), list[Thoughts]()
    for position in range(max(positions) + 1):
        model.step(tokens_S[position][None], state)
        if position in positions:
            own = None if given is None else given[:, len(thoughts)][:, None]
            thoughts.append(thinker.think_on(Branches.from_stream(model, state, count), count, generator, own))
    return thoughts


@torch.no_grad()
def re_stream(thinker: Thinker, tokens_S: Tensor, positions: Sequence[int]) -> list[Thoughts]:
    """Return the thoughts of `one_stream`, streaming the prefix again for every position."""
    return [thought for position in positions for thought in one_stream(thinker, tokens_S, [position])]


@torch.no_grad()
def re_run(thinker: Thinker, tokens_S: Tensor, positions: Sequence[int]) -> list[Tensor]:
    """Return prefixes with thoughts, each token of which took a forward pass over the prefix and the thought so far."""
    model, config, sequences = thinker.cognate, thinker.config, list[Tensor]()
    generator = torch.Generator().manual_seed(0)
    for position in positions:
        rows = tokens_S[None, : position + 1].expand(config.num_thoughts, -1)
        for _ in range(config.max_length + 1):  # the last pass reads the state after the end of the thought
            actions = act(model(rows).logits[:, -1], config.temperature, config.top_p, generator)
            rows = torch.cat([rows, actions.index[:, None]], dim=1)
        sequences.append(rows)
    return sequences


def seconds(work: Work) -> float:
    """Return the wall-clock seconds of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def medians(works: dict[str, Work], repeats: int) -> dict[str, float]:
    """Return the median seconds of each work; all run in turn in every repeat, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            taken = seconds(work)
            if repeat:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def memory_of(work: Work) -> tuple[int, int]:
    """Return the bytes in use before `work`, and the peak during it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return before, torch.cuda.max_memory_allocated()
    process, done = psutil.Process(), threading.Event()
    held = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(SAMPLED_EVERY_S):
            held.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return held[0], max(held)


def measured_apart(mode: str, arguments: argparse.Namespace) -> tuple[int, int]:
    """Return `memory_of` evaluating the text in `mode`, in a process whose allocator returns freed memory at once."""
    command = [sys.executable, "-m", "benchmarks.phase3_thoughts", "--memory", mode, "--profile", arguments.profile]
    command += ["--rows", str(arguments.rows), "--length", str(arguments.length), "--threads", str(arguments.threads)]
    command += ["--bundle", str(arguments.bundle)] if arguments.bundle is not None else []
    root = Path(__file__).parents[1]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env=environment)
    before, most = ran.stdout.split()
    return int(before), int(most)


def print_evaluation(reasoner: Reasoner, tokens_BS: Tensor, arguments: argparse.Namespace) -> None:
    """Print tokens per second and peak memory of each mode."""
    works: dict[str, Work] = {
        mode: (lambda rule=rule: evaluate(reasoner, tokens_BS, rule))  # type: ignore[misc]
        for mode, rule in MODES.items()
        if mode in arguments.modes
    }
    median_times = medians(works, arguments.repeats)
    heads = (("thinks at", 11), ("tokens/s", 11), ("time / off", 12), ("loaded MB", 11), ("adds MB", 10))
    print(f"{'evaluating text':16s}{''.join(f'{name:>{width}s}' for name, width in heads)}")
    for mode, median in median_times.items():
        share = evaluate(reasoner, tokens_BS, MODES[mode])[1]
        before, most = measured_apart(mode, arguments)
        ratio = f"{median / median_times['off']:.2f}" if "off" in median_times else "-"
        print(
            f"{mode:16s}{share:11.1%}{tokens_BS.numel() / median:11,.0f}{ratio:>12s}"
            f"{before / 1e6:11.1f}{(most - before) / 1e6:10.1f}"
        )


def print_generation(thinker: Thinker, tokens_S: Tensor, arguments: argparse.Namespace) -> None:
    """Print thoughts per second of every generator on one text, and the largest gap between the first two."""
    count, everywhere = thinker.config.num_thoughts, range(len(tokens_S))
    few = list(range(arguments.stride // 2, len(tokens_S), arguments.stride)) or [len(tokens_S) - 1]
    places: dict[str, Sequence[int]] = {
        "parallel": everywhere,
        "one stream": everywhere,
        "re-stream": few,
        "re-run": few,
    }
    works: dict[str, Work] = {
        "parallel": lambda: parallel(thinker, tokens_S, everywhere),
        "one stream": lambda: one_stream(thinker, tokens_S, everywhere),
        "re-stream": lambda: re_stream(thinker, tokens_S, few),
        "re-run": lambda: re_run(thinker, tokens_S, few),
    }
    median_times = medians(works, arguments.repeats)
    rates = {name: len(places[name]) * count / median for name, median in median_times.items()}
    print(f"\n{'thinking':16s}{'positions':>11s}{'thoughts/s':>11s}{'parallel is faster by':>23s}")
    for name, rate in rates.items():
        print(f"{name:16s}{len(places[name]):11d}{rate:11,.1f}{rates['parallel'] / rate:23.1f}")
    at_once = parallel(thinker, tokens_S, everywhere)
    given = at_once.tokens
    in_turn = torch.cat([thoughts.hidden for thoughts in one_stream(thinker, tokens_S, everywhere, given)], dim=1)
    gap = float((parallel(thinker, tokens_S, everywhere, given).hidden - in_turn).abs().max())
    print(f"largest gap between parallel and one stream at the end of the same thoughts: {gap:.1e}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="nano")
    parser.add_argument("--bundle", type=Path, help="folder of a reasoning_model")
    parser.add_argument("--rows", type=int, default=4, help="texts in the evaluated batch")
    parser.add_argument("--length", type=int, default=128, help="tokens per text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--stride", type=int, default=32, help="re-stream and re-run think only at every STRIDE-th position"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--memory", choices=MODES, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    tokens = text(given.profile, given.bundle, given.rows, given.length)
    reasoner = open_reasoner(given.profile, given.bundle, tokens)
    tokens = tokens.to(best_device())
    if given.memory:
        print(*memory_of(lambda: evaluate(reasoner, tokens, MODES[given.memory])))
        return
    thoughts, name = reasoner.thinker.config, given.bundle or f"random {given.profile}"
    print(f"{name}: {given.rows} x {given.length} tokens, {best_device()}, {torch.get_num_threads()} thread(s)")
    print(f"{thoughts.num_thoughts} thoughts of at most {thoughts.max_length} tokens, median of {given.repeats}\n")
    print_evaluation(reasoner, tokens, given)
    print_generation(reasoner.thinker, tokens[0], given)


if __name__ == "__main__":
    main()
