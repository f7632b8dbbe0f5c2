"""The exhibit `baked`: prompts of two cycles baked into the weights, in the order in which they took turns.

Scores and accuracies are shares. The strength of a baked prompt is 0 where it has no effect and 1 where the model
without the prompt does as it did with it; the nats per token are the KL divergence from the prompted model.
"""

from typing import Annotated, Literal

from pydantic import Field

from training_core.exhibit import Count, Document, MeasuredShare, MeasuredValue, Share, ShownCall

CycleName = Literal["tools", "persona"]


class ShownIteration(Document):
    """One iteration of a cycle. `why` says why it was not kept, `strength` how strongly its prompt was baked."""

    number: Count
    cycle: CycleName
    prompt: str
    score: MeasuredValue
    kept: bool
    why: str
    decision: Literal["continue", "switch", "stop"]
    decision_why: str
    strength: float | None
    target: float


class ShownPrompt(Document):
    """A prompt that was kept. `strength` is what the stored model has of it, None where the prompt had no effect."""

    name: str
    cycle: CycleName
    text: str
    kl_before: float
    kl_after: float
    strength: MeasuredValue | None
    target: float
    scale: float
    why: str


class StackedStrength(Document):
    """The same prompt half-baked `times` times over; `expected` is 1 - (1 - s)^times."""

    times: Annotated[int, Field(ge=1)]
    expected: float
    measured: MeasuredValue


class ShownRepair(Document):
    """An attempt at a micro-repository: `text` is what was written, the tools' replies included."""

    issue: str
    source: str
    text: str
    calls: list[ShownCall]
    status: str
    resolved: bool


class IssueKind(Document):
    """Issues of one kind."""

    kind: str
    base: MeasuredShare
    baked: MeasuredShare


class ToolResults(Document):
    """Issues resolved by the parent, with the tool prompt in front, and by the stored model without it."""

    base: MeasuredShare
    prompted: MeasuredShare
    baked: MeasuredShare
    chance: Share
    by_kind: list[IssueKind]
    attempts: list[ShownRepair]


class ProposedPrompt(Document):
    """A prompt that the model proposed to itself, and the score with it in front."""

    iteration: Count
    text: str
    score: MeasuredValue
    chosen: bool


class StyleStatistic(Document):
    """One statistic of style of four sets of texts."""

    statistic: str
    base: float
    prompted: float
    half_baked: float
    baked: float


class TurnPresence(Document):
    """How much of the prompt is present at a turn of a conversation: shown once at its beginning, or baked."""

    turn: Annotated[int, Field(ge=1)]
    prompted: MeasuredValue
    baked: MeasuredValue


class SideBySide(Document):
    """What the four models wrote after the same beginning; only the prompted one was shown the prompt."""

    prompt: str
    given: str
    base: str
    prompted: str
    half_baked: str
    baked: str


class ColumnNames(Document):
    """What stands above the two baked columns: with the strength measured."""

    half_baked: str
    baked: str


class CycleBaselines(Document):
    """The score of the parent by the measure of each cycle; None where the cycle never began."""

    tools: MeasuredValue | None = None
    persona: MeasuredValue | None = None


class BakedExhibit(Document):
    """The whole exhibit. Iterations are counted from 0. `not_kept` says why no prompt was kept, empty where one was."""

    timeline: list[ShownIteration]
    baselines: CycleBaselines
    prompts: list[ShownPrompt]
    stacking: list[StackedStrength]
    stacking_note: str
    tools: ToolResults
    proposals: list[ProposedPrompt]
    style: list[StyleStatistic]
    turns: list[TurnPresence]
    generations: list[SideBySide]
    columns: ColumnNames
    not_kept: str
