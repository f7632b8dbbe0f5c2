"""The exhibit `character`: rules baked into the weights, a council of archetypes, a controller, and self-knowledge.

Preferences are shares of held-out scenario pairs whose better continuation is the likelier one; a margin is how much
likelier, in nats per byte.
"""

from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Self

from pydantic import Field, model_validator

from forge_assets.exhibits.exhibit import Document, Exhibit
from forge_assets.exhibits.markup import each, markdown_table, number, plain, table, visible
from forge_assets.exhibits.measured import (
    PERCENT,
    Accuracy,
    Count,
    Measured,
    Share,
    badge,
    heat_map,
    measured,
    measured_text,
    note,
    text,
    tracks,
)

_MARGIN = "{:+.4f}"
_MARKDOWN_RULES = 8
_HALF = 0.5  # two continuations, one of them likelier by chance
NonNegative = Annotated[float, Field(ge=0)]


class Rule(Document):
    """A rule, what baking it did to the likelihoods, and preferences without it, with it in the prompt, and baked."""

    name: str
    prompt: str
    kl_before: float
    kl_after: float
    strength: float | None
    base: Accuracy
    prompted: Accuracy
    baked: Accuracy


class Pair(Document):
    """One held-out scenario pair."""

    rule: str
    situation: str
    better: str
    worse: str
    base_margin: float
    baked_margin: float


class Archetype(Document):
    """A voice of the council."""

    name: str
    prompt: str
    accuracy: Share


class Vote(Document):
    """What one archetype answered."""

    archetype: str
    answer: str


class Ballot(Document):
    """One question to the council."""

    question: str
    answer: str
    votes: list[Vote]
    decided: str
    right: bool


class CouncilTokens(Document):
    """Tokens that a question took each of the ways."""

    single: NonNegative
    self_consistency: NonNegative
    council: NonNegative


class Council(Document):
    """Majority votes of archetypes, against one answer and against as many samples of one voice."""

    archetypes: list[Archetype]
    agreement: float | None
    single: Accuracy
    self_consistency: Accuracy
    council: Accuracy
    tokens: CouncilTokens
    votes: list[Ballot]


class Step(Document):
    """One step of an episode."""

    stage: str
    text: str


class Episode(Document):
    """How one question was dealt with."""

    question: str
    expected: str
    steps: list[Step]
    answer: str
    right: bool


class Ooda(Document):
    """The controller that observes, orients, decides and acts, against answering at once."""

    accuracy: Accuracy
    direct: Accuracy
    tokens: NonNegative
    direct_tokens: NonNegative
    episodes: list[Episode]


class Temperature(Document):
    """How well the model tells at which temperature its own sample was drawn: true ranges by predicted ones."""

    edges: list[float] = Field(min_length=2)
    confusion: list[list[Count]]
    model: Accuracy
    best_possible: Accuracy
    within_one: Share
    chance: Share

    @model_validator(mode="after")
    def _square(self) -> Self:
        ranges = len(self.edges) - 1
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"edges must rise, got {self.edges}")
        if [len(row) for row in self.confusion] != [ranges] * ranges:
            raise ValueError(f"confusion must be {ranges} x {ranges} for {len(self.edges)} edges")
        return self


class CharacterShown(Document):
    """The whole exhibit. `not_kept` says why the baked rules were not kept, empty where they were."""

    rules: list[Rule]
    not_kept: str
    pairs: list[Pair]
    council: Council
    ooda: Ooda
    temperature: Temperature


def html(shown: CharacterShown) -> str:
    """The exhibit as HTML: rules, scenario pairs, council, controller, temperature."""
    return (
        f"<h4>Rules</h4>{_kept(shown.not_kept)}{_rules(shown.rules)}<h4>Scenario pairs</h4>{_pairs(shown.pairs)}"
        f"<h4>Council of archetypes</h4>{_council(shown.council)}"
        f"<h4>Observe, orient, decide, act</h4>{_ooda(shown.ooda)}"
        f"<h4>At which temperature was this drawn?</h4>{_temperature(shown.temperature)}"
    )


