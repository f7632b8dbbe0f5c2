"""Configuration of phase 6."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.distill.divergences import Divergence
from training_core.distill.prompt_baking import BakingConfig
from training_core.phases.p6_baking.alternation import AlternationConfig
from training_core.phases.p6_baking.half_baking import ScheduleKind
from training_core.training.loop import TrainingConfig


class LessonConfig(BaseModel):
    """Tool use is learned first with the tool prompt in front, from what held in the sandbox."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tool_prompt: str = Field("Repair the line. Write <fix>.", min_length=1, description="The prompt of the A-cycle")
    repairs: int = Field(64, ge=1, description="Micro-repositories attempted in an iteration, shown where that fails")
    shown_repairs: int = Field(1500, ge=0, description="Micro-repositories shown besides, with what the tool says")
    repair_lines: int = Field(6, ge=2, description="Most lines of a micro-repository")
    repair_names: int = Field(16, ge=2, le=16, description="Names that arguments of a micro-repository have")
    unprompted_repairs: int = Field(
        12, ge=0, description="Micro-repositories at which the model stays, without the tool prompt, as it was"
    )
    tool_questions: int = Field(0, ge=0, description="Questions with tool calls shown in an iteration")
    steps: int = Field(40, ge=1, description="Steps of learning the tools in an iteration")
    batch_size: int = Field(16, ge=1, description="Examples in a lesson step; half as many rows of text")
    text_tokens: int = Field(64, ge=2, description="Tokens in a row of text beside a lesson")
    muon_lr: float = Field(0.007, gt=0, description="Peak learning rate of hidden matrices in lessons")
    adamw_lr: float = Field(0.005, gt=0, description="Peak learning rate of everything else in lessons")
    text_weight: float = Field(1.0, ge=0, description="Weight of corpus text beside the lessons")
    rehearsed_tokens: int = Field(96, ge=1, description="Tokens of questions in reach rehearsed in a lesson step")
    rehearsal_weight: float = Field(2.0, ge=0, description="Weight of answering questions as before")
    unprompted_tokens: int = Field(32, ge=1, description="Tokens of repairs without the prompt in a lesson step")
    unprompted_weight: float = Field(0.5, ge=0, description="Weight of writing there what was written before")
    repair_tokens: int = Field(48, ge=1, description="Most tokens of an attempt, tool replies included")


class PersonaConfig(BaseModel):
    """Prompts that the model itself proposes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    proposals: int = Field(12, ge=1, description="Prompts sampled from the model in an iteration")
    proposal_tokens: int = Field(10, ge=1, description="Most tokens of a proposed prompt")
    proposal_temperature: float = Field(1.0, gt=0, description="Temperature at which prompts are sampled")
    scored_questions: int = Field(96, ge=2, description="Validation questions on which a prompt is scored")
    given_tokens: int = Field(12, ge=1, description="Tokens of text that style is shown on from")
    persona_tokens: int = Field(16, ge=1, description="Most tokens of a reply that is learned from")


class StrengthConfig(BaseModel):
    """How far a prompt is baked in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: float = Field(0.5, gt=0, le=1, description="Strength at which the schedule begins")
    last: float = Field(0.5, gt=0, le=1, description="Strength at which the schedule ends")
    schedule: ScheduleKind = Field("constant", description="How the strength goes from first to last")
    tolerance: float = Field(0.02, gt=0, lt=0.5, description="Distance from the strength that is accepted")
    divergence: Divergence = Field("forward_kl", description="What baking minimises")
    rank: int = Field(0, ge=0, description="Rank of a low-rank adapter; 0 trains all weights")
    num_trajectories: int = Field(48, ge=1, description="Trajectories that a baking learns from")
    held_out_trajectories: int = Field(40, ge=2, description="Trajectories on which the strength is measured")
    text_weight: float = Field(4.0, ge=0, description="Weight of staying as before on text and on questions")
    staying_rows: int = Field(24, ge=2, description="Rows of text and questions in a bake's step that must stay")
    question_share: float = Field(0.8, ge=0, le=1, description="Share of questions among them")


class MeasurementConfig(BaseModel):
    """What is measured at the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scored_repairs: int = Field(64, ge=2, description="Validation micro-repositories that an iteration is scored on")
    measured_repairs: int = Field(100, ge=2, description="Test micro-repositories")
    questions_per_level: int = Field(40, ge=1, description="Questions that tell whether a level is in reach")
    conversations: int = Field(12, ge=2, description="Conversations in which the drift is measured")
    turns: int = Field(30, ge=2, description="Turns of a conversation")
    line_tokens: int = Field(2, ge=1, description="Tokens of text in a user's line")
    reply_tokens: int = Field(5, ge=1, description="Tokens of a reply")
    style_texts: int = Field(24, ge=2, description="Texts from which style is measured")
    style_tokens: int = Field(40, ge=1, description="Tokens of such a text")


class CyclesConfig(Config):
    """The A-cycle, the B-cycle and what they share. `training.steps` is that of one full bake, `training.batch_size`
    its trajectories, `training.seq_len` the tokens in a row that must stay as before."""

    lessons: LessonConfig = Field(LessonConfig(), description="Learning to use the tools")
    persona: PersonaConfig = Field(PersonaConfig(), description="Prompts that the model proposes")
    strength: StrengthConfig = Field(StrengthConfig(), description="How far a prompt is baked in")
    measurement: MeasurementConfig = Field(MeasurementConfig(), description="What is measured, and on how much")
    alternation: AlternationConfig = Field(AlternationConfig(), description="When cycles take turns and when they end")
    training: TrainingConfig = Field(
        TrainingConfig(steps=24, seq_len=48, muon_lr=0.003, adamw_lr=0.006, decay_fraction=1.0, grokfast_lambda=0.0),
        description="Steps, batches and optimizer of one full bake",
    )
    mix: MixConfig = Field(MixConfig(), description="Shares of the rows that must stay as before")

    def baking(self) -> BakingConfig:
        """The configuration of one full bake."""
        return BakingConfig(
            **self.training.model_dump(),
            max_tokens=max(self.persona.persona_tokens, self.lessons.repair_tokens),
            num_trajectories=self.strength.num_trajectories,
            divergence=self.strength.divergence,
            text_weight=self.strength.text_weight,
            rank=self.strength.rank,
        )

    def lesson_training(self) -> TrainingConfig:
        """The configuration of one lesson."""
        lessons = self.lessons
        changes = {name: getattr(lessons, name) for name in ("steps", "batch_size", "muon_lr", "adamw_lr")}
        return self.training.model_copy(update=changes)
