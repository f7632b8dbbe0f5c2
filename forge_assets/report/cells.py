"""The text of the report's table cells, shared by the terminal and the page."""

from collections.abc import Sequence

from forge_assets.gate_history import GateEntry
from forge_assets.ledger import BITS_TO_FILE, ArtifactRow, GateRow, Ledger, ModelRow
from forge_resources.overrides import utc_text

ABSENT = "-"
NO_VERDICT = "no verdict"
MODEL_COLUMNS = ("model", "params", "bits/byte", "next token (95 %)", "bytes", "gates", "claims")
CONTROL_COLUMNS = ("control", "bytes", "bits/byte", "of the file's (95 %)", "better")
GATE_COLUMNS = ("asset", "", "name", "value", "required", "margin", "verdict")
VERDICT_COLUMNS = ("when", "run", "model", "profile", "value", "required", "margin", "verdict")


def missing_lines(ledger: Ledger) -> list[str]:
    """Return a line for each missing model, and the command that makes them."""
    lines = [f"{asset}: {reason}" for asset, reason in ledger.missing.items() if reason != "not made yet"]
    if never := [asset for asset, reason in ledger.missing.items() if reason == "not made yet"]:
        lines.append(f"not made yet: {', '.join(never)}")
    return [*lines, f"make what is missing: forge run --profile {ledger.profile}"] if lines else []


def corpus_lines(ledger: Ledger) -> list[str]:
    """Return a line with the documents of the latest corpus, and how many were left out and why; none without one."""

    def listed(prefix: str) -> str:
        counts = ((name.removeprefix(prefix), n) for name, n in ledger.corpus.items() if name.startswith(prefix))
        return ", ".join(f"{name} {n:,.0f}" for name, n in counts if n)

    if not (kept := listed("documents_")):
        return []
    left_out, cut = listed("dropped_"), ledger.corpus.get("split_long", 0)
    return [
        f"corpus: documents: {kept}"
        + (f"; left out: {left_out}" if left_out else "")
        + (f"; {cut:,.0f} long documents were stored in parts" if cut else "")
    ]


def chain_lines(ledger: Ledger) -> list[str]:
    """Return lines for n-grams of the file's bytes beside the file, and for what models keep of the merged model."""
    return [*_packed_lines(ledger), *_retention_lines(ledger)]


def _packed_lines(ledger: Ledger) -> list[str]:
    """The n-gram model of the file's bytes beside the file, on all text and on each source."""
    lines = []
    for row in ledger.models:
        if (size := row.metric("packed_ngram_bytes")) is None:
            continue
        prefix = "packed_ngram_bits_per_byte"
        parts = {m.removeprefix(prefix): row.metric(m) for m in row.lineage.metrics if m.startswith(prefix)}
        pairs = [
            f"{part.removeprefix('_on_') or 'in all'} {value:.3f} (the file {own:.3f})"
            for part, value in parts.items()
            if value is not None and (own := row.metric(f"bits_per_byte{part}")) is not None
        ]
        lines.append(f"bits per byte of n-grams packed into {size:,.0f} bytes: {', '.join(pairs)}")
    return lines


def _retention_lines(ledger: Ledger) -> list[str]:
    """What models keep of the merged model's accuracy: in all, and the last of them by source and task family."""
    lines = []
    if listed := _listed(ledger, "retention_to_merged_model"):
        lines.append(f"kept of the merged model's next-token accuracy: {listed}")
    for between, what in (("_on_", "next-token accuracy"), ("_in_", "accuracy above chance")):
        prefix = f"retention_to_merged_model{between}"
        for row in ledger.models[-1:]:
            parts = [m for m in row.lineage.metrics if m.startswith(prefix) and f"{m}_low" in row.lineage.metrics]
            if kept := [f"{m.removeprefix(prefix)} {row.lineage.metrics[m]:.3f}" for m in sorted(parts)]:
                lines.append(f"kept of the merged model's {what} by {row.lineage.asset}: {', '.join(kept)}")
    return lines


def _listed(ledger: Ledger, metric: str) -> str:
    values = ((row.lineage.asset, row.metric(metric)) for row in ledger.models)
    return ", ".join(f"{asset} {value:.3f}" for asset, value in values if value is not None)


def outdated_lines(ledger: Ledger) -> list[str]:
    """Return a line for each model whose ancestors have been made again since."""
    return [
        f"* {row.lineage.asset} was made from an earlier {', '.join(row.outdated)}; forge run makes it again"
        for row in (*ledger.models, *ledger.controls)
        if row.outdated
    ]


def summary(ledger: Ledger) -> str:
    """Return a sentence with the number of models, of gates passed and of claims held."""

    def count(rows: Sequence[GateRow]) -> str:
        return f"{sum(row.passed is True for row in rows)} of {len(rows)}"

    gates = [row for row in ledger.gates if row.gate.blocking]
    claims = [row for row in ledger.gates if not row.gate.blocking]
    return (
        f"{len(ledger.models)} models of profile {ledger.profile}; {count(gates)} gates passed, "
        f"{count(claims)} claims held."
    )


def gate_counts(ledger: Ledger, asset: str, *, blocking: bool = True) -> str:
    """Return how many gates (or claims) of an asset passed, for instance `✓ 3/3` or `✗ 2/3`; a dash if it has none."""
    return passed_of([row for row in ledger.gates if row.gate.asset == asset and row.gate.blocking == blocking])


