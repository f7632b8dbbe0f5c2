"""The exhibit `experts`: experts that the model's own profile asked for, how questions reach them, and the front of
compositions that the search found.

Accuracies are expected ones: the probability that a drawn attempt writes the worked answer. An expert is one multiplier
for each singular value of the matrices of the MLPs.
"""

from collections.abc import Sequence
from importlib import resources

from forge_assets.exhibits.exhibit import Exhibit
from forge_assets.exhibits.experts_document import (
    Answering,
    Climb,
    Discovery,
    ExpertShown,
    ExpertsShown,
    FrontPoint,
    Heat,
    Routing,
    Search,
    Spectrum,
)
from forge_assets.exhibits.markup import each, markdown_table, number, plain, table, visible
from forge_assets.exhibits.measured import PERCENT, heat_map, measured, measured_text, note, tracks
from forge_assets.exhibits.scatter import Axis, Dot, scatter

_SIGNED = "{:+.3f}"
_SHORT = "{:.3f}"
_BARS = 48  # at most, in the picture of a spectrum: neighbours are averaged
_MARKDOWN_ROWS = 8
_KINDS = {
    "none": "before",
    "single": "middle",
    "router": "after",
    "oracle": "middle",
    "searched": "after",
    "rival": "before",
}


def html(shown: ExpertsShown) -> str:
    """The exhibit as HTML: answers, discovery, experts, heat map, routing, front, costs."""
    not_kept = note(f"<b>Without experts:</b> {visible(shown.not_kept, 'none')}") if shown.not_kept else ""
    return (
        f"<h4>Answers to test questions</h4>{not_kept}{_answering(shown.answering)}"
        f"<h4>Found in the model's own profile</h4>{_discovery(shown.discovery)}"
        f"<h4>Experts</h4>{each([_expert(x) for x in shown.experts], 'There is no expert.', str)}"
        f"<h4>Each expert on each family</h4>{_heat(shown.heat)}"
        f"<h4>Routing</h4>{_routing(shown.routing)}"
        f"<h4>The front of the search</h4>{_search(shown.search)}"
        f"<h4>What two passes cost</h4>{_costs(shown)}"
    )


def markdown(shown: ExpertsShown) -> str:
    """The main numbers as Markdown."""
    stable = f"the same in {shown.discovery.stability:.0%} of {shown.discovery.resamples} resamples"
    lines = [f"**{len(shown.experts)} experts**, {stable}", ""]
    lines += [f"Without experts: {plain(shown.not_kept)}", ""] if shown.not_kept else []
    rows = [[plain(x.name), measured_text(x.accuracy), measured_text(x.over_none, "{:+.1%}")] for x in shown.answering]
    columns = ("answers by", "expected accuracy (95 %)", "over no expert")
    lines += markdown_table(columns, rows, _MARKDOWN_ROWS)
    chosen = next((point for point in shown.search.front if point.chosen), None)
    if chosen is not None:
        lines += ["", f"Chosen of {len(shown.search.front)} points of the front: {plain(chosen.says)}; "]
        lines[-1] += f"{chosen.latency_ratio:.2f} times the time of one pass, {chosen.bytes:,} bytes."
    return "\n".join([*lines, "", "Front, heat map, routing and spectra: `forge report --html report.html`"])


def _answering(rows: Sequence[Answering]) -> str:
    if not rows:
        return note("Nothing was answered.")
    high = max(x.accuracy.high for x in rows)
    low = min(x.accuracy.low for x in rows)
    high = high if high > low else low + 1e-9
    none = next((x.accuracy.value for x in rows if x.kind == "none"), None)
    cells = [
        [
            f"<b>{visible(x.name)}</b>",
            tracks([(_KINDS[x.kind], x.accuracy)], none, low, high),
            measured(x.accuracy),
            measured(x.over_none, "{:+.1%}"),
        ]
        for x in rows
    ]
    columns = ("answers by", f"{low:.0%} to {high:.0%}", "expected accuracy", "over no expert")
    said = "Families weigh alike. The dashed line is the model without experts; differences are paired by question."
    return table(columns, cells) + note(said)


