"""Configurations of phase 5: practice with consolidation, and character."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.distill.prompt_baking import BakingConfig
from training_core.phases.p5_curriculum.policy_gradient import PolicyGradientConfig
from training_core.tasks.questions.assessment import AssessmentConfig
from training_core.training.loop import TrainingConfig


class PracticeConfig(BaseModel):
    """Number of practice rounds, and the attempts in each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(3, ge=1, description="Rounds of expert iteration")
    policy_rounds: int = Field(0, ge=0, description="Rounds of group-relative policy gradient (GRPO) that follow")
    focus_levels: int = Field(3, ge=1, le=10, description="Levels just beyond the edge that a round practises")
    questions_per_round: int = Field(120, ge=1, description="Training questions per round, over all its levels")
    passes: int = Field(8, ge=4, description="Most attempts per round at a question and its variants")
    group_size: int = Field(8, ge=2, description="Attempts per question in a policy-gradient round")
    attempt_temperature: float = Field(
        0.7, gt=0, le=2, description="Sampling temperature of attempts in expert iteration"
    )
    max_tokens: int = Field(24, ge=2, description="Maximum length of a completion in tokens, including tool output")


class TextConfig(BaseModel):
    """Corpus text that is mixed into each batch, so that a small model does not forget it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(4, ge=1, description="Rows of corpus text per batch of examples")
    weight: float = Field(1.0, ge=0, description="Loss weight of the corpus rows")
    teacher: bool = Field(
        False, description="Distil the parent's distribution on the corpus rows instead of the next token"
    )


class ConsolidationConfig(BaseModel):
    """Training on the next level with dreams, with replay, or with no rehearsal (three arms)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(20, ge=1, description="Training steps of each arm")
    lr_factor: float = Field(0.3, gt=0, le=1, description="Factor on the learning rates of practice")
    dream_temperature: float = Field(1.2, gt=0, le=3, description="Sampling temperature of dreams")
    num_dreams: int = Field(128, ge=1, description="Number of dreams, and of examples for replay")
    memory_tokens: int = Field(96, ge=1, description="Rehearsal tokens per batch")
    memory_weight: float = Field(1.0, gt=0, description="Loss weight of the rehearsal data")


class CurriculumConfig(Config):
    """Practice and the consolidation that follows it.

    `training.steps` is the number of steps per round, `training.batch_size` counts examples, and `training.seq_len` is
    the length of the rows of corpus text.
    """

    assessment: AssessmentConfig = Field(AssessmentConfig(), description="Assessment that locates the model's edge")
    practice: PracticeConfig = Field(PracticeConfig(), description="Practice rounds and attempts")
    text: TextConfig = Field(TextConfig(), description="Corpus text mixed into each batch")
    policy: PolicyGradientConfig = Field(PolicyGradientConfig(), description="Group-relative policy gradient (GRPO)")
    consolidation: ConsolidationConfig = Field(
        ConsolidationConfig(), description="Training on the next level with dreams, replay or no rehearsal"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="Training steps per round, batches and optimizer")
    measured_questions: int = Field(64, ge=1, description="Questions per level for comparing models")


class RulesConfig(BaseModel):
    """Baking of the four rules, and the scenario pairs on which preferences are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    situations_per_rule: int = Field(
        48, ge=1, description="Training situations per rule, continued by the prompted model"
    )
    held_out_situations: int = Field(16, ge=1, description="Held-out situations per rule, for measuring the baking")
    max_tokens: int = Field(12, ge=1, description="Maximum length of a continuation, in tokens")
    text_weight: float = Field(1.0, ge=0, description="Loss weight of the rehearsal data (text and questions)")
    question_share: float = Field(0.5, ge=0, le=1, description="Share of questions in the rehearsal data")
    fillings_per_template: int = Field(6, ge=1, description="Scenario pairs per held-out template")


class DecisionConfig(BaseModel):
    """The council, and the OODA loop, one of whose options is to convene the council."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer_tokens: int = Field(20, ge=1, description="Maximum length of an answer in tokens, including tool calls")
    answer_temperature: float = Field(0.7, gt=0, description="Sampling temperature of votes")
    council_questions: int = Field(40, ge=1, description="Test questions for evaluating the council")
    ooda_practice_questions: int = Field(
        40, ge=1, description="Validation questions from which the OODA loop estimates success rates"
    )
    ooda_questions: int = Field(40, ge=1, description="Test questions for evaluating the OODA loop")
    ooda_budget_tokens: int = Field(240, ge=1, description="Token budget of an episode, read and written")
    ooda_agreeing: int = Field(2, ge=2, description="Number of equal answers that ends an episode")
    ooda_accept: float = Field(
        0.9, gt=0, le=1, description="Expected success rate at which the first answer is accepted without a vote"
    )
    target: float = Field(0.75, gt=0, lt=1, description="Accuracy at which a level counts as passed")
    questions_per_level: int = Field(
        32, ge=1, description="Test questions per level on which the result is compared with its parent"
    )


class SelfModelConfig(BaseModel):
    """The self-model: a head that predicts the temperature at which the model's own samples were drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(320, ge=10, description="Samples from the model on which the head is trained")
    held_out: int = Field(256, ge=10, description="Held-out samples on which the head is evaluated")
    tokens: int = Field(32, ge=1, description="Length of a sample, in tokens")
    steps: int = Field(300, ge=1, description="Training steps of the head")
    hidden: int = Field(32, ge=1, description="Hidden width of the head")
    lr: float = Field(0.01, gt=0, description="Initial learning rate of the head (AdamW, linear decay)")
    batch_size: int = Field(64, ge=1, description="Samples per training step of the head")


class CharacterConfig(Config):
    """Rules, decisions, and the self-model.

    `training.steps` is the number of steps per rule, `training.batch_size` counts trajectories, and `training.seq_len`
    is the length of the rows of rehearsal text. Learning rates are lower than in other phases, because baking is meant
    to shift the model only slightly and leave everything else unchanged.
    """

    rules: RulesConfig = Field(RulesConfig(), description="Baking of the four rules")
    decisions: DecisionConfig = Field(DecisionConfig(), description="The council and the OODA loop")
    self_model: SelfModelConfig = Field(SelfModelConfig(), description="Head that predicts the sampling temperature")
    training: TrainingConfig = Field(
        TrainingConfig(steps=16, seq_len=64, muon_lr=0.0005, adamw_lr=0.0003, grokfast_lambda=0.0),
        description="Training steps, batches and optimizer for baking one rule",
    )
    mix: MixConfig = Field(MixConfig(), description="Data mix of the rehearsal text")

    def baking(self) -> BakingConfig:
        """Return the configuration for baking one rule."""
        return BakingConfig(
            **self.training.model_dump(),
            max_tokens=self.rules.max_tokens,
            num_trajectories=self.rules.situations_per_rule,
            text_weight=self.rules.text_weight,
        )
