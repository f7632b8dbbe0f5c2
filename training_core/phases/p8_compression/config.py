"""Configuration of phase 8."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.distill.distillation import DistillationConfig
from training_core.nn.ternary import Granularity
from training_core.training.loop import TrainingConfig


class StudentConfig(BaseModel):
    """Shape of the student, and its ternary form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = Field(96, ge=8, description="Width of the student")
    num_heads: int = Field(3, ge=1, description="Heads of the student; must divide its width into even widths")
    d_ff: int = Field(192, ge=8, description="Hidden width of the student's SwiGLU")
    num_blocks: int = Field(1, ge=1, description="Distinct blocks; all of them run in every loop")
    num_loops: int = Field(3, ge=1, description="Passes through the blocks")
    window: int = Field(64, ge=1, description="Attention window of the student in tokens")
    embedding_rank: int = Field(48, ge=0, description="Rank of the student's embedding; 0 for a full one")
    threshold: float = Field(0.5, ge=0, lt=10, description="A weight is 0 below threshold * mean |W|")
    granularity: Granularity = Field("tensor", description="One scale for each tensor, or for each row")
    hardening_fraction: float = Field(
        0.6, ge=0, le=1, description="Share of the steps over which weights go from full precision to ternary"
    )


class StudentExpertsConfig(BaseModel):
    """How the experts of the file are taught and measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(40, ge=1, description="Steps that each expert of the file is taught")
    batch_size: int = Field(32, ge=1, description="Worked completions in each of them")
    lr: float = Field(0.1, gt=0, description="Peak learning rate of the experts of the file")
    questions: int = Field(400, ge=1, description="Training questions of a family that they learn from")
    measured: int = Field(40, ge=2, description="Validation, and test, questions of a family they are measured on")
    texts: int = Field(200, ge=1, description="Pieces of training text that teach their router to choose none")
    text_tokens: int = Field(16, ge=1, description="Tokens of such a piece")


class CompressionConfig(Config):
    """The student, its distillation, and the experts of its own."""

    student: StudentConfig = Field(StudentConfig(), description="Shape and ternary form")
    distillation: DistillationConfig = Field(
        DistillationConfig(weight=0.7), description="Learning from the teacher's distribution"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Shares of the training rows")
    experts: StudentExpertsConfig = Field(StudentExpertsConfig(), description="Experts that the file carries")