def markdown(shown: CharacterShown) -> str:
    """The main numbers as Markdown, without any text that a model wrote."""
    rules = [
        [plain(rule.name), *(measured_text(x) for x in (rule.base, rule.prompted, rule.baked)), _strength(rule)]
        for rule in shown.rules
    ]
    columns = ("rule", "base (95 %)", "prompted (95 %)", "baked (95 %)", "strength")
    lines = markdown_table(columns, rules, _MARKDOWN_RULES) if rules else ["No rule was baked."]
    lines += ["", f"Not kept: {plain(shown.not_kept)}"] if shown.not_kept else []
    accuracies = [[name, measured_text(accuracy), f"{tokens:.0f}"] for name, accuracy, tokens in _answering(shown)]
    lines += ["", *markdown_table(("answered by", "accuracy (95 %)", "tokens"), accuracies, len(accuracies)), ""]
    knows = shown.temperature
    lines.append(
        f"Own temperature: {measured_text(knows.model)} of {len(knows.edges) - 1} ranges right, best possible "
        f"{measured_text(knows.best_possible)}, chance {knows.chance:.0%}."
    )
    return "\n".join([*lines, "", "Pairs, votes and episodes: `forge report --html report.html`"])


def _answering(shown: CharacterShown) -> list[tuple[str, Accuracy, float]]:
    council, ooda = shown.council, shown.ooda
    return [
        ("one answer", council.single, council.tokens.single),
        ("one voice, many samples", council.self_consistency, council.tokens.self_consistency),
        ("council", council.council, council.tokens.council),
        ("direct, for the controller", ooda.direct, ooda.direct_tokens),
        ("controller", ooda.accuracy, ooda.tokens),
    ]


def _strength(rule: Rule) -> str:
    return "no effect of the prompt" if rule.strength is None else f"{rule.strength:+.2f}"


def _kept(not_kept: str) -> str:
    return f'<p class="note"><b>Not kept:</b> {visible(not_kept, spaces="none")}</p>' if not_kept else ""


def _rules(rules: Sequence[Rule]) -> str:
    if not rules:
        return note("No rule was baked.")
    rows = [
        [
            f'<b>{visible(rule.name)}</b><span class="prose prompt">{visible(rule.prompt)}</span>',
            tracks([("before", rule.base), ("middle", rule.prompted), ("after", rule.baked)], _HALF),
            measured(rule.base),
            measured(rule.prompted),
            measured(rule.baked),
            f"{number(rule.kl_before, '{:.4f}')} → {number(rule.kl_after, '{:.4f}')}"
            f"<small>strength {visible(_strength(rule))}</small>",
        ]
        for rule in rules
    ]
    columns = ("rule", "0 to 100 % of pairs", "base", "prompted", "baked", "nats per token to the prompted model")
    legend = "".join(
        f'<span class="{kind}"><span class="key"></span></span>{name}'
        for kind, name in (("before", "base"), ("middle", "rule in the prompt"), ("after", "rule baked, no prompt"))
    )
    return table(columns, rows) + note(f"{legend}; the dashed line is chance. A shift of likelihoods, and no more.")


def _pairs(pairs: Sequence[Pair]) -> str:
    cards = [
        f'<article><p class="top"><b>{visible(pair.rule)}</b></p><div class="prose">{visible(pair.situation)}</div>'
        f'<div class="prose better">{visible(pair.better)}</div><div class="prose worse">{visible(pair.worse)}</div>'
        f'<div class="label">Margin of the better one, base → baked, in nats per byte</div>'
        f"<div>{_margin(pair.base_margin)} → {_margin(pair.baked_margin)}</div></article>"
        for pair in pairs
    ]
    return each(cards, "No pair is shown.", lambda inner: f'<div class="cards">{inner}</div>')


def _margin(margin: float) -> str:
    sign = "right" if margin > 0 else "wrong" if margin < 0 else "same"
    return f'<span class="{sign}">{number(margin, _MARGIN)}</span>'


