"""The ledger for people: tables on the terminal, and one HTML page that needs nothing else."""

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

from rich.console import Console, Group, RenderableType
from rich.markup import escape as plain
from rich.table import Table
from rich.text import Text

from forge_assets import charts, exhibits
from forge_assets.ledger import ArtifactRow, GateRow, Ledger, ModelRow

ABSENT = "-"
NO_VERDICT = "no verdict"


def print_ledger(ledger: Ledger, console: Console, *, verdicts: bool = True) -> None:
    """Print the models, with `verdicts` every gate and claim, the file that ships, and what is missing."""
    parts: list[RenderableType] = []
    if ledger.models:
        parts.append(_models_table(ledger))
        parts += [Text.from_markup(f"[yellow]{plain(line)}[/]") for line in _outdated(ledger)]
    if verdicts and ledger.gates:
        parts.append(_gates_table(ledger))
    if ledger.artifact is not None and verdicts:
        parts.append(Text(_artifact_line(ledger.artifact)))
    parts += [Text.from_markup(f"[dim]{plain(line)}[/]") for line in missing_lines(ledger)]
    console.print(Group(*parts), soft_wrap=False)


def missing_lines(ledger: Ledger) -> list[str]:
    """What is absent and the command that makes it."""
    lines = [f"{asset}: {reason}" for asset, reason in ledger.missing.items() if reason != "not made yet"]
    if never := [asset for asset, reason in ledger.missing.items() if reason == "not made yet"]:
        lines.append(f"not made yet: {', '.join(never)}")
    return [*lines, f"make what is missing: forge run --profile {ledger.profile}"] if lines else []


def gate_counts(ledger: Ledger, asset: str, *, blocking: bool = True) -> str:
    """Gates (or claims) of an asset that passed, for instance `✓ 3/3` or `✗ 2/3`; a dash when it has none."""
    rows = [row for row in ledger.gates if row.gate.asset == asset and row.gate.blocking == blocking]
    if not rows:
        return ABSENT
    if any(row.passed is None for row in rows):
        return NO_VERDICT
    passed = sum(row.passed is True for row in rows)
    return f"{'✓' if passed == len(rows) else '✗'} {passed}/{len(rows)}"


def _table(title: str) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    style = {"title_justify": "left", "title_style": "bold", "header_style": "dim"}
    return Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False, **style)  # type: ignore[arg-type]


def _models_table(ledger: Ledger) -> Table:
    table = _table(f"Ledger, profile {ledger.profile}")
    for title in _MODEL_COLUMNS:
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    for row in ledger.models:
        cells = model_cells(ledger, row)
        table.add_row(*cells[:-2], *(f"[{_colour(cell)}]{cell}[/]" for cell in cells[-2:]))
    return table


_MODEL_COLUMNS = ("model", "params", "bits/byte", "next token (95 %)", "bytes", "gates", "claims")


def model_cells(ledger: Ledger, row: ModelRow) -> list[str]:
    """The cells of a model's line in the ledger."""
    asset = row.lineage.asset
    return [
        asset + (" *" if row.outdated else ""),
        _number(row.metric("params"), "{:,.0f}"),
        _number(row.metric("bits_per_byte"), "{:.4f}"),
        _with_interval(row.metric("next_token_accuracy"), row.interval("next_token_accuracy")),
        _number(row.metric("bytes_on_disk"), "{:,.0f}"),
        gate_counts(ledger, asset),
        gate_counts(ledger, asset, blocking=False),
    ]


def _gates_table(ledger: Ledger) -> Table:
    table = _table("Gates and claims")
    for title in ("asset", "", "name", "value", "required", "margin", "verdict"):
        number = title in ("value", "required", "margin")
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in ledger.gates:
        cells = gate_cells(row)
        table.add_row(*cells[:-1], f"[{_colour(cells[-1])}]{cells[-1]}[/]")
    return table


def gate_cells(row: GateRow) -> list[str]:
    """The cells of a gate's line: asset, gate or claim, name, value, requirement, margin, verdict."""
    sign = "≥" if row.gate.direction == "at_least" else "≤"
    verdict = {True: "passed", False: "FAILED", None: NO_VERDICT}[row.passed]
    return [
        row.gate.asset,
        "gate" if row.gate.blocking else "claim",
        row.gate.name,
        "not measured" if row.value is None else f"{row.value:.6g}",
        f"{sign} {row.threshold:g}",
        ABSENT if (margin := margin_of(row)) is None else f"{margin:+.4g}",
        verdict,
    ]


def margin_of(row: GateRow) -> float | None:
    """By how much a gate is passed, in the metric's own unit; negative when it fails."""
    if row.value is None:
        return None
    return row.value - row.threshold if row.gate.direction == "at_least" else row.threshold - row.value


