"""What an exhibit is: a schema, and how a document that fits it becomes a page's section and a short table."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class ExhibitError(ValueError):
    """An exhibit has no renderer, or its document is not what the renderer reads."""


class Document(BaseModel):
    """The base of every exhibit's schema: no field more or less, no coerced type, no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Ordered(Document):
    """The ends of an interval."""

    low: float
    high: float

    @model_validator(mode="after")
    def _low_to_high(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval must run from low to high, got {self.low} to {self.high}")
        return self


D = TypeVar("D", bound=Document)


@dataclass(frozen=True, slots=True)
class Exhibit(Generic[D]):
    """How documents of the schema `D` are shown.

    `html` gives the section's content without its title, `markdown` at most 30 lines, `css` the rules that `html`
    needs besides the page's own; their selectors start with a class of the exhibit. `measures` says whether the rules
    of `measured.css` hold for it too.
    """

    title: str
    schema: type[D]
    html: Callable[[D], str]
    markdown: Callable[[D], str]
    css: str
    measures: bool = True

    def read(self, document: Any) -> D:
        """The document as its schema, read as JSON as the bundle keeps it.

        Raises:
            ExhibitError: naming the first field that does not fit.
        """
        try:
            return self.schema.model_validate_json(json.dumps(document))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ExhibitError(
                f"the exhibit {self.title!r} breaks its schema {self.schema.__name__} in {error.error_count()} places, "
                f"first at {place}: {first['msg']}, got {first['input']!r:.80}. Change what the phase hands over."
            ) from error
        except (TypeError, ValueError) as error:
            raise ExhibitError(f"the exhibit {self.title!r} is not JSON ({error})") from error
