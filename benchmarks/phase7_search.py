"""Speed of evaluating expert compositions, and the time that a search of 5,000 of them would take.

    python -m benchmarks.phase7_search [--profile mini] [--experts 4] [--questions 32] [--windows 2] [--tokens 128]
                                       [--genomes 40] [--repeats 3] [--threads 1] [--search]

The benchmark uses random models of the profile's shape with random experts, questions of the ladder and random text.
The same random genomes are evaluated in turn within every repeat, each line adding one optimization to those above:

    nothing      every layer is computed, all questions are asked, nothing is cached
    kept         activations below the first adapted layer are cached
    raced        bad compositions are stopped after the first part of the questions
    looked up    results of earlier compositions are cached (each genome occurs `--again` times)

With --search, the profile's whole search is run instead, once by NSGA-II and once at random, with its population,
generations and latency bound (structures are timed 3 times here).

Because the experts are random, racing may stop more compositions than it would with trained experts; timings with and
without racing are shown. Times are medians of wall-clock seconds, followed by CPU seconds, which do not depend on the
load of the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer

from training_core.data.tokenizer import train_tokenizer
from training_core.evaluation.windows import Windows
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.svf import Expert, SVFModel
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phases.p7_experts.evaluator import Evaluator, shared
from training_core.phases.p7_experts.genome import Composition
from training_core.phases.p7_experts.search import search
from training_core.profiles import profile_of
from training_core.reporting import SilentReporter
from training_core.tasks.questions.attempts import completion_text, question_text
from training_core.tasks.questions.ladder import cells, make_with_content
from training_core.tasks.questions.question import Question

EVALUATIONS = 5000


def ladder(number: int) -> list[Question]:
    """Return `number` questions each of levels 1 and 2."""
    return [
        make_with_content(kinds[seed % len(kinds)], seed)[0] for kinds in map(cells, (1, 2)) for seed in range(number)
    ]


def random_model(profile: str) -> Cognate:
    """Return a random ternary model of the profile's shape."""
    torch.manual_seed(0)
    sizes = profile_of(profile)
    model = Cognate(CognateConfig(vocab_size=sizes.tokenizer.vocab_size, **sizes.trunk.shape.model_dump()))
    make_ternary(model, TernarySettings())
    return model.eval()


def evaluators(arguments: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, Evaluator]:
    """Return an evaluator for each combination of optimizations, all on the same batches."""
    draw = torch.Generator().manual_seed(0)
    svf = SVFModel(random_model(arguments.profile))
    vocab = svf.model.config.vocab_size
    experts = [
        Expert.of(
            {n: 1 + 0.2 * torch.rand(len(s.s_R), generator=draw) for n, s in svf.singular.items()},
            svf.singular,
        )
        for _ in range(arguments.experts)
    ]
    tokens = torch.randint(0, vocab, (16, 257), generator=draw)
    windows = Windows(tokens[:, :-1], tokens[:, 1:], torch.zeros(16, 256, dtype=torch.long), torch.tensor([16 * 768]))
    bound = profile_of(arguments.profile).expert_model.search.latency_bound
    ways = {}
    for name, share, keep in (("nothing", 1.0, False), ("kept", 1.0, True), ("raced", 0.5, True)):
        given = shared(
            ladder(150), windows, tokenizer, svf.model.config.max_seq_len, num_questions=arguments.questions,
            num_windows=arguments.windows, racing_share=share, window_tokens=arguments.tokens,
        )  # fmt: skip
        answers = [
            torch.rand(rows, arguments.experts + 1, generator=torch.Generator().manual_seed(rows)).softmax(-1)
            for rows in (len(given.questions), len(given.inputs_WS))
        ]
        ways[name] = Evaluator(
            svf, experts, given, *answers, router_bytes=100, latency_bound=bound, latency_questions=4,
            latency_repeats=3, keep_activations=keep,
        )  # fmt: skip
    return ways


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and CPU seconds of one call."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