def html_page(ledger: Ledger, more: Sequence[tuple[str, str]] = ()) -> str:
    """The whole ledger as one page with its charts inside, and `more` sections (title and content, as HTML)."""
    sections = [
        (
            "Ledger",
            _html_table(_MODEL_COLUMNS, [model_cells(ledger, row) for row in ledger.models]) + _notes(ledger),
        ),
        ("Along the chain", "".join(f"<figure>{svg}</figure>" for svg in charts.chain(ledger))),
        ("Task families", "".join(f"<figure>{svg}</figure>" for svg in charts.tasks(ledger))),
        (
            "Training",
            "".join(_image(row, name, png) for row in ledger.models for name, png in row.figures.items()),
        ),
        *((escape(row.lineage.asset), _exhibits_html(row)) for row in ledger.models),
        ("Gates and claims", _gates_html(ledger)),
        ("The file", _artifact_html(ledger)),
        *more,
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    if not ledger.models:
        command = f"forge run --profile {escape(ledger.profile)}"
        missing = f"<section><p>Nothing was measured yet: <code>{command}</code></p></section>"
        body = missing + "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in more)
    page = Template(resources.files("forge_assets").joinpath("report_page.html").read_text())
    return page.substitute(
        profile=escape(ledger.profile), summary=escape(summary(ledger)), body=body, style=exhibits.style()
    )


def summary(ledger: Ledger) -> str:
    """One sentence: how many models, gates and claims."""

    def count(rows: Sequence[GateRow]) -> str:
        return f"{sum(row.passed is True for row in rows)} of {len(rows)}"

    gates = [row for row in ledger.gates if row.gate.blocking]
    claims = [row for row in ledger.gates if not row.gate.blocking]
    return (
        f"{len(ledger.models)} models of profile {ledger.profile}; {count(gates)} gates passed, "
        f"{count(claims)} claims held."
    )


def _notes(ledger: Ledger) -> str:
    return "".join(f'<p class="note">{escape(line)}</p>' for line in [*_outdated(ledger), *missing_lines(ledger)])


def _outdated(ledger: Ledger) -> list[str]:
    return [
        f"* {row.lineage.asset} was made from an earlier {', '.join(row.outdated)}; forge run makes it again"
        for row in ledger.models
        if row.outdated
    ]


def _gates_html(ledger: Ledger) -> str:
    columns = ("asset", "", "name", "value", "required", "margin", "verdict", "evidence")

    def evidence(row: GateRow) -> str:
        return row.gate.evidence + (f", against {row.gate.against}" if row.gate.against else "")

    rows = [[*gate_cells(row), evidence(row)] for row in ledger.gates]
    return _html_table(columns, rows) if rows else ""


def _artifact_html(ledger: Ledger) -> str:
    if ledger.artifact is None:
        command = f"forge run --profile {escape(ledger.profile)}"
        return f"<p>No compressed file yet: <code>{command}</code> makes it.</p>"
    command = f'forge generate --artifact {ledger.artifact.path} "The "'
    return f"<p>{escape(_artifact_line(ledger.artifact))}</p><p>Run it:</p><pre>{escape(command)}</pre>"


def _artifact_line(artifact: ArtifactRow) -> str:
    facts = [f"{artifact.size_bytes:,} bytes"]
    if artifact.bits_per_parameter is not None:
        facts.append(f"{artifact.bits_per_parameter:.3f} bits per parameter of the trained model")
    if artifact.retention is not None:
        kept = _with_interval(artifact.retention, artifact.retention_ci95)
        facts.append(f"keeps {kept} of its parent's next-token accuracy")
    return f"{artifact.path}: {'; '.join(facts)}"


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in columns)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    classes = [{"red": "bad", "green": "good", "yellow": "unknown"}.get(_colour(text), "")]
    if text[:1].isdigit() or text[:1] in "+-≥≤":
        classes.append("number")
    return f'<td class="{" ".join(classes).strip()}">{escape(text)}</td>'


def _colour(text: str) -> str:
    if text == "FAILED" or text.startswith("✗"):
        return "red"
    if text == "passed" or text.startswith("✓"):
        return "green"
    return "yellow" if text == NO_VERDICT else "default"


def _image(row: ModelRow, name: str, png: bytes) -> str:
    encoded = base64.b64encode(png).decode()
    caption = escape(f"{row.lineage.asset}: {name}")
    image = f'<img alt="{caption}" src="data:image/png;base64,{encoded}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _exhibits_html(row: ModelRow) -> str:
    """What the model's phase shows; an exhibit that this version cannot render says why in its place."""
    shown = []
    for name, document in sorted(row.exhibits.items()):
        try:
            shown.append(f"<h3>{escape(exhibits.title(name))}</h3>{exhibits.render(name, document)}")
        except exhibits.ExhibitError as error:
            shown.append(f'<h3>{escape(name)}</h3><p class="bad">Cannot be shown: {escape(str(error))}</p>')
    return "".join(shown)


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.1%}" + ("" if interval is None else f" ({interval[0]:.1%}-{interval[1]:.1%})")
