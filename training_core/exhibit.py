"""What exhibits are made of: the documents, besides numbers, in which a phase shows a person what it did.

Each phase declares its exhibit once, as a `Document` in its own `exhibit.py`, builds it there where the phase is
measured, and hands over `Document.as_json()` in `training_core.store.bundle.Product.exhibits`. The report reads the
stored JSON back through the same class. These modules import no torch, so that a page is rendered without it.

Every text in an exhibit counts as untrusted: a model may have written it.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training_core.record import Estimate

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Level = Annotated[int, Field(ge=1, le=10)]


class Document(BaseModel):
    """The base of every exhibit: no field more or less, no coerced type, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, as a bundle stores them; a field with a default that was not given is left out."""
        return self.model_dump(mode="json", exclude_unset=True)


class IntervalEnds(Document):
    """The ends of an interval."""

    low: float
    high: float

    @model_validator(mode="after")
    def _low_to_high(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval must run from low to high, got {self.low} to {self.high}")
        return self


class MeasuredValue(IntervalEnds):
    """A value and its 95 % interval."""

    value: float

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        """The exhibit's form of an estimate."""
        return cls(value=estimate.value, low=estimate.low, high=estimate.high)


class MeasuredShare(MeasuredValue):
    """A share and its 95 % interval."""

    value: Share
    low: Share
    high: Share


class ShownCall(Document):
    """A call of a tool, and what came back."""

    tool: str
    input: str
    output: str
    status: str
