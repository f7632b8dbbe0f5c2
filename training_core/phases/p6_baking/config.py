"""Configuration of phase 6: lessons, personas, baking strength, measurement and alternation."""

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
    """Lessons in tool use: fine-tuning with the tool prompt, on repairs that were verified in the sandbox."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tool_prompt: str = Field("Repair the line. Write <fix>.", min_length=1, description="The prompt of the A-cycle")
    repairs: int = Field(
        64, ge=1, description="Micro-repositories attempted per iteration; failed ones become demonstrations"
    )
    shown_repairs: int = Field(
        1500, ge=0, description="Additional demonstrations per iteration: gold repairs with the tool's replies"
    )
    repair_lines: int = Field(6, ge=2, description="Maximum number of lines of a micro-repository")
    repair_names: int = Field(16, ge=2, le=16, description="Number of distinct argument names in micro-repositories")
    unprompted_repairs: int = Field(
        12, ge=0, description="Micro-repositories used as rehearsal data without the tool prompt"
    )
    tool_questions: int = Field(0, ge=0, description="Questions with tool calls added to each lesson")
    steps: int = Field(40, ge=1, description="Training steps per lesson")
    batch_size: int = Field(16, ge=1, description="Examples per lesson step; half as many rows of text are added")
    text_tokens: int = Field(64, ge=2, description="Length of a row of rehearsal text in a lesson, in tokens")
    muon_lr: float = Field(0.007, gt=0, description="Peak Muon learning rate in lessons (hidden matrices)")
    adamw_lr: float = Field(0.005, gt=0, description="Peak AdamW learning rate in lessons (all other weights)")
    text_weight: float = Field(1.0, ge=0, description="Loss weight of corpus text in lessons")
    rehearsed_tokens: int = Field(96, ge=1, description="Tokens of rehearsal questions per lesson step")
    rehearsal_weight: float = Field(2.0, ge=0, description="Loss weight of rehearsal questions")
    unprompted_tokens: int = Field(32, ge=1, description="Tokens of unprompted repairs per lesson step")
    unprompted_weight: float = Field(0.5, ge=0, description="Loss weight of unprompted repairs")
    repair_tokens: int = Field(
        48, ge=1, description="Maximum length of a repair attempt in tokens, including tool replies"
    )


class PersonaConfig(BaseModel):
    """Persona prompts, which the model proposes itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    proposals: int = Field(12, ge=1, description="Prompts sampled from the model per iteration")
    proposal_tokens: int = Field(10, ge=1, description="Maximum length of a proposed prompt, in tokens")
    proposal_temperature: float = Field(1.0, gt=0, description="Sampling temperature of proposed prompts")
    scored_questions: int = Field(96, ge=2, description="Validation questions on which a prompt is scored")
    given_tokens: int = Field(12, ge=1, description="Tokens of held-out text that a style sample continues")
    persona_tokens: int = Field(16, ge=1, description="Maximum length of a training reply, in tokens")


class StrengthConfig(BaseModel):
    """The strength at which prompts are baked in, and the baking itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: float = Field(0.5, gt=0, le=1, description="Target strength of the first iteration; 1 is a full bake")
    last: float = Field(0.5, gt=0, le=1, description="Target strength of the last iteration")
    schedule: ScheduleKind = Field("constant", description="Shape of the strength schedule from first to last")
    tolerance: float = Field(0.02, gt=0, lt=0.5, description="Accepted deviation from the target strength")
    divergence: Divergence = Field("forward_kl", description="Divergence from the prompted teacher to minimise")
    rank: int = Field(0, ge=0, description="Rank of a LoRA adapter; 0 trains all weights")
    num_trajectories: int = Field(48, ge=1, description="Training trajectories per bake")
    held_out_trajectories: int = Field(
        40, ge=2, description="Held-out trajectories for setting the strength, and as many for measuring it"
    )
    text_weight: float = Field(4.0, ge=0, description="Loss weight of the rehearsal data (text and questions)")
    staying_rows: int = Field(24, ge=2, description="Rows of rehearsal data per baking step")
    question_share: float = Field(0.8, ge=0, le=1, description="Share of questions in the rehearsal data")


class MeasurementConfig(BaseModel):
    """Sample sizes for scoring iterations and for the final evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scored_repairs: int = Field(64, ge=2, description="Validation micro-repositories on which iterations are scored")
    measured_repairs: int = Field(100, ge=2, description="Test micro-repositories for the final evaluation")
    questions_per_level: int = Field(40, ge=1, description="Questions per level for deciding which levels are in reach")
    conversations: int = Field(12, ge=2, description="Conversations in which persona drift is measured")
    turns: int = Field(30, ge=2, description="Turns per conversation")
    line_tokens: int = Field(2, ge=1, description="Tokens of text in each user line")
    reply_tokens: int = Field(5, ge=1, description="Maximum length of a reply in conversations, in tokens")
    style_texts: int = Field(24, ge=2, description="Generated texts per model for measuring style")
    style_tokens: int = Field(40, ge=1, description="Maximum length of such a text, in tokens")


class CyclesConfig(Config):
    """The A-cycle (tools), the B-cycle (persona) and their shared settings.

    `training.steps` is the number of steps of one full bake, `training.batch_size` counts trajectories, and
    `training.seq_len` is the length of the rows of rehearsal data.
    """

    lessons: LessonConfig = Field(LessonConfig(), description="A-cycle: lessons in tool use")
    persona: PersonaConfig = Field(PersonaConfig(), description="B-cycle: persona prompts proposed by the model")
    strength: StrengthConfig = Field(StrengthConfig(), description="Baking strength, trajectories and rehearsal data")
    measurement: MeasurementConfig = Field(MeasurementConfig(), description="Sample sizes of the evaluation")
    alternation: AlternationConfig = Field(AlternationConfig(), description="When cycles take turns and when they end")
    training: TrainingConfig = Field(
        TrainingConfig(steps=24, seq_len=48, muon_lr=0.003, adamw_lr=0.006, decay_fraction=1.0, grokfast_lambda=0.0),
        description="Training steps, batches and optimizer of one full bake",
    )
    mix: MixConfig = Field(MixConfig(), description="Data mix of the rehearsal text")

    def baking(self) -> BakingConfig:
        """Return the configuration of one full bake."""
        return BakingConfig(
            **self.training.model_dump(),
            max_tokens=max(self.persona.persona_tokens, self.lessons.repair_tokens),
            num_trajectories=self.strength.num_trajectories,
            divergence=self.strength.divergence,
            text_weight=self.strength.text_weight,
            rank=self.strength.rank,
        )

    def lesson_training(self) -> TrainingConfig:
        """Return the training configuration of one lesson."""
        lessons = self.lessons
        changes = {name: getattr(lessons, name) for name in ("steps", "batch_size", "muon_lr", "adamw_lr")}
        return self.training.model_copy(update=changes)
