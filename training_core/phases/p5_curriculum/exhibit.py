"""The exhibits of phase 5.

practice    what a model could do before and after it practised, on what, how, and what it forgot
character   rules baked into the weights, a council of archetypes, a controller, and self-knowledge

Accuracies are shares of questions answered exactly. Preferences are shares of held-out scenario pairs whose better
continuation is the likelier one; a margin is how much likelier, in nats per byte.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from training_core.exhibit import Count, Document, Level, MeasuredShare, MeasuredValue, NonNegative, Share, ShownCall

NUM_HINTS = 4  # no hint, a third of the solution, two thirds, all of it

# --- practice


class LevelResult(Document):
    """One level: its kinds of question, and the accuracy on `asked` test questions before and after."""

    level: Level
    families: list[str]
    before: MeasuredShare
    after: MeasuredShare
    asked: Count


class ShownQuestion(Document):
    """A question that was practised on; `check` says how its answer is known."""

    level: Level
    family: str
    prompt: str
    answer: str
    solution: str
    check: str
    source: str


class ShownAttempt(Document):
    """An attempt: `given` is the text that the hint showed, `written` what followed, tool output included."""

    level: Level
    prompt: str
    hint: Annotated[int, Field(ge=0, lt=NUM_HINTS)]
    given: str
    written: str
    calls: list[ShownCall]
    answer: str
    expected: str
    right: bool


class RoundLevel(Document):
    """What happened at one level in one round."""

    level: Level
    attempts: Count
    right_alone: Count
    right_with_hint: Count
    shown: Count
    retired: Count

    @model_validator(mode="after")
    def _parts(self) -> Self:
        parts = self.right_alone + self.right_with_hint + self.shown
        if parts > self.attempts:
            raise ValueError(f"right alone, right with a hint and shown are {parts} of {self.attempts} attempts")
        return self


class ShownRound(Document):
    """One round of practice."""

    round: Count
    levels: list[RoundLevel]


class StageAccuracy(Document):
    """The accuracy at every level at one time."""

    name: str
    accuracy: list[Share]


class RehearsalArm(StageAccuracy):
    """One way to keep what was learned; forgetting is accuracy lost on earlier levels, `tokens` what keeping cost."""

    forgetting: MeasuredValue
    tokens: Count


class Forgetting(Document):
    """What learning the next levels does to the earlier ones. Accuracies are those of `levels`."""

    levels: list[Level]
    stages: list[StageAccuracy]
    arms: list[RehearsalArm]
    chosen: str

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        for row in (*self.stages, *self.arms):
            if len(row.accuracy) != len(self.levels):
                raise ValueError(f"{row.name!r} has {len(row.accuracy)} accuracies for {len(self.levels)} levels")
        return self


class QuestionSpend(Document):
    """Where the questions come from and what was paid for them."""

    usd: NonNegative
    frontier_questions: Count
    generator_questions: Count
    note: str


class PracticeExhibit(Document):
    """The exhibit `practice`. An edge is the hardest level that is answered with the accuracy `target`; 0 is none."""

    target: Share
    edge_before: Annotated[int, Field(ge=0, le=10)]
    edge_after: Annotated[int, Field(ge=0, le=10)]
    levels: list[LevelResult]
    questions: list[ShownQuestion]
    attempts: list[ShownAttempt]
    rounds: list[ShownRound]
    forgetting: Forgetting
    spend: QuestionSpend


# --- character


class ShownRule(Document):
    """A rule, what baking it did to the likelihoods, and preferences without it, with it in the prompt, and baked."""

    name: str
    prompt: str
    kl_before: float
    kl_after: float
    strength: float | None
    base: MeasuredShare
    prompted: MeasuredShare
    baked: MeasuredShare


class ShownPair(Document):
    """One held-out scenario pair."""

    rule: str
    situation: str
    better: str
    worse: str
    base_margin: float
    baked_margin: float


class ShownArchetype(Document):
    """A voice of the council."""

    name: str
    prompt: str
    accuracy: Share


class ShownVote(Document):
    """What one archetype answered."""

    archetype: str
    answer: str


class ShownBallot(Document):
    """One question to the council."""

    question: str
    answer: str
    votes: list[ShownVote]
    decided: str
    right: bool


class CouncilTokens(Document):
    """Tokens that a question took each of the ways."""

    single: NonNegative
    self_consistency: NonNegative
    council: NonNegative


class ShownCouncil(Document):
    """Majority votes of archetypes, against one answer and against self-consistency with as many tokens."""

    archetypes: list[ShownArchetype]
    agreement: float | None
    single: MeasuredShare
    self_consistency: MeasuredShare
    council: MeasuredShare
    tokens: CouncilTokens
    votes: list[ShownBallot]


class ShownStep(Document):
    """One step of an episode."""

    stage: str
    text: str


class ShownEpisode(Document):
    """How one question was dealt with."""

    question: str
    expected: str
    steps: list[ShownStep]
    answer: str
    right: bool


class ShownController(Document):
    """The controller that observes, orients, decides and acts, against answering at once."""

    accuracy: MeasuredShare
    direct: MeasuredShare
    tokens: NonNegative
    direct_tokens: NonNegative
    episodes: list[ShownEpisode]


class ShownTemperature(Document):
    """How well the model tells at which temperature its own sample was drawn: true ranges by predicted ones."""

    edges: list[float] = Field(min_length=2)
    confusion: list[list[Count]]
    model: MeasuredShare
    best_possible: MeasuredShare
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


class CharacterExhibit(Document):
    """The exhibit `character`. `not_kept` says why the baked rules were not kept, empty where they were."""

    rules: list[ShownRule]
    not_kept: str
    pairs: list[ShownPair]
    council: ShownCouncil
    ooda: ShownController
    temperature: ShownTemperature
