"""The schemas of the exhibits of phase 5.

practice    accuracy before and after practice, the questions and attempts of the rounds, and forgetting
character   rules baked into the weights, a council of archetypes, an OODA loop, and a self-model

Accuracies are shares of questions answered exactly. Preferences are shares of held-out scenario pairs whose better
continuation is more likely; a margin is the difference of their log-likelihoods, in nats per byte.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from training_core.exhibit import Count, Document, Level, MeasuredShare, MeasuredValue, NonNegative, Share, ShownCall

NUM_HINTS = 4  # no hint, a third of the solution, two thirds, all of it

# --- practice


class LevelResult(Document):
    """One level: its task families, and the accuracy on `asked` test questions before and after practice."""

    level: Level
    families: list[str]
    before: MeasuredShare
    after: MeasuredShare
    asked: Count


class ShownQuestion(Document):
    """A training question; `check` says how its answer was verified."""

    level: Level
    family: str
    prompt: str
    answer: str
    solution: str
    check: str
    source: str


class ShownAttempt(Document):
    """An attempt: `given` is the text of the hint, `written` the text that followed, including tool output."""

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
    """Counts of attempts at one level in one round."""

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
    """One round of practice, by level."""

    round: Count
    levels: list[RoundLevel]


class StageAccuracy(Document):
    """The accuracy at every level at one stage."""

    name: str
    accuracy: list[Share]


class RehearsalArm(StageAccuracy):
    """One way of rehearsal; `forgetting` is the accuracy lost on earlier levels, `tokens` the cost of rehearsal."""

    forgetting: MeasuredValue
    tokens: Count


class Forgetting(Document):
    """The effect of training on the next levels on earlier ones. Accuracies are in the order of `levels`."""

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
    """The sources of the questions, and their cost."""

    usd: NonNegative
    frontier_questions: Count
    generator_questions: Count
    note: str


class PracticeExhibit(Document):
    """The exhibit `practice`. An edge is the hardest level whose accuracy reaches `target`; 0 means none."""

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
    """A rule, the strength of its baking, and preferences without it, with it as a prompt, and with it baked in."""

    name: str
    prompt: str
    kl_before: float
    kl_after: float
    strength: float | None
    base: MeasuredShare
    prompted: MeasuredShare
    baked: MeasuredShare


class ShownPair(Document):
    """One held-out scenario pair, with its preference margins before and after baking."""

    rule: str
    situation: str
    better: str
    worse: str
    base_margin: float
    baked_margin: float


class ShownArchetype(Document):
    """A voter of the council, with the accuracy of its own answers."""

    name: str
    prompt: str
    accuracy: Share


class ShownVote(Document):
    """The answer of one archetype."""

    archetype: str
    answer: str


class ShownBallot(Document):
    """One question to the council: the votes, and the answer chosen by majority."""

    question: str
    answer: str
    votes: list[ShownVote]
    decided: str
    right: bool


class CouncilTokens(Document):
    """Mean tokens per question for each way of answering."""

    single: NonNegative
    self_consistency: NonNegative
    council: NonNegative


class ShownCouncil(Document):
    """Majority votes of archetypes, compared with a single answer and with self-consistency at equal token budgets."""

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
    """The course of one question through the OODA loop."""

    question: str
    expected: str
    steps: list[ShownStep]
    answer: str
    right: bool


class ShownController(Document):
    """The OODA loop, compared with direct answering."""

    accuracy: MeasuredShare
    direct: MeasuredShare
    tokens: NonNegative
    direct_tokens: NonNegative
    episodes: list[ShownEpisode]


class ShownTemperature(Document):
    """The self-model's prediction of the sampling temperature; `confusion` has true ranges in rows."""

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
    """The exhibit `character`. `not_kept` says why the baked rules were not kept, and is empty if they were."""

    rules: list[ShownRule]
    not_kept: str
    pairs: list[ShownPair]
    council: ShownCouncil
    ooda: ShownController
    temperature: ShownTemperature
