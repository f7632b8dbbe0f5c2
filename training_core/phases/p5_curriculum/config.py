"""Configurations of phase 5."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.distill.prompt_baking import BakingConfig
from training_core.phases.p5_curriculum.policy_gradient import PolicyGradientConfig
from training_core.tasks.questions.assessment import AssessmentConfig
from training_core.training.loop import TrainingConfig


class PracticeConfig(BaseModel):
    """Rounds and attempts of the practice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(3, ge=1, description="Rounds of attempts and expert iteration")
    policy_rounds: int = Field(0, ge=0, description="Rounds of group-relative policy gradient after them")
    focus_levels: int = Field(3, ge=1, le=10, description="Levels beyond the edge that are practised at once")
    questions_per_round: int = Field(120, ge=1, description="Questions that a round takes up")
    passes: int = Field(8, ge=4, description="Attempts at each of them or its variants, in a round")
    group_size: int = Field(8, ge=2, description="Attempts at one question in a round of policy gradient")
    attempt_temperature: float = Field(0.7, gt=0, le=2, description="Temperature of attempts in practice")
    max_tokens: int = Field(24, ge=2, description="Most tokens of a completion, tool output included")


class TextConfig(BaseModel):
    """Corpus text beside the examples, without which a small model forgets it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(4, ge=1, description="Corpus rows beside a batch of examples")
    weight: float = Field(1.0, ge=0, description="Weight of the corpus rows")
    teacher: bool = Field(False, description="On the corpus rows learn the parent's distribution, not the next token")


class ConsolidationConfig(BaseModel):
    """Learning the next level with dreams, replay or neither."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(20, ge=1, description="Training steps of each arm of the consolidation")
    lr_factor: float = Field(0.3, gt=0, le=1, description="Learning rates there, over those of practice")
    dream_temperature: float = Field(1.2, gt=0, le=3, description="Temperature of dreams")
    num_dreams: int = Field(128, ge=1, description="Dreams, and as many memories for replay")
    memory_tokens: int = Field(96, ge=1, description="Tokens that are rehearsed beside a batch")
    memory_weight: float = Field(1.0, gt=0, description="Weight of what is rehearsed")


class CurriculumConfig(Config):
    """Practice, and the consolidation after it. `training.steps` are those of one round, `training.batch_size` counts
    examples, and `training.seq_len` is the length of the text rows."""

    assessment: AssessmentConfig = Field(AssessmentConfig(), description="Finding the edge")
    practice: PracticeConfig = Field(PracticeConfig(), description="Rounds and attempts")
    text: TextConfig = Field(TextConfig(), description="Corpus text beside the examples")
    policy: PolicyGradientConfig = Field(PolicyGradientConfig(), description="Group-relative policy gradient")
    consolidation: ConsolidationConfig = Field(ConsolidationConfig(), description="Dreams, replay or neither")
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, batches and optimizer")
    measured_questions: int = Field(64, ge=1, description="Questions of each level for comparing models")


class RulesConfig(BaseModel):
    """Baking of the four rules, and the scenario pairs on which preferences are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    situations_per_rule: int = Field(48, ge=1, description="Training situations that the prompted model continues")
    held_out_situations: int = Field(16, ge=1, description="Held-out situations a rule, for the baking's strength")
    max_tokens: int = Field(12, ge=1, description="Most tokens of a continuation")
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

    samples: int = Field(320, ge=10, description="Own samples from which the head learns")
    held_out: int = Field(256, ge=10, description="Own samples on which it is measured")
    tokens: int = Field(32, ge=1, description="Tokens of a sample")
    steps: int = Field(300, ge=1, description="Steps of training the head")
    hidden: int = Field(32, ge=1, description="Hidden width of the head")
    lr: float = Field(0.01, gt=0, description="Learning rate of the head")
    batch_size: int = Field(64, ge=1, description="Samples in a step of training the head")


class CharacterConfig(Config):
    """Rules, decisions, and the model of one's own temperature. `training.steps` is that of one rule's baking,
    `training.batch_size` its trajectories, `training.seq_len` its rows of text.

    Learning rates are low beside those of other phases: what is baked is a small shift, and the rest has to stay.
    """

    rules: RulesConfig = Field(RulesConfig(), description="Baking of the four rules")
    decisions: DecisionConfig = Field(DecisionConfig(), description="The council and the OODA loop")
    self_model: SelfModelConfig = Field(SelfModelConfig(), description="The model of one's own temperature")
    training: TrainingConfig = Field(
        TrainingConfig(steps=16, seq_len=64, muon_lr=0.0005, adamw_lr=0.0003, grokfast_lambda=0.0),
        description="Steps, batches and optimizer of baking one rule",
    )
    mix: MixConfig = Field(MixConfig(), description="Shares of the rows that must stay as before")

    def baking(self) -> BakingConfig:
        """The configuration of one rule's baking."""
        return BakingConfig(
            **self.training.model_dump(),
            max_tokens=self.rules.max_tokens,
            num_trajectories=self.rules.situations_per_rule,
            text_weight=self.rules.text_weight,
        )
