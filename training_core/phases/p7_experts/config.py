"""Configuration of phase 7."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.phases.p7_experts.few_shot import FewShotConfig
from training_core.phases.p7_experts.search import SearchConfig
from training_core.svf.supervised import ExpertLearningConfig


class QuestionsConfig(BaseModel):
    """Questions and text that experts are found on, chosen on and measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardest_level: int = Field(10, ge=1, le=10, description="Hardest level whose questions count, of every family")
    most_experts: int = Field(10, ge=1, le=10, description="Most experts, where the profile asks for more")
    profile_questions: int = Field(24, ge=4, description="Training questions of a family in the model's profile")
    profile_resamples: int = Field(100, ge=1, description="Resampled profiles that tell whether the number is stable")
    expert_questions: int = Field(400, ge=1, description="Training questions of a family that an expert learns from")
    chosen_questions: int = Field(24, ge=2, description="Validation questions of a family that choices are made on")
    measured_questions: int = Field(40, ge=2, description="Test questions of a family")
    routed_tokens: int = Field(16, ge=1, description="Tokens at the beginning of a text by which it is routed")
    router_texts: int = Field(200, ge=1, description="Pieces of training text that teach the router to choose none")
    router_questions: int = Field(60, ge=1, description="Training questions of a family that teach the router")
    few_shot_shots: int = Field(10, ge=1, description="Solved examples of a task in few-shot search")


class ExpertsConfig(Config):
    """Finding, training, routing and composing experts."""

    questions: QuestionsConfig = Field(QuestionsConfig(), description="Questions and text for each purpose")
    learning: ExpertLearningConfig = Field(ExpertLearningConfig(), description="How experts learn")
    few_shot: FewShotConfig = Field(FewShotConfig(), description="Few-shot search of mixtures")
    search: SearchConfig = Field(SearchConfig(), description="The search over compositions")