def passed_of(rows: Sequence[GateRow]) -> str:
    """Return how many of the rows passed, for instance `✓ 3/3` or `✗ 2/3`; a dash if there are none."""
    if not rows:
        return ABSENT
    if any(row.passed is None for row in rows):
        return NO_VERDICT
    passed = sum(row.passed is True for row in rows)
    return f"{'✓' if passed == len(rows) else '✗'} {passed}/{len(rows)}"


def model_cells(ledger: Ledger, row: ModelRow) -> list[str]:
    """Return the cells of a model's row in the ledger (`MODEL_COLUMNS`)."""
    asset = row.lineage.asset
    return [
        asset + (" *" if row.outdated else ""),
        formatted(row.metric("params"), "{:,.0f}"),
        formatted(row.metric("bits_per_byte"), "{:.4f}"),
        with_interval(row.metric("next_token_accuracy"), row.interval("next_token_accuracy")),
        formatted(row.metric("bytes_on_disk"), "{:,.0f}"),
        gate_counts(ledger, asset),
        gate_counts(ledger, asset, blocking=False),
    ]


def control_cells(row: ModelRow) -> list[str]:
    """Return the cells of a control's row (`CONTROL_COLUMNS`), which is compared with the file by document.

    The better of the two is the one with fewer bits per byte, where the interval of their ratio excludes 1.
    """
    ratio, interval = row.metric(BITS_TO_FILE), row.interval(BITS_TO_FILE)
    better = NO_VERDICT
    if interval is not None:
        better = "the file" if interval[0] > 1 else "the control" if interval[1] < 1 else "neither"
    shown = formatted(ratio, "{:.3f}") + ("" if interval is None else " ({:.3f}-{:.3f})".format(*interval))
    return [
        row.lineage.asset + (" *" if row.outdated else ""),
        formatted(row.metric("bytes_on_disk"), "{:,.0f}"),
        formatted(row.metric("bits_per_byte"), "{:.4f}"),
        shown,
        better,
    ]


def gate_cells(row: GateRow, form: str = ".6g") -> list[str]:
    """Return the cells of a gate's row (`GATE_COLUMNS`); the value is written in `form`."""
    sign = "≥" if row.gate.direction == "at_least" else "≤"
    verdict = {True: "passed", False: "FAILED", None: NO_VERDICT}[row.passed]
    return [
        row.gate.asset,
        "gate" if row.gate.blocking else "claim",
        row.gate.name,
        "not measured" if row.value is None else format(row.value, form),
        f"{sign} {row.threshold:g}",
        ABSENT if (margin := margin_of(row)) is None else f"{margin:+.4g}",
        verdict,
    ]


def margin_of(row: GateRow) -> float | None:
    """Return the distance to the threshold in the metric's unit: positive when the gate passes, negative otherwise."""
    if row.value is None:
        return None
    return row.value - row.threshold if row.gate.direction == "at_least" else row.threshold - row.value


def evidence_of(row: GateRow) -> str:
    """Return the description of a gate's metric, and its baseline if it has one."""
    return row.gate.evidence + (f", against {row.gate.against}" if row.gate.against else "")


def verdict_cells(entry: GateEntry) -> list[str]:
    """Return the cells of a verdict's row in the history of a gate (`VERDICT_COLUMNS`)."""
    sign = ("≥" if entry.direction == "at_least" else "≤") if entry.threshold is not None else ""
    return [
        utc_text(entry.at),
        entry.run_id[:8],
        entry.digest[:8] + ("" if entry.stored else "*"),  # the star marks a version that the store no longer holds
        entry.profile or ABSENT,
        ABSENT if entry.value is None else f"{entry.value:.4g}",
        ABSENT if entry.threshold is None else f"{sign} {entry.threshold:g}",
        ABSENT if entry.margin is None else f"{entry.margin:+.3g}",
        "passed" if entry.passed else ("FAILED" if entry.override is None else "OVERRIDDEN"),
    ]


def artifact_line(artifact: ArtifactRow) -> str:
    """Return a line with the compressed file, its size and the share of its parent's accuracy that it retains."""
    facts = [f"{artifact.size_bytes:,} bytes"]
    if artifact.bits_per_parameter is not None:
        facts.append(f"{artifact.bits_per_parameter:.3f} bits per parameter of the trained model")
    if artifact.retention is not None:
        kept = with_interval(artifact.retention, artifact.retention_ci95)
        facts.append(f"keeps {kept} of its parent's next-token accuracy")
    if artifact.retention_to_merged is not None:
        kept = with_interval(artifact.retention_to_merged, artifact.retention_to_merged_ci95)
        facts.append(f"{kept} of the merged model's, the last in full precision")
    return f"{artifact.path}: {'; '.join(facts)}"


def colour_of(text: str) -> str:
    """Return the colour of a cell that holds a verdict or counts verdicts: `red`, `green`, `yellow` or `default`."""
    if text == "FAILED" or text.startswith("✗"):
        return "red"
    if text == "passed" or text.startswith("✓"):
        return "green"
    return "yellow" if text == NO_VERDICT else "default"


def formatted(value: float | None, form: str) -> str:
    """Return the value in `form`, or a dash if it is None."""
    return ABSENT if value is None else form.format(value)


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """Return a share with its 95 % CI, in percent; a dash if it is None."""
    if value is None:
        return ABSENT
    return f"{value:.1%}" + ("" if interval is None else f" ({interval[0]:.1%}-{interval[1]:.1%})")
