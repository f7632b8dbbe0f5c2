"""Configuration of phase 3: thoughts, their training, and the baking before it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.data.batches import MixConfig
from training_core.phases.p3_quiet_star.injection import InjectionConfig
from training_core.phases.p3_quiet_star.objective import PolicyConfig
from training_core.training.loop import TrainingConfig


class ChainBakingConfig(BaseModel):
    """Baking of chain-of-thought prompts into the weights, which precedes the training of thoughts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(40, ge=0, description="Training steps of chain-of-thought baking; 0 skips it")
    batch_size: int = Field(8, ge=1, description="Trajectories per baking step; half as many rows of text are added")
    examples: int = Field(2, ge=1, description="Worked solutions in the few-shot prompt that is baked")
    trajectories: int = Field(
        64, ge=4, description="Training trajectories: half sampled from the prompted model, half worked solutions"
    )
    max_tokens: int = Field(32, ge=1, description="Maximum length of a sampled trajectory, in tokens")


class ReasoningConfig(Config):
    """Thoughts, their training, the baking before it, and how much text they are evaluated on."""

    thoughts: PolicyConfig = Field(PolicyConfig(), description="Thoughts and the policy gradient that trains them")
    injection: InjectionConfig = Field(InjectionConfig(), description="The rules for where the model thinks")
    baking: ChainBakingConfig = Field(ChainBakingConfig(), description="Chain-of-thought baking")
    training: TrainingConfig = Field(TrainingConfig(), description="Steps, batches and optimizer of REINFORCE")
    mix: MixConfig = Field(MixConfig(), description="Data mix: the share of training rows from each source")
    backbone_lr_factor: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Factor on the learning rates for the model's own weights (in baking and REINFORCE); the weights "
        "that thinking adds are trained at the full rates",
    )
    measured_windows: int = Field(64, ge=1, description="Windows of held-out text on which thoughts are evaluated")
