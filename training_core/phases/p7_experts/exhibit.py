"""The exhibit `experts`: experts that the model's own profile asked for, how questions reach them, and the front of
compositions that the search found.

Accuracies are expected ones: the probability that a drawn attempt writes the worked answer. An expert is one multiplier
for each singular value of the matrices of the MLPs.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training_core.exhibit import Count, Document, MeasuredShare, MeasuredValue, NonNegative, Share

AnswerKind = Literal["none", "single", "router", "oracle", "searched", "rival"]


class ShownFamily(Document):
    """What the model can do in one family before it has experts."""

    family: str
    expert: str
    questions: Count
    expected: MeasuredValue
    exact: Share
    nats: float


class NumExpertsCandidate(Document):
    """A number of experts, and what the criterion gives it, with its standard error."""

    experts: Annotated[int, Field(ge=1)]
    gain: float
    error: NonNegative


class ShownDiscovery(Document):
    """How the number of experts was decided. `stability` is the share of resamples with the same number."""

    criterion: str
    chosen: Annotated[int, Field(ge=1)]
    stability: Share
    resamples: Count
    note: str
    profile: list[ShownFamily]
    similarity: list[list[float]]
    curve: list[NumExpertsCandidate]

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.profile)
        if [len(row) for row in self.similarity] != [size] * size:
            raise ValueError(f"similarity must be {size} x {size}, a row and a column for each family")
        return self


class LearnedGain(Document):
    """What one way of learning gained over the model as it is, on validation questions of the expert's families."""

    method: str
    gain: MeasuredValue
    bytes: Count
    kept: bool


class ShownSpectrum(Document):
    """Multipliers of the singular values of one matrix, the largest singular value first."""

    matrix: str
    multipliers: list[float]


class ShownExpert(Document):
    """One expert."""

    name: str
    families: list[str]
    says: str
    parameters: Count
    bytes: Count
    learned: list[LearnedGain]
    rewards: list[float]
    spectra: list[ShownSpectrum]


class ExpertHeatMap(Document):
    """Expected accuracy by family (columns) with each expert alone (rows), on test questions."""

    families: list[str]
    rows: list[str]
    cells: list[list[Share]]


class ShownRouter(Document):
    """One way to choose: how often it names the expert of a question's family; `entropy` of its choices in bits."""

    name: str
    accuracy: MeasuredShare
    entropy: NonNegative
    chance: Share
    note: str


class ShownRouting(Document):
    """The routers, and what the one in use chose (columns) for questions of each expert (rows)."""

    routers: list[ShownRouter]
    labels: list[str]
    confusion: list[list[Count]]


class AnsweringWay(Document):
    """One way to answer test questions: expected accuracy, families weighted alike, and what it has over the model
    without experts."""

    name: str
    kind: AnswerKind
    accuracy: MeasuredValue
    over_none: MeasuredValue


class PassCost(Document):
    """Seconds a question of one pass or both, and the ratio to one pass of the model without experts."""

    name: str
    milliseconds: NonNegative
    ratio: NonNegative


class FrontPoint(Document):
    """A composition that no other one beats in everything, measured on validation questions and text."""

    number: Count
    chosen: bool
    accuracy: Share
    latency_ms: NonNegative
    latency_ratio: NonNegative
    bytes: Count
    bits_per_byte: NonNegative
    says: str
    composition: dict[str, Any]


class HypervolumeCourse(Document):
    """Hypervolume after each generation of one seed, of the search and of as many random compositions."""

    seed: int
    evaluations: list[Count]
    search: list[Share]
    random: list[Share]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if not len(self.evaluations) == len(self.search) == len(self.random):
            raise ValueError("evaluations, search and random must be as many: one for each generation")
        return self


class ShownSearch(Document):
    """The search: its rule for the knee, its front, and how it climbed."""

    rule: str
    evaluations: Count
    measured: Count
    raced_out: Count
    too_slow: Count
    front: list[FrontPoint]
    climbs: list[HypervolumeCourse]


class ExpertsExhibit(Document):
    """The whole exhibit. `not_kept` says why the model answers without experts, empty where it answers with them."""

    discovery: ShownDiscovery
    experts: list[ShownExpert]
    heat: ExpertHeatMap
    routing: ShownRouting
    answering: list[AnsweringWay]
    costs: list[PassCost]
    search: ShownSearch
    not_kept: str
