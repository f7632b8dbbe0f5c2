"""The exhibit `thoughts`: whether a model's thoughts help, where it thinks, and what it thinks there.

Gains are in bits: the log2 of the factor by which a thought raises the probability of the text that comes next.
"""

from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from forge_assets.exhibits.exhibit import Document, Exhibit, Ordered
from forge_assets.exhibits.interval_chart import Interval, interval_chart
from forge_assets.exhibits.markup import each, interval, markdown_table, number, plain, table, visible

Share = Annotated[float, Field(ge=0, le=1)]
Group = Literal["best", "worst", "random"]
_MARKDOWN_ROWS = 8
_BITS = "{:+.4f}"
_GROUPS: tuple[tuple[Group, str], ...] = (
    ("best", "Where thinking helped most"),
    ("worst", "Where it did most harm"),
    ("random", "Drawn at random"),
)


class ThoughtExample(Document):
    """One position: the thoughts sampled there and the probabilities of the true next tokens."""

    group: Group
    context: str
    thoughts: list[str] = Field(min_length=1)
    chosen: int = Field(ge=0, description="Index of the thought that `after` was measured with.")
    next_tokens: list[str] = Field(min_length=1)
    before: list[Share] = Field(description="Probability of each next token without a thought.")
    after: list[Share] = Field(description="The same with all thoughts mixed.")
    gain_bits: float

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if self.chosen >= len(self.thoughts):
            raise ValueError(f"chosen must name one of {len(self.thoughts)} thoughts, counted from 0")
        if not len(self.next_tokens) == len(self.before) == len(self.after):
            lengths = (len(self.next_tokens), len(self.before), len(self.after))
            raise ValueError(f"next_tokens, before and after must be equally long, their lengths are {lengths}")
        return self


class HeatMapToken(Document):
    """One token of a running text."""

    text: str
    difficulty: Share
    surprise: Share
    thinks: bool


class ThoughtArm(Ordered):
    """Bits per token that trained thoughts, or a control, gain on the hardest decile of positions."""

    name: str
    description: str
    gain: float


class ThoughtGating(Ordered):
    """What one way to choose the positions that think gains, and what it costs."""

    name: str
    share: Share
    gain_bits_per_token: float
    gflop_per_token: float = Field(ge=0)
    bits_per_gflop: float


class Thoughts(Document):
    """The whole exhibit. `rule` says how the examples were chosen, `verdict` whether thoughts help."""

    rule: str
    enabled: bool
    verdict: str
    examples: list[ThoughtExample]
    heat_map: list[HeatMapToken]
    arms: list[ThoughtArm]
    gating: list[ThoughtGating]


def html(shown: Thoughts) -> str:
    """The exhibit as HTML: the verdict, the controls, the gating, the examples, the heat map."""
    state = "switched on" if shown.enabled else "switched off"
    return (
        f'<p class="verdict"><span class="{"on" if shown.enabled else "off"}">Thinking is {state}</span> '
        f"{visible(shown.verdict)}</p>"
        f"<h4>Trained thoughts against their controls</h4>{_arms(shown.arms)}"
        f"<h4>Where to think</h4>{_gating(shown.gating)}"
        f"<h4>Examples</h4>{_examples(shown)}"
        f"<h4>Where the model thinks</h4>{_heat_map(shown.heat_map)}"
    )


def markdown(shown: Thoughts) -> str:
    """Verdict, arms and gating as Markdown, without any text that a model wrote."""
    lines = [f"**Thinking is switched {'on' if shown.enabled else 'off'}.** {plain(shown.verdict)}", ""]
    arms = [[plain(a.name), _BITS.format(a.gain), _ends(a)] for a in shown.arms]
    arm_columns = ("arm", "bits per token, hardest tenth", "95 %")
    lines += markdown_table(arm_columns, arms, _MARKDOWN_ROWS) if arms else ["No arm was compared."]
    gating = [
        [plain(g.name), f"{g.share:.1%}", _BITS.format(g.gain_bits_per_token), _ends(g), f"{g.bits_per_gflop:+.4g}"]
        for g in shown.gating
    ]
    gating_columns = ("where it thinks", "share", "bits per token", "95 %", "bits per GFLOP")
    lines += ["", *(markdown_table(gating_columns, gating, _MARKDOWN_ROWS) if gating else ["No gating was compared."])]
    lines += ["", "Examples and the heat map: `forge report --html report.html`"]
    return "\n".join(lines)


def _ends(row: Ordered) -> str:
    return f"{_BITS.format(row.low)} to {_BITS.format(row.high)}"


def _gain(gain: float, row: Ordered) -> str:
    return f"{number(gain, _BITS)}<small>{interval(row.low, row.high, _BITS)}</small>"


