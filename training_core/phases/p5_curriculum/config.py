"""How much of everything phase 5 gives to character. The defaults are those of a model of about 1 M parameters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.distill.prompt_baking import BakingConfig
from training_core.distill.rehearsal_data import StayingConfig
from training_core.training.loop import TrainingConfig


class VirtueConfig(BaseModel):
    """Baking of the four rules, and the scenario pairs on which preferences are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    situations_per_rule: int = Field(48, ge=1, description="Training situations that the prompted model continues")
    held_out_situations: int = Field(16, ge=1, description="Held-out situations a rule, for the baking's strength")
    baking_max_tokens: int = Field(12, ge=1, description="Most tokens of a continuation")
    text_weight: float = Field(1.0, ge=0, description="Weight of staying as before on text and on questions")
    question_share: float = Field(0.5, ge=0, le=1, description="Share of questions among the rows that must stay")
    fillings_per_template: int = Field(6, ge=1, description="Scenario pairs from each held-out template")


class DecisionConfig(BaseModel):
    """The council, and the OODA loop that may convene it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer_tokens: int = Field(20, ge=1, description="Most tokens of an answer, tool calls included")
    answer_temperature: float = Field(0.7, gt=0, description="Temperature at which votes are drawn")
    council_questions: int = Field(40, ge=1, description="Test questions for the council")
    ooda_practice_questions: int = Field(40, ge=1, description="Validation questions from which the loop learns")
    ooda_questions: int = Field(40, ge=1, description="Test questions for the loop")
    ooda_budget_tokens: int = Field(240, ge=1, description="Tokens read and written in one episode, at most")
    ooda_agreeing: int = Field(2, ge=2, description="Equal answers that end an episode")
    ooda_accept: float = Field(0.9, gt=0, le=1, description="Expected success at which a first answer is accepted")
    target: float = Field(0.75, gt=0, lt=1, description="Accuracy at which a level counts as passed")
    questions_per_level: int = Field(32, ge=1, description="Test questions a level, answered by parent and result")


class SelfModelConfig(BaseModel):
    """The model of one's own temperature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    self_samples: int = Field(320, ge=10, description="Own samples from which the head learns")
    self_held_out: int = Field(256, ge=10, description="Own samples on which it is measured")
    self_tokens: int = Field(32, ge=1, description="Tokens of a sample")
    self_steps: int = Field(300, ge=1, description="Steps of training the head")
    self_hidden: int = Field(32, ge=1, description="Hidden width of the head")
    self_lr: float = Field(0.01, gt=0, description="Learning rate of the head")
    self_batch: int = Field(64, ge=1, description="Samples in a step of training the head")


class CharacterConfig(VirtueConfig, DecisionConfig, SelfModelConfig, StayingConfig):
    """Everything. `steps` is that of one rule's baking, `batch_size` its trajectories, `seq_len` its rows of text.

    Learning rates are low beside those of other phases: what is baked is a small shift, and the rest has to stay.
    """

    steps: int = Field(16, ge=1, description="Steps of baking one rule")
    seq_len: int = Field(64, ge=2, description="Tokens in a row that must stay as before")
    muon_lr: float = Field(0.0005, gt=0, description="Peak learning rate of hidden matrices (Muon)")
    adamw_lr: float = Field(0.0003, gt=0, description="Peak learning rate of everything else (AdamW)")
    grokfast_lambda: float = Field(0.0, ge=0, description="Weight of the gradient average; 0 turns the filter off")

    def baking(self) -> BakingConfig:
        """The configuration of one rule's baking."""
        return BakingConfig(
            **{name: getattr(self, name) for name in TrainingConfig.model_fields},
            max_tokens=self.baking_max_tokens,
            num_trajectories=self.situations_per_rule,
            text_weight=self.text_weight,
        )
