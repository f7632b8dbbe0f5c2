"""The schema of the exhibit `experts`: the experts found from the model's profile, their routing, and the front of
compositions.

Accuracies are expected accuracies: the probability that a sampled attempt is the worked answer. An expert has one
multiplier for each singular value of the MLP matrices.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training_core.exhibit import Count, Document, MeasuredShare, MeasuredValue, NonNegative, Share

AnswerKind = Literal["none", "single", "router", "oracle", "searched", "rival"]


class ShownFamily(Document):
    """The model's baseline in one family, without experts."""

    family: str
    expert: str
    questions: Count
    expected: MeasuredValue
    exact: Share
    nats: float


class NumExpertsCandidate(Document):
    """A candidate number of experts, and its value of the criterion with the standard error."""

    experts: Annotated[int, Field(ge=1)]
    gain: float
    error: NonNegative


class ShownDiscovery(Document):
    """The decision on the number of experts. `stability` is the share of resamples with the same number."""

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
    """The gain of one training method over the model without experts, on validation questions of the families."""

    method: str
    gain: MeasuredValue
    bytes: Count
    kept: bool


class ShownSpectrum(Document):
    """The multipliers of the singular values of one matrix, in descending order of singular values."""

    matrix: str
    multipliers: list[float]


class ShownExpert(Document):
    """One expert: its families, size, gains by training method, reward curve and multipliers."""

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
    """One router: the accuracy with which it picks the expert of a question's family, and the entropy in bits."""

    name: str
    accuracy: MeasuredShare
    entropy: NonNegative
    chance: Share
    note: str


class ShownRouting(Document):
    """The routers, and the confusion matrix of the one in use: true experts (rows) by choices (columns)."""

    routers: list[ShownRouter]
    labels: list[str]
    confusion: list[list[Count]]


class AnsweringWay(Document):
    """One way to answer test questions: macro-averaged expected accuracy, and gain over the model without experts."""

    name: str
    kind: AnswerKind
    accuracy: MeasuredValue
    over_none: MeasuredValue


class PassCost(Document):
    """Milliseconds per question of one pass or both, and the ratio to one pass of the model without experts."""

    name: str
    milliseconds: NonNegative
    ratio: NonNegative


class FrontPoint(Document):
    """A non-dominated composition, evaluated on validation questions and text."""

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
    """Hypervolume after each generation for one seed: the search, and as many random compositions."""

    seed: int
    evaluations: list[Count]
    search: list[Share]
    random: list[Share]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if not len(self.evaluations) == len(self.search) == len(self.random):
            raise ValueError("evaluations, search and random must have equal lengths: one value for each generation")
        return self


class ShownSearch(Document):
    """The search: its rule for the knee, its front, and its hypervolume by generation."""

    rule: str
    evaluations: Count
    measured: Count
    raced_out: Count
    too_slow: Count
    front: list[FrontPoint]
    climbs: list[HypervolumeCourse]


class ExpertsExhibit(Document):
    """The complete exhibit. `not_kept` says why the model answers without experts, and is empty if it uses them."""

    discovery: ShownDiscovery
    experts: list[ShownExpert]
    heat: ExpertHeatMap
    routing: ShownRouting
    answering: list[AnsweringWay]
    costs: list[PassCost]
    search: ShownSearch
    not_kept: str
