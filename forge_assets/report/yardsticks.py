"""The table of text, questions and grammar: every model beside what it takes without understanding."""

from collections.abc import Iterable, Mapping
from statistics import mean

from forge_assets.ledger import Ledger, ModelRow
from forge_assets.report.cells import ABSENT, formatted
from training_core.evaluation.result import ANSWERED, BASELINE, GRAMMAR

TITLE = "Bits per byte by source; right of 100, by likelihood/written"
_MARGIN = "margin_below_counting_on_"
_NUMBERS = {"one": "1", "two": "2", "three": "3", "four": "4"}
Scores = Mapping[str, float]  # of one family


def best_baseline(scores: Scores) -> tuple[str, float] | None:
    """Return the name and the accuracy of the best baseline of a family (the first of equals), None without one."""
    found = {name.removeprefix(BASELINE): value for name, value in scores.items() if name.startswith(BASELINE)}
    best = max(found, key=lambda name: found[name], default=None)
    return None if best is None else (best.replace("_", " "), found[best])


def asked_families(tasks: Iterable[Mapping[str, Scores]]) -> list[str]:
    """Return the families that models also answer in writing, in the order in which they are asked."""
    return list(dict.fromkeys(family for of in tasks for family in of if f"{ANSWERED}{family}" in of))


def yardsticks(ledger: Ledger) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: every model, then the n-gram model and the best baselines. No rows without sources.

    A family of questions has two shares of right answers: of those chosen by likelihood, and after a stroke of those
    that the model wrote. grammar: mean over phenomena. parse: written sentences that the world's grammar reads.
    stories: written ones without a contradiction.
    """
    names = {m.removeprefix(_MARGIN) for row in ledger.models for m in row.lineage.metrics if m.startswith(_MARGIN)}
    sources = sorted(name for name in names if f"{name}_low" in names)
    families = asked_families(row.lineage.tasks for row in ledger.models)
    columns = ["model", *sources, *map(_title, families)]
    if families:
        columns += ["grammar", "parse", "stories"]
    if not sources:
        return columns, []
    rows = [_model(row, sources, families) for row in ledger.models]
    rows.append(["n-gram", *(_counting(ledger, name) for name in sources)])
    for row in ledger.models:
        if families and families[0] in row.lineage.tasks:
            asked = [f"{_rule(row, family)}/{_rule(row, ANSWERED + family)}" for family in families]
            rows.append(["best baseline", *[ABSENT] * len(sources), *asked])
            break
    return columns, [cells + [ABSENT] * (len(columns) - len(cells)) for cells in rows]


def baseline_lines(ledger: Ledger) -> list[str]:
    """Return a line that names the best baseline of each family, for likelihood and written; none without families."""
    for row in ledger.models:
        if families := asked_families([row.lineage.tasks]):
            named = (f"{_title(f)} {_rule_name(row, f)}/{_rule_name(row, ANSWERED + f)}" for f in families)
            return [f"best baselines: {', '.join(named)}"]
    return []


def _model(row: ModelRow, sources: list[str], families: list[str]) -> list[str]:
    tasks = row.lineage.tasks
    phenomena = [
        name for name in row.lineage.metrics if name.startswith(GRAMMAR) and f"{name}_low" in row.lineage.metrics
    ]
    cells = [row.lineage.asset, *(formatted(row.metric(f"bits_per_byte_on_{name}"), "{:.3f}") for name in sources)]
    cells += [f"{_right(tasks, family)}/{_right(tasks, ANSWERED + family)}" for family in families]
    if families:
        grammar = mean(row.lineage.metrics[name] for name in phenomena) if phenomena else None
        cells += [_percent(value) for value in (grammar, row.metric("world_parsed"), row.metric("world_consistent"))]
    return cells


def _counting(ledger: Ledger, source: str) -> str:
    """The n-gram model's bits per byte: a model's own and its margin below it."""
    for row in ledger.models:
        own, margin = row.metric(f"bits_per_byte_on_{source}"), row.metric(f"{_MARGIN}{source}")
        if own is not None and margin is not None:
            return f"{own + margin:.3f}"
    return ABSENT


def _right(tasks: Mapping[str, Scores], family: str) -> str:
    return _percent(tasks[family]["accuracy"] if family in tasks else None)


def _rule(row: ModelRow, family: str) -> str:
    best = best_baseline(row.lineage.tasks[family])
    return ABSENT if best is None else _percent(best[1])


def _rule_name(row: ModelRow, family: str) -> str:
    best = best_baseline(row.lineage.tasks[family])
    return ABSENT if best is None else best[0]


def _title(family: str) -> str:
    words = family.split("_")
    return " ".join([_NUMBERS.get(words[0], words[0]), *words[1:]])


def _percent(share: float | None) -> str:
    return formatted(None if share is None else 100 * share, "{:.0f}")
