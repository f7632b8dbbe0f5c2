"""The report as one self-contained HTML page: a first screen, then a collapsible section per phase.

The first screen shows what was made, samples of its text, the results of each phase, and every failure with its value.
A reader who has never seen the project should understand it without scrolling at 1280 x 900.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from forge_assets.ledger import ArtifactRow, GateRow, Ledger, ModelRow
from forge_assets.report import exhibits
from forge_assets.report.cells import (
    artifact_line,
    chain_lines,
    control_cells,
    corpus_lines,
    evidence_of,
    formatted,
    gate_cells,
    missing_lines,
    model_cells,
    outdated_lines,
    passed_of,
    summary,
    with_interval,
)
from forge_assets.report.components import charts
from forge_assets.report.templates import macro, source
from forge_assets.report.yardsticks import baseline_lines, best_baseline, yardsticks

# Title and purpose of each phase.
_PHASES = {
    1: ("Cognate", "a small model and three specialists"),
    2: ("EvoMerge", "the best of many merges of them"),
    3: ("Quiet-STaR", "thoughts before tokens"),
    4: ("BitNet 1.58", "weights of -1, 0 and +1"),
    5: ("Curriculum", "practice at the edge of its abilities"),
    6: ("Baking", "prompts and tools in the weights"),
    7: ("Experts", "small experts, routed and composed"),
    8: ("Compression", "one entropy-coded file"),
}
_SAMPLES = 2


@dataclass(frozen=True, slots=True)
class Made:
    """The end of the chain: the compressed file, or the last model if there is no file yet."""

    row: ModelRow
    file: ArtifactRow | None

    @property
    def size_bytes(self) -> int | None:
        """Size of the compressed file."""
        return None if self.file is None else self.file.size_bytes

    @property
    def command(self) -> str:
        """The command that runs the file."""
        return "" if self.file is None else f'forge generate --artifact {self.file.path} "The "'

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Names and values of its measurements; those that were not made are left out."""
        row = self.row
        facts = [
            ("parameters", formatted(row.metric("params"), "{:,.0f}")),
            ("next token right", with_interval(row.metric("next_token_accuracy"), row.interval("next_token_accuracy"))),
            ("bits per byte", formatted(row.metric("bits_per_byte"), "{:.4f}")),
        ]
        if (baseline := row.metric("counting_bits_per_byte")) is not None:
            facts[-1] = (facts[-1][0], f"{facts[-1][1]}, n-gram {baseline:.4f}")
        if self.file is not None and self.file.retention is not None:
            facts.append(("parent's accuracy kept", with_interval(self.file.retention, self.file.retention_ci95)))
        if self.file is not None and (kept := self.file.retention_to_merged) is not None:
            facts.append(("merged model's accuracy kept", with_interval(kept, self.file.retention_to_merged_ci95)))
        if self.file is not None and self.file.bits_per_parameter is not None:
            facts.append(("bits per parameter", f"{self.file.bits_per_parameter:.3f} of the trained model"))
        if tasks := [_task(family, scores) for family, scores in row.lineage.tasks.items()]:
            facts.append(("tasks (guessing or best rule)", ", ".join(tasks)))
        return facts


@dataclass(frozen=True, slots=True)
class Samples:
    """Texts that a model continued: (beginning, continuation)."""

    row: ModelRow
    texts: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A gate or claim that failed, and the phase of its model."""

    phase: int
    row: GateRow


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model's figures (caption, data URI) and exhibits (title, content, error)."""

    row: ModelRow

    @property
    def figures(self) -> list[tuple[str, str]]:
        """Captions and images drawn by its phase."""
        return [
            (f"{self.row.lineage.asset}: {name}", f"data:image/png;base64,{base64.b64encode(png).decode()}")
            for name, png in self.row.figures.items()
        ]

    @property
    def exhibits(self) -> list[tuple[str, Markup, str]]:
        """The exhibits of its phase; one that this version cannot render has an error in place of content."""
        shown = []
        for name, document in sorted(self.row.exhibits.items()):
            try:
                shown.append((exhibits.title(name), exhibits.render(name, document), ""))
            except exhibits.ExhibitError as error:
                shown.append((name, Markup(""), str(error)))
        return shown