def _compared(rows: Sequence[tuple[str, str, Accuracy, float]]) -> str:
    body = [
        [f"<b>{name}</b>", tracks([(kind, accuracy)]), measured(accuracy), number(tokens, "{:.0f}")]
        for kind, name, accuracy, tokens in rows
    ]
    return table(("answered by", "0 to 100 %", "accuracy", "tokens a question"), body)


def _council(council: Council) -> str:
    tokens = council.tokens
    compared = _compared(
        [
            ("before", "one answer", council.single, tokens.single),
            ("middle", "one voice, as many tokens", council.self_consistency, tokens.self_consistency),
            ("after", "the council", council.council, tokens.council),
        ]
    )
    kappa = "not defined" if council.agreement is None else number(council.agreement, "{:+.3f}")
    voices = [
        [f"<b>{visible(x.name)}</b>", f'<span class="prose">{visible(x.prompt)}</span>', number(x.accuracy, PERCENT)]
        for x in council.archetypes
    ]
    voices_table = table(("archetype", "speaks after", "alone"), voices) if voices else note("There is no archetype.")
    ballots = each(
        [_ballot(ballot) for ballot in council.votes],
        "No vote is shown.",
        lambda inner: f'<h5>Votes</h5><div class="cards">{inner}</div>',
    )
    return compared + note(f"Agreement of the archetypes (Fleiss' kappa): {kappa}") + voices_table + ballots


def _ballot(ballot: Ballot) -> str:
    votes = [[visible(vote.archetype), text(vote.answer)] for vote in ballot.votes]
    return (
        f'<article><p class="top">{badge(ballot.right)}</p>{text(ballot.question)}'
        f"{table(('archetype', 'votes for'), votes) if votes else note('Nobody voted.')}"
        f'<div class="label">Decided, and the right answer</div>'
        f'<div class="text">{visible(ballot.decided)} / {visible(ballot.answer)}</div></article>'
    )


def _ooda(ooda: Ooda) -> str:
    compared = _compared(
        [
            ("before", "direct answers", ooda.direct, ooda.direct_tokens),
            ("after", "the controller", ooda.accuracy, ooda.tokens),
        ]
    )
    cards = [
        f'<article><p class="top">{badge(episode.right)}</p>{text(episode.question)}<ol class="steps">'
        + "".join(f"<li><b>{visible(step.stage)}</b>{text(step.text)}</li>" for step in episode.steps)
        + f'</ol><div class="label">Answer, and the right one</div>'
        f'<div class="text">{visible(episode.answer)} / {visible(episode.expected)}</div></article>'
        for episode in ooda.episodes
    ]
    return compared + each(cards, "No episode is shown.", lambda x: f'<h5>Episodes</h5><div class="cards">{x}</div>')


def _temperature(shown: Temperature) -> str:
    ranges = [f"{low:.2f} to {high:.2f}" for low, high in zip(shown.edges, shown.edges[1:], strict=False)]
    shares = [[count / max(1, sum(row)) for count in row] for row in shown.confusion]
    strongest = max(max(row) for row in shares) or 1.0
    cells = [
        (name, [(share / strongest, str(count)) for share, count in zip(of, counts, strict=True)])
        for name, of, counts in zip(ranges, shares, shown.confusion, strict=True)
    ]
    rows: list[tuple[str, str, Measured]] = [
        ("after", "the model", shown.model),
        ("before", "best possible", shown.best_possible),
    ]
    compared = [[f"<b>{name}</b>", tracks([(kind, m)], shown.chance), measured(m)] for kind, name, m in rows]
    said = (
        f"Chance, the dashed line: {number(shown.chance, PERCENT)}. Right or one range beside: "
        f"{number(shown.within_one, PERCENT)}. The best possible is what the likelihoods of the sample itself tell. "
        "The map is coloured by shares of its rows."
    )
    right = table(("predicted by", "0 to 100 %", "right"), compared) + note(said)
    left = heat_map("drawn at ↓ taken for →", ranges, cells)
    return f'<div class="beside"><div>{left}</div><div>{right}</div></div>'


_CSS = resources.files("forge_assets.exhibits").joinpath("character.css").read_text()
EXHIBIT = Exhibit("Character", CharacterShown, html, markdown, _CSS)
