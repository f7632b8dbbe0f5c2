"""The schema of the exhibit `thoughts`: whether a model's thoughts help, where it thinks, and examples of thoughts.

Gains are in bits: the log2 of the factor by which thoughts raise the probability of the text that follows.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from training_core.exhibit import Document, IntervalEnds, Share

Group = Literal["best", "worst", "random"]


class ThoughtExample(Document):
    """One position: the thoughts sampled there and the probabilities of the true next tokens."""

    group: Group
    context: str
    thoughts: list[str] = Field(min_length=1)
    chosen: int = Field(ge=0, description="Index of the thought with the highest coherence.")
    next_tokens: list[str] = Field(min_length=1)
    before: list[Share] = Field(description="Probability of each next token without a thought.")
    after: list[Share] = Field(description="The same with all thoughts mixed in.")
    gain_bits: float

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if self.chosen >= len(self.thoughts):
            raise ValueError(f"chosen must name one of {len(self.thoughts)} thoughts, counted from 0")
        if not len(self.next_tokens) == len(self.before) == len(self.after):
            lengths = (len(self.next_tokens), len(self.before), len(self.after))
            raise ValueError(f"next_tokens, before and after must be equally long, their lengths are {lengths}")
        return self


class HeatMapToken(Document):
    """One token of a text, its difficulty and surprise, and whether the model thinks after it."""

    text: str
    difficulty: Share
    surprise: Share
    thinks: bool


class ThoughtArm(IntervalEnds):
    """The gain of trained thoughts or of a control on the hardest decile of positions, in bits per token."""

    name: str
    description: str
    gain: float


class ThoughtGating(IntervalEnds):
    """The gain and the cost of one rule for choosing the positions at which the model thinks."""

    name: str
    share: Share
    gain_bits_per_token: float
    gflop_per_token: float = Field(ge=0)
    bits_per_gflop: float


class ThoughtsExhibit(Document):
    """The complete exhibit. `rule` says how the examples were chosen, `verdict` whether thoughts help."""

    rule: str
    enabled: bool
    verdict: str
    examples: list[ThoughtExample]
    heat_map: list[HeatMapToken]
    arms: list[ThoughtArm]
    gating: list[ThoughtGating]