def _discovery(shown: Discovery) -> str:
    families = [
        [
            f"<b>{visible(x.family)}</b>",
            visible(x.expert),
            number(x.questions, "{}"),
            measured(x.expected),
            number(x.exact, PERCENT),
            number(x.nats, _SHORT),
        ]
        for x in shown.profile
    ]
    columns = ("family", "goes to", "questions", "expected accuracy", "exact", "nats per token")
    names = [x.family for x in shown.profile]
    alike = [
        (name, [((1 + value) / 2, _SIGNED.format(value)) for value in row])
        for name, row in zip(names, shown.similarity, strict=True)
    ]
    curve = [
        [
            number(x.experts, "{}") + (' <span class="chosen">chosen</span>' if x.experts == shown.chosen else ""),
            number(x.gain, "{:.4g}"),
            number(x.error, "{:.2g}"),
        ]
        for x in shown.curve
    ]
    stable = f"The same number in {number(shown.stability, PERCENT)} of {shown.resamples} resampled profiles."
    return (
        table(columns, families)
        + note(f"{visible(shown.criterion, 'none')} {stable} {visible(shown.note, 'none') if shown.note else ''}")
        + (table(("experts", "criterion", "standard error"), curve) if curve else "")
        + "<h5>Similarity of the families' gradients</h5>"
        + heat_map("cosine", names, alike)
    )


def _expert(shown: ExpertShown) -> str:
    learned = [
        [
            visible(x.method) + (' <span class="chosen">kept</span>' if x.kept else ""),
            measured(x.gain, "{:+.1%}"),
            number(x.bytes, "{:,}"),
        ]
        for x in shown.learned
    ]
    spectra = [[visible(x.matrix), _spectrum(x), _range(x)] for x in shown.spectra]
    course = ""
    if shown.rewards:
        first, last = shown.rewards[0], shown.rewards[-1]
        course = note(f"Mean reward (+1 right, -1 wrong): {number(first, _SIGNED)} at first, {number(last, _SIGNED)}.")
    return (
        f"<h5>{visible(shown.name)}: {visible(', '.join(shown.families), 'none')}</h5>"
        f'<span class="says">{visible(shown.says, "none")}</span>'
        + table(("learned by", "gain on validation questions", "bytes"), learned)
        + note(f"{number(shown.parameters, '{:,}')} parameters in {number(shown.bytes, '{:,}')} bytes.")
        + course
        + f"<details><summary>Multipliers of the singular values</summary>"
        f"{table(('matrix', 'largest singular value first', 'range'), spectra)}</details>"
    )


