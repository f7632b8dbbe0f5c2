"""Configuration of phase 3."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.phases.p3_quiet_star.injection import InjectionConfig
from training_core.phases.p3_quiet_star.objective import PolicyConfig
from training_core.training.loop import TrainingConfig


class ChainBakingConfig(BaseModel):
    """Baking of chains of thought, before thoughts are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(40, ge=0, description="Steps of baking chains of thought; 0 leaves it out")
    batch_size: int = Field(8, ge=1, description="Trajectories in a baking step, and half as many rows of text")
    examples: int = Field(2, ge=1, description="Worked solutions in the prompt that is baked")
    trajectories: int = Field(64, ge=4, description="Trajectories: half sampled from the prompted model, half worked")
    max_tokens: int = Field(32, ge=1, description="Most tokens of a sampled trajectory")


class ReasoningConfig(Config):
    """Thoughts, their training, the baking before it, and how much is measured."""

    thoughts: PolicyConfig = Field(PolicyConfig(), description="Thoughts and the policy gradient that trains them")
    injection: InjectionConfig = Field(InjectionConfig(), description="Where thoughts are injected")
    baking: ChainBakingConfig = Field(ChainBakingConfig(), description="Baking of chains of thought")
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, batches and optimizer of REINFORCE")
    mix: MixConfig = Field(MixConfig(), description="Shares of the training rows")
    backbone_lr_factor: float = Field(
        0.1, gt=0, le=1, description="Learning rates of the model, in both steps, over those of what thinking adds"
    )
    measured_windows: int = Field(64, ge=1, description="Windows of held-out text in which thoughts are measured")