@dataclass(frozen=True, slots=True)
class PhaseView:
    """The models of one phase, and their gates and claims."""

    number: int
    ledger: Ledger
    models: list[ModelView]
    rows: list[GateRow]

    @property
    def title(self) -> str:
        """The name of the phase."""
        return _PHASES.get(self.number, (f"phase {self.number}", ""))[0]

    @property
    def purpose(self) -> str:
        """The purpose of the phase in a few words."""
        return _PHASES.get(self.number, ("", ""))[1]

    @property
    def gates(self) -> str:
        """The number of gates that passed."""
        return passed_of([row for row in self.rows if row.gate.blocking])

    @property
    def claims(self) -> str:
        """The number of claims that held."""
        return passed_of([row for row in self.rows if not row.gate.blocking])

    @property
    def bits_per_byte(self) -> str:
        """Bits per byte of its models, as a range if there are several."""
        return self._range("bits_per_byte", "{:.3f}")

    @property
    def next_token(self) -> str:
        """Next-token accuracy of its models, as a range if there are several."""
        return self._range("next_token_accuracy", "{:.1%}")

    @property
    def size(self) -> str:
        """Bytes on disk of its models, as a range if there are several."""
        return self._range("bytes_on_disk", "{:,.0f}")

    @property
    def model_cells(self) -> list[list[str]]:
        """Rows of the ledger."""
        return [model_cells(self.ledger, model.row) for model in self.models]

    @property
    def gate_cells(self) -> list[list[str]]:
        """Gates and claims with their evidence."""
        return [[*gate_cells(row), evidence_of(row)] for row in self.rows]

    def _range(self, metric: str, form: str) -> str:
        values = [value for model in self.models if (value := model.row.metric(metric)) is not None]
        ends = [formatted(end, form) for end in (min(values), max(values))] if values else [formatted(None, form)]
        return "-".join(dict.fromkeys(ends))


@dataclass(frozen=True, slots=True)
class PageView:
    """The content of the page. `more` holds further sections (title, content)."""

    ledger: Ledger
    more: Sequence[tuple[str, Markup]]

    @property
    def profile(self) -> str:
        """The profile of the ledger."""
        return self.ledger.profile

    @property
    def style(self) -> Markup:
        """The CSS of the page and of the exhibits."""
        return Markup(source("page.css") + exhibits.style())  # unescaped: both are files of this project

    @property
    def summary(self) -> str:
        """A sentence with the number of models, of gates passed and of claims held."""
        return summary(self.ledger)

    @property
    def made(self) -> Made | None:
        """The end of the chain; None if nothing was made."""
        return Made(self.ledger.models[-1], self.ledger.artifact) if self.ledger.models else None

    @property
    def samples(self) -> Samples | None:
        """Sample texts of the last model whose exhibits hold any."""
        for row in reversed(self.ledger.models):
            for name, document in row.exhibits.items():
                if texts := exhibits.written(name, document):
                    return Samples(row, texts[:_SAMPLES])
        return None

    @property
    def phases(self) -> list[PhaseView]:
        """The phases that made a model, in order."""
        models = sorted(self.ledger.models, key=lambda row: row.lineage.phase)
        phases = []
        for number, rows in groupby(models, key=lambda row: row.lineage.phase):
            views = [ModelView(row) for row in rows]
            assets = {view.row.lineage.asset for view in views}
            phases.append(
                PhaseView(number, self.ledger, views, [row for row in self.ledger.gates if row.gate.asset in assets])
            )
        return phases

    @property
    def failed(self) -> list[Failure]:
        """The gates and claims that failed, gates first."""
        phase_of = {row.lineage.asset: row.lineage.phase for row in self.ledger.models}
        failed = [Failure(phase_of[row.gate.asset], row) for row in self.ledger.gates if row.passed is False]
        return sorted(failed, key=lambda failure: not failure.row.gate.blocking)

    @property
    def notes(self) -> list[str]:
        """Notes on models that are out of date or missing, and on the corpus."""
        return [
            *outdated_lines(self.ledger),
            *missing_lines(self.ledger),
            *chain_lines(self.ledger),
            *corpus_lines(self.ledger),
        ]

    @property
    def model_cells(self) -> list[list[str]]:
        """Rows of the ledger."""
        return [model_cells(self.ledger, row) for row in self.ledger.models]

    @property
    def yardsticks(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the table of text, questions and grammar."""
        return yardsticks(self.ledger)

    @property
    def baselines(self) -> list[str]:
        """A line that names the best baselines, if there are questions with any."""
        return baseline_lines(self.ledger)

    @property
    def control_cells(self) -> list[list[str]]:
        """Rows of the table of controls."""
        return [control_cells(row) for row in self.ledger.controls]

    @property
    def chain(self) -> list[Markup]:
        """Charts along the chain of models."""
        return charts.chain(self.ledger)

    @property
    def tasks(self) -> list[Markup]:
        """One chart per task family."""
        return charts.tasks(self.ledger)

    @property
    def artifact_line(self) -> str:
        """A line on the compressed file."""
        return "" if self.ledger.artifact is None else artifact_line(self.ledger.artifact)


def _task(family: str, scores: Mapping[str, float]) -> str:
    """The accuracy of a family, with its best baseline where it has any, else with the chance level."""
    beside = "" if (chance := scores.get("chance")) is None else f" ({chance:.0%})"
    if (best := best_baseline(scores)) is not None:
        beside = f" ({best[0]} {best[1]:.0%})"
    return f"{family.replace('_', ' ')} {scores['accuracy']:.0%}{beside}"


def html_page(ledger: Ledger, more: Sequence[tuple[str, Markup]] = ()) -> str:
    """Return the ledger as one HTML page with inline charts, followed by the sections `more` (title, content)."""
    return macro("page.html.j2", "page", PageView(ledger, more))
