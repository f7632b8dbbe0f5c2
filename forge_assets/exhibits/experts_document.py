"""What the exhibit `experts` is given: experts that were found, how questions reach them, and the search's front."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from forge_assets.exhibits.exhibit import Document
from forge_assets.exhibits.measured import Accuracy, Count, Measured, Share


class FamilyProfile(Document):
    """What the model can do in one family before it has experts."""

    family: str
    expert: str
    questions: Count
    expected: Measured
    exact: Share
    nats: float


class Candidate(Document):
    """A number of experts, and what the criterion gives it, with its standard error."""

    experts: Annotated[int, Field(ge=1)]
    gain: float
    error: Annotated[float, Field(ge=0)]


class Discovery(Document):
    """How the number of experts was decided. `stability` is the share of resamples with the same number."""

    criterion: str
    chosen: Annotated[int, Field(ge=1)]
    stability: Share
    resamples: Count
    note: str
    profile: list[FamilyProfile]
    similarity: list[list[float]]
    curve: list[Candidate]

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.profile)
        if [len(row) for row in self.similarity] != [size] * size:
            raise ValueError(f"similarity must be {size} x {size}, a row and a column for each family")
        return self


class Learned(Document):
    """What one way of learning gained over the model as it is, on validation questions of the expert's families."""

    method: str
    gain: Measured
    bytes: Count
    kept: bool


class Spectrum(Document):
    """Multipliers of the singular values of one matrix, the largest singular value first."""

    matrix: str
    multipliers: list[float]


class ExpertShown(Document):
    """One expert."""

    name: str
    families: list[str]
    says: str
    parameters: Count
    bytes: Count
    learned: list[Learned]
    rewards: list[float]
    spectra: list[Spectrum]


class Heat(Document):
    """Expected accuracy by family (columns) with each expert alone (rows), on test questions."""

    families: list[str]
    rows: list[str]
    cells: list[list[Share]]


class Router(Document):
    """One way to choose: how often it names the expert of a question's family; `entropy` of its choices in bits."""

    name: str
    accuracy: Accuracy
    entropy: Annotated[float, Field(ge=0)]
    chance: Share
    note: str


class Routing(Document):
    """The routers, and what the one in use chose (columns) for questions of each expert (rows)."""

    routers: list[Router]
    labels: list[str]
    confusion: list[list[Count]]


class Answering(Document):
    """One way to answer test questions: expected accuracy, families weighted alike, and what it has over the model
    without experts."""

    name: str
    kind: Literal["none", "single", "router", "oracle", "searched", "rival"]
    accuracy: Measured
    over_none: Measured


class Cost(Document):
    """Seconds a question of one pass or both, and the ratio to one pass of the model without experts."""

    name: str
    milliseconds: Annotated[float, Field(ge=0)]
    ratio: Annotated[float, Field(ge=0)]


class FrontPoint(Document):
    """A composition that no other one beats in everything, measured on validation questions and text."""

    number: Count
    chosen: bool
    accuracy: Share
    latency_ms: Annotated[float, Field(ge=0)]
    latency_ratio: Annotated[float, Field(ge=0)]
    bytes: Count
    bits_per_byte: Annotated[float, Field(ge=0)]
    says: str
    composition: dict[str, Any]


class Climb(Document):
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


class Search(Document):
    """The search: its rule for the knee, its front, and how it climbed."""

    rule: str
    evaluations: Count
    measured: Count
    raced_out: Count
    too_slow: Count
    front: list[FrontPoint]
    climbs: list[Climb]


class ExpertsShown(Document):
    """The whole exhibit. `not_kept` says why the model answers without experts, empty where it answers with them."""

    discovery: Discovery
    experts: list[ExpertShown]
    heat: Heat
    routing: Routing
    answering: list[Answering]
    costs: list[Cost]
    search: Search
    not_kept: str
