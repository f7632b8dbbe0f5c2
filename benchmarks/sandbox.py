"""Programs and checks per second of both sandboxes, compared with a plain Python process without isolation.

    python -m benchmarks.sandbox [--embedded 500] [--container 12]

Each item is a separate program or a separate check, and items run one after the other. Times are medians over the
items, after one warm-up. The plain process is only a reference: model-written code never runs that way.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from forge_resources.sandbox import Kind, open_sandbox
from training_core.tasks.sandbox import Limits, Program, SandboxUnavailableError

LIMITS = Limits(seconds=10)
CODE = "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n"
TESTS = "assert [fib(n) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]\nassert fib(90) == 2880067194370816120"


def median_s(action: Callable[[int], bool], items: int) -> float:
    """Return the median wall time of an item in seconds.

    Raises:
        ValueError: when an item fails.
    """
    times = []
    for item in range(items + 1):
        start = time.perf_counter()
        if not action(item):
            raise ValueError(f"item {item} must succeed, but failed")
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def row(name: str, what: str, seconds: float) -> str:
    """Return one row of the table."""
    return f"| {name} | {what} | {1000 * seconds:.2f} | {1 / seconds:.1f} |"


def bare(item: int) -> bool:
    """Run the program in a plain process of this interpreter and return whether it succeeded."""
    source = f"{CODE}print(fib({item}))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, check=False, timeout=10)
    return done.returncode == 0


def main() -> None:
    """Measure both sandboxes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedded", type=int, default=500)
    parser.add_argument("--container", type=int, default=12)
    arguments = parser.parse_args()
    print("| sandbox | item | median, ms | per second |\n|---|---|---|---|")
    print(row("none (for scale)", "program", median_s(bare, arguments.container)))
    kinds: dict[Kind, int] = {"embedded": arguments.embedded, "container": arguments.container}
    for kind, items in kinds.items():
        try:
            with open_sandbox(kind) as box:
                run = median_s(lambda n: box.run(Program(f"{CODE}print(fib({n}))"), LIMITS).status == "ok", items)
                check = median_s(lambda n: box.check(CODE, f"{TESTS}\nfib({n})", LIMITS).passed, items)
                print(row(box.name, "program", run))
                print(row(box.name, "check, 10 calls", check))
        except SandboxUnavailableError as error:
            print(f"| {kind} | not measured: {error} | | |")


if __name__ == "__main__":
    main()
