"""What the exhibit `baked` is given: a document of two cycles, the prompts that they baked, and what came of it."""

from typing import Annotated, Literal

from pydantic import Field

from forge_assets.exhibits.calls import ShownCall
from forge_assets.exhibits.exhibit import Document
from forge_assets.exhibits.measured import Accuracy, Count, Measured, Share

Cycle = Literal["tools", "persona"]


class Iteration(Document):
    """One iteration of a cycle. `why` says why it was not kept, `strength` how strongly its prompt was baked."""

    number: Count
    cycle: Cycle
    prompt: str
    score: Measured
    kept: bool
    why: str
    decision: Literal["continue", "switch", "stop"]
    decision_why: str
    strength: float | None
    target: float


class BakedPrompt(Document):
    """A prompt that was kept. `strength` is what the stored model has of it, None where the prompt had no effect."""

    name: str
    cycle: Cycle
    text: str
    kl_before: float
    kl_after: float
    strength: Measured | None
    target: float
    scale: float
    why: str


class Stacked(Document):
    """The same prompt half-baked `times` times over; `expected` is 1 - (1 - s)^times."""

    times: Annotated[int, Field(ge=1)]
    expected: float
    measured: Measured


class RepairShown(Document):
    """An attempt at a micro-repository: `text` is what was written, the tools' replies included."""

    issue: str
    source: str
    text: str
    calls: list[ShownCall]
    status: str
    resolved: bool


class Kind(Document):
    """Issues of one kind."""

    kind: str
    base: Accuracy
    baked: Accuracy


class Tools(Document):
    """Issues resolved by the parent, with the tool prompt in front, and by the stored model without it."""

    base: Accuracy
    prompted: Accuracy
    baked: Accuracy
    chance: Share
    by_kind: list[Kind]
    attempts: list[RepairShown]


class Proposal(Document):
    """A prompt that the model proposed to itself, and the score with it in front."""

    iteration: Count
    text: str
    score: Measured
    chosen: bool


class Statistic(Document):
    """One statistic of style of four sets of texts."""

    statistic: str
    base: float
    prompted: float
    half_baked: float
    baked: float


class Turn(Document):
    """How much of the prompt is present at a turn of a conversation: shown once at its beginning, or baked."""

    turn: Annotated[int, Field(ge=1)]
    prompted: Measured
    baked: Measured


class Generation(Document):
    """What the four models wrote after the same beginning; only the prompted one was shown the prompt."""

    prompt: str
    given: str
    base: str
    prompted: str
    half_baked: str
    baked: str


class Columns(Document):
    """What stands above the two baked columns: with the strength measured."""

    half_baked: str
    baked: str


class Baselines(Document):
    """The score of the parent by the measure of each cycle; None where the cycle never began."""

    tools: Measured | None = None
    persona: Measured | None = None


class BakedShown(Document):
    """The whole exhibit. Iterations are counted from 0. `not_kept` says why no prompt was kept, empty where one was."""

    timeline: list[Iteration]
    baselines: Baselines
    prompts: list[BakedPrompt]
    stacking: list[Stacked]
    stacking_note: str
    tools: Tools
    proposals: list[Proposal]
    style: list[Statistic]
    turns: list[Turn]
    generations: list[Generation]
    columns: Columns
    not_kept: str