def _arms(arms: Sequence[ThoughtArm]) -> str:
    if not arms:
        return '<p class="note">No arm was compared.</p>'
    chart = interval_chart(
        [Interval(arm.name, arm.gain, arm.low, arm.high) for arm in arms],
        "Bits per token gained, hardest tenth of positions",
    )
    rows = [
        [
            f"<b>{visible(arm.name)}</b><small>{visible(arm.description)}</small>",
            _gain(arm.gain, arm),
        ]
        for arm in arms
    ]
    columns = ("arm", "bits per token (95 %)")
    return f'<div class="beside"><figure>{chart}</figure>{table(columns, rows)}</div>'


def _gating(gating: Sequence[ThoughtGating]) -> str:
    if not gating:
        return '<p class="note">No gating was compared.</p>'
    chart = interval_chart(
        [Interval(way.name, way.gain_bits_per_token, way.low, way.high) for way in gating],
        "Bits per token gained over all positions",
    )
    rows = [
        [
            f"<b>{visible(way.name)}</b><small>{number(way.share, '{:.1%}')} of positions</small>",
            _gain(way.gain_bits_per_token, way),
            number(way.gflop_per_token, "{:.4g}"),
            number(way.bits_per_gflop, "{:+.4g}"),
        ]
        for way in gating
    ]
    columns = ("where it thinks", "bits per token (95 %)", "GFLOP per token", "bits per GFLOP")
    return f'<div class="beside"><figure>{chart}</figure>{table(columns, rows)}</div>'


def _examples(shown: Thoughts) -> str:
    note = f'<p class="note">How the examples were chosen: {visible(shown.rule)}</p>'
    if not shown.examples:
        return note + '<p class="note">There are no examples.</p>'
    groups = []
    for group, heading in _GROUPS:
        cards = [_card(example) for example in shown.examples if example.group == group]
        groups.append(f"<h5>{heading}</h5>" + each(cards, "None.", lambda inner: f'<div class="cards">{inner}</div>'))
    return note + "".join(groups)


def _card(example: ThoughtExample) -> str:
    sign = "better" if example.gain_bits > 0 else "worse" if example.gain_bits < 0 else "same"
    thoughts = "".join(
        f'<li{" class=chosen" if place == example.chosen else ""}><div class="text">{visible(thought)}</div></li>'
        for place, thought in enumerate(example.thoughts)
    )
    bars = "".join(
        _bar(token, before, after)
        for token, before, after in zip(example.next_tokens, example.before, example.after, strict=True)
    )
    return (
        f'<article><p class="gain {sign}">{number(example.gain_bits, "{:+.3f}")} bits</p>'
        f'<div class="label">The text so far</div>'
        f'<div class="context"><div class="text">{visible(example.context)}</div></div>'
        f'<div class="label">Thoughts</div><ol class="thoughts">{thoughts}</ol>'
        f'<div class="label">What came next, probability without → with the thoughts</div>'
        f'<div class="bars">{bars}</div></article>'
    )


def _bar(token: str, before: float, after: float) -> str:
    return (
        f'<div class="token text">{visible(token, "all")}</div>'
        f'<div class="pair"><i class="before" style="width:{100 * before:.3f}%"></i>'
        f'<i class="after" style="width:{100 * after:.3f}%"></i></div>'
        f'<div class="change">{number(before, "{:.2%}")} → {number(after, "{:.2%}")}</div>'
    )


def _heat_map(tokens: Sequence[HeatMapToken]) -> str:
    if not tokens:
        return '<p class="note">No text was mapped.</p>'
    thinking = sum(token.thinks for token in tokens)
    legend = (
        '<p class="note legend">0 <span class="scale {kind}"></span> 1 &nbsp; <u class="thinks">underlined</u>: '
        f"the model thinks here, at {thinking} of {len(tokens)} positions</p>"
    )
    return "".join(
        f'<div class="label">By {kind}</div><p class="heat {kind}">{_spans(tokens, kind)}</p>'
        + legend.replace("{kind}", kind)
        for kind in ("difficulty", "surprise")
    )


def _spans(tokens: Sequence[HeatMapToken], kind: str) -> str:
    spans = []
    for token in tokens:
        value: float = getattr(token, kind)
        thinks = " class=thinks" if token.thinks else ""
        spans.append(
            f'<span{thinks} style="--v:{value!r}" title="{kind} {value:.3f}">{visible(token.text, "none")}</span>'
        )
    return "".join(spans)


_CSS = resources.files("forge_assets.exhibits").joinpath("thoughts.css").read_text()
EXHIBIT = Exhibit("Thoughts", Thoughts, html, markdown, _CSS, measures=False)
