"""The schema of the exhibit `baked`: prompts of two cycles baked into the weights, in order of iterations.

Scores and accuracies are shares. A baked prompt has strength 0 if it has no effect, and 1 if the model without the
prompt behaves like the prompted one; nats per token are the KL divergence from the prompted model.
"""

from typing import Annotated, Literal

from pydantic import Field

from training_core.exhibit import Count, Document, MeasuredShare, MeasuredValue, Share, ShownCall

CycleName = Literal["tools", "persona"]


class ShownIteration(Document):
    """One iteration of a cycle. `why` says why it was rolled back, `strength` how strongly its prompt was baked."""

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
    """A kept prompt. `strength` is that in the stored model, or None if the prompt had no effect."""

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
    """The strength of the same prompt after half-baking it `times` times; `expected` is 1 - (1 - s)^times."""

    times: Annotated[int, Field(ge=1)]
    expected: float
    measured: MeasuredValue


class ShownRepair(Document):
    """An attempt at a micro-repository: `text` is the model's output, including tool replies."""

    issue: str
    source: str
    text: str
    calls: list[ShownCall]
    status: str
    resolved: bool


class IssueKind(Document):
    """Resolve rates on issues of one kind."""

    kind: str
    base: MeasuredShare
    baked: MeasuredShare


class ToolResults(Document):
    """Resolve rates of the parent, of the model with the tool prompt, and of the stored model without it."""

    base: MeasuredShare
    prompted: MeasuredShare
    baked: MeasuredShare
    chance: Share
    by_kind: list[IssueKind]
    attempts: list[ShownRepair]


class ProposedPrompt(Document):
    """A prompt proposed by the model, and the score with it in front."""

    iteration: Count
    text: str
    score: MeasuredValue
    chosen: bool


class StyleStatistic(Document):
    """One style statistic of the texts of four models."""

    statistic: str
    base: float
    prompted: float
    half_baked: float
    baked: float


class TurnPresence(Document):
    """The presence of a prompt at a turn of a conversation: given once at the start, or baked in."""

    turn: Annotated[int, Field(ge=1)]
    prompted: MeasuredValue
    baked: MeasuredValue


class SideBySide(Document):
    """The continuations of the same beginning by four models, of which only one had the prompt."""

    prompt: str
    given: str
    base: str
    prompted: str
    half_baked: str
    baked: str


class ColumnNames(Document):
    """Headings of the two baked columns, with the measured strength."""

    half_baked: str
    baked: str


class CycleBaselines(Document):
    """The parent's score on each cycle's metric, or None if the cycle never ran."""

    tools: MeasuredValue | None = None
    persona: MeasuredValue | None = None


class BakedExhibit(Document):
    """The complete exhibit. Iterations count from 0. `not_kept` says why no prompt was kept, or is empty."""

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
