"""Configuration of phase 8: the student, its distillation and its experts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.distill.distillation import DistillationConfig
from training_core.nn.ternary import Granularity
from training_core.training.loop import TrainingConfig


class StudentConfig(BaseModel):
    """Shape of the student, and its quantisation to ternary weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = Field(96, ge=8, description="Model width of the student")
    num_heads: int = Field(
        3, ge=1, description="Attention heads of the student; the head width must be an even integer"
    )
    d_ff: int = Field(192, ge=8, description="Hidden width of the student's SwiGLU")
    num_blocks: int = Field(1, ge=1, description="Distinct blocks, all of which run in every loop")
    num_loops: int = Field(3, ge=1, description="Loops through the blocks, which share their weights")
    window: int = Field(64, ge=1, description="Attention window of the student, in tokens")
    conv_kernel: int = Field(
        0, ge=0, le=64, description="Positions that the convolution before each attention sees; 0: none"
    )
    embedding_rank: int = Field(48, ge=0, description="Rank of the factorised embedding; 0 for a full one")
    threshold: float = Field(0.5, ge=0, lt=10, description="Weights with |w| below threshold * mean |W| become 0")
    granularity: Granularity = Field("tensor", description="Ternary scales: one per tensor, or one per row")
    hardening_fraction: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Share of the training steps over which weights move gradually from full precision to ternary",
    )


class StudentExpertsConfig(BaseModel):
    """Training and evaluation of the experts that the file carries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(40, ge=1, description="Training steps per expert")
    batch_size: int = Field(32, ge=1, description="Worked completions per training step")
    lr: float = Field(0.1, gt=0, description="Peak learning rate of the experts")
    questions: int = Field(400, ge=1, description="Training questions per family")
    measured: int = Field(40, ge=2, description="Validation questions, and test questions, per family")
    texts: int = Field(200, ge=1, description="Pieces of plain text from which the router learns to choose no expert")
    text_tokens: int = Field(16, ge=1, description="Length of such a piece, in tokens")


class CompressionConfig(Config):
    """The student, its distillation, and the experts trained on it."""

    student: StudentConfig = Field(StudentConfig(), description="Shape and quantisation of the student")
    distillation: DistillationConfig = Field(
        DistillationConfig(weight=0.7), description="Distillation from the teacher"
    )
    training: TrainingConfig = Field(TrainingConfig(), description="Training steps, batches and optimizer")
    mix: MixConfig = Field(MixConfig(), description="Data mix: the share of training rows from each source")
    experts: StudentExpertsConfig = Field(StudentExpertsConfig(), description="Experts that the file carries")