class Clock(SilentReporter):
    """Prints the time that each search has taken so far."""

    def __init__(self) -> None:
        self.begun: dict[str, tuple[float, float]] = {}

    def progress(self, done: int, total: int, label: str) -> None:
        """Print wall-clock and CPU minutes, ten times per search."""
        begun = self.begun.setdefault(label, (time.perf_counter(), time.process_time()))
        if done % (total // 10) == 0:
            clock, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
            print(f"{label}: {done:5} of {total} after {clock / 60:5.1f} min ({processor / 60:.1f} of the processor)")


def whole_search(evaluator: Evaluator, profile: str) -> None:
    """Run the profile's search with one seed; print its time and metrics."""
    config = profile_of(profile).expert_model.search
    result = search(evaluator, config.model_copy(update={"seeds": 1}), Clock())
    print({name: round(value, 5) for name, value in result.metrics().items()})


def main() -> None:
    """Time the evaluators, or run the whole search, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="mini", choices=["nano", "mini"])
    for name, value in {
        "experts": 4, "questions": 32, "windows": 2, "tokens": 128, "genomes": 40, "repeats": 3, "again": 2,
        "threads": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--search", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = profile_of(arguments.profile).tokenizer
    texts = [question_text(q) + completion_text(q) for q in ladder(150)]
    ways = evaluators(arguments, train_tokenizer(config.model_copy(update={"vocab_size": 400}), iter(texts)))
    if arguments.search:
        whole_search(ways["raced"], arguments.profile)
        return
    space = ways["kept"].space
    random = np.random.default_rng(0)
    genomes = [space.decode(random.random(space.num_genes).tolist()) for _ in range(arguments.genomes)]
    timed = seconds(lambda: [ways["kept"].latency(genome.structure) for genome in genomes])
    print(f"{arguments.profile}: {space.num_layers} layers, {arguments.experts} experts, threads {arguments.threads}")
    print(f"{len(ways['kept'].latencies)} structures timed once in {timed[0]:.2f} s, {timed[1]:.2f} s of the processor")
    durations: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, "looked up")}
    again: list[Composition] = genomes * arguments.again
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            way.latencies |= ways["kept"].latencies
            way.evaluate(space.unadapted)
            durations[name].append(seconds(lambda way=way: [way.measure(g) for g in genomes]))  # type: ignore[misc]
        ways["raced"].known.clear()
        durations["looked up"].append(seconds(lambda: [ways["raced"].evaluate(genome) for genome in again]))
    outcomes = Counter(ways["raced"].evaluate(genome).status for genome in genomes)
    print(f"of {len(genomes)} random genomes: {dict(outcomes)}")
    for name, times in durations.items():
        asked = len(genomes) * (arguments.again if name == "looked up" else 1)
        clock, processor = (statistics.median(t[i] for t in times) / asked for i in (0, 1))
        print(
            f"{name:10}{clock:8.4f} s an evaluation ({processor:.4f} s of the processor), {1 / clock:6.1f} a second; "
            f"{EVALUATIONS} take {EVALUATIONS * clock / 60:5.1f} min ({EVALUATIONS * processor / 60:.1f})"
        )
    measured = [genome for genome in genomes if ways["kept"].measure(genome).objectives is not None]
    if measured:
        times = [
            seconds(lambda: [ways["kept"].measure(genome) for genome in measured]) for _ in range(arguments.repeats)
        ]
        clock, processor = (statistics.median(t[i] for t in times) / len(measured) for i in (0, 1))
        print(
            f"kept, the {len(measured)} within the latency bound: {clock:.4f} s ({processor:.4f}); if all were, "
            f"{EVALUATIONS} would take {EVALUATIONS * clock / 60:.1f} min ({EVALUATIONS * processor / 60:.1f})"
        )


if __name__ == "__main__":
    main()