def _spectrum(shown: Spectrum) -> str:
    """Bars: half the height is a multiplier of 1, the whole is the largest deviation of this matrix."""
    size = max(1, -(-len(shown.multipliers) // _BARS))
    parts = [shown.multipliers[i : i + size] for i in range(0, len(shown.multipliers), size)]
    means = [sum(part) / len(part) for part in parts]
    widest = max([abs(m - 1) for m in means], default=0.0) or 1.0
    bars = "".join(f'<i style="--v:{0.5 + (m - 1) / (2 * widest):.3f}" title="{m:.3f}"></i>' for m in means)
    return f'<span class="spectrum">{bars}</span>'


def _range(shown: Spectrum) -> str:
    low, high = (min(shown.multipliers), max(shown.multipliers)) if shown.multipliers else (1.0, 1.0)
    return f"{number(low, _SHORT)} to {number(high, _SHORT)}"


def _heat(shown: Heat) -> str:
    columns = list(zip(*shown.cells, strict=True))
    spans = [(min(column), max(column)) for column in columns]
    rows = [
        (
            name,
            [
                ((value - low) / (high - low) if high > low else 0.5, PERCENT.format(value))
                for value, (low, high) in zip(cells, spans, strict=True)
            ],
        )
        for name, cells in zip(shown.rows, shown.cells, strict=True)
    ]
    said = (
        "Expected accuracy on test questions. Colours compare within a column: the strongest is the best of the family."
    )
    return heat_map("", shown.families, rows) + note(said)


def _routing(shown: Routing) -> str:
    rows = [
        [
            f"<b>{visible(x.name)}</b>",
            tracks([("after", x.accuracy)], x.chance),
            measured(x.accuracy),
            number(x.entropy, "{:.2f}"),
            visible(x.note, "none") if x.note else "",
        ]
        for x in shown.routers
    ]
    confusion = [
        (name, [(count / max(1, sum(counts)), str(count)) for count in counts])
        for name, counts in zip(shown.labels, shown.confusion, strict=True)
    ]
    columns = ("router", "0 to 100 %", "names the family's expert", "bits", "")
    said = (
        "The dashed line is the most frequent expert named every time. Bits: entropy of the choices, 0 if always one."
    )
    return (
        table(columns, rows) + note(said) + "<h5>Chosen, for questions of</h5>" + heat_map("", shown.labels, confusion)
    )


def _search(shown: Search) -> str:
    told = f"{number(shown.evaluations, '{:,}')} compositions asked for, {number(shown.measured, '{:,}')} measured "
    told += f"(the others had come before), {number(shown.raced_out, '{:,}')} stopped early as worse than no expert, "
    told += f"{number(shown.too_slow, '{:,}')} beyond the bound on time. {visible(shown.rule, 'none')} "
    told += "<code>forge generate --model expert_model --point N</code> answers with another point."
    if not shown.front:
        return note(told)
    across = [
        Axis("milliseconds a question", "{:.2f}", [x.latency_ms for x in shown.front]),
        Axis("bytes", "{:,.0f}", [float(x.bytes) for x in shown.front]),
        Axis("bits per byte of text", "{:.4f}", [x.bits_per_byte for x in shown.front]),
    ]
    upward = Axis("expected accuracy on validation questions", PERCENT, [x.accuracy for x in shown.front])
    dots = [Dot(_card(x), f"front-{x.number}", x.chosen) for x in shown.front]
    return scatter("front", upward, across, dots) + note(told) + _front(shown.front) + _climbs(shown.climbs)


def _card(x: FrontPoint) -> list[str]:
    return [
        f"point {x.number}{', chosen' if x.chosen else ''}",
        f"{x.accuracy:.1%}, {x.latency_ms:.2f} ms ({x.latency_ratio:.2f} passes)",
        f"{x.bytes:,} bytes, {x.bits_per_byte:.4f} bits per byte",
    ]


def _front(points: Sequence[FrontPoint]) -> str:
    rows = "".join(
        f'<tr id="front-{x.number}" class="{"point chosen" if x.chosen else "point"}">'
        f'<td class="number">{x.number}</td><td class="number">{number(x.accuracy, PERCENT)}</td>'
        f'<td class="number">{number(x.latency_ratio, "{:.2f}")}</td><td class="number">{number(x.bytes, "{:,}")}</td>'
        f'<td class="number">{number(x.bits_per_byte, "{:.4f}")}</td><td>{visible(x.says, "none")}</td></tr>'
        for x in points
    )
    columns = ("", "accuracy", "passes", "bytes", "bits per byte", "composition")
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _climbs(climbs: Sequence[Climb]) -> str:
    rows = [
        [
            number(x.seed, "{}"),
            number(x.evaluations[-1], "{:,}"),
            number(x.search[-1], "{:.4f}"),
            number(x.random[-1], "{:.4f}"),
            number(x.search[-1] - x.random[-1], "{:+.4f}"),
            _climb(x),
        ]
        for x in climbs
        if x.evaluations
    ]
    columns = ("seed", "evaluations", "hypervolume", "as many at random", "difference", "over generations")
    said = "Hypervolume: share of a fixed box of accuracy, time, bytes and bits per byte that the front dominates."
    return f"<h5>Against random compositions</h5>{table(columns, rows)}{note(said)}" if rows else ""


def _climb(shown: Climb) -> str:
    values = [*shown.search, *shown.random]
    low, high = min(values), max(values)
    span = high - low or 1.0

    def line(kind: str, of: Sequence[float]) -> str:
        step = 150 / max(1, len(of) - 1)
        places = " ".join(f"{5 + i * step:.1f},{35 - 30 * (value - low) / span:.1f}" for i, value in enumerate(of))
        return f'<polyline class="{kind}" points="{places}"/>'

    return (
        f'<svg class="climb" width="160" height="40">{line("random", shown.random)}{line("search", shown.search)}</svg>'
    )


def _costs(shown: ExpertsShown) -> str:
    rows = [[visible(x.name), number(x.milliseconds, "{:.3f}"), number(x.ratio, "{:.2f}")] for x in shown.costs]
    return table(("pass", "milliseconds a question", "times one pass"), rows) if rows else note("Not measured.")


_CSS = resources.files("forge_assets.exhibits").joinpath("experts.css").read_text()
EXHIBIT = Exhibit("Experts", ExpertsShown, html, markdown, _CSS)
