"""Configuration of phase 7: finding, training, routing and composing experts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_core.config import Config
from training_core.phases.p7_experts.few_shot import FewShotConfig
from training_core.phases.p7_experts.search import SearchConfig
from training_core.svf.supervised import ExpertLearningConfig


class QuestionsConfig(BaseModel):
    """Amounts of questions and text for finding, training, choosing and evaluating experts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardest_level: int = Field(10, ge=1, le=10, description="Hardest level of questions that are used")
    most_experts: int = Field(10, ge=1, le=10, description="Maximum number of experts, if the profile asks for more")
    profile_questions: int = Field(24, ge=4, description="Training questions per family for the gradient profile")
    profile_resamples: int = Field(
        100, ge=1, description="Bootstrap resamples for the stability of the number of experts"
    )
    expert_questions: int = Field(400, ge=1, description="Training questions per family for an expert")
    chosen_questions: int = Field(24, ge=2, description="Validation questions per family for choices")
    measured_questions: int = Field(40, ge=2, description="Test questions per family for the final evaluation")
    routed_tokens: int = Field(16, ge=1, description="Tokens at the start of a text that the router reads")
    router_texts: int = Field(
        200, ge=1, description="Pieces of training text from which the router learns to choose no expert"
    )
    router_questions: int = Field(60, ge=1, description="Training questions per family for the router")
    few_shot_shots: int = Field(10, ge=1, description="Solved examples per task in the few-shot search")


class ExpertsConfig(Config):
    """Finding, training, routing and composing experts."""

    questions: QuestionsConfig = Field(QuestionsConfig(), description="Numbers of questions and texts per purpose")
    learning: ExpertLearningConfig = Field(ExpertLearningConfig(), description="Training of the experts")
    few_shot: FewShotConfig = Field(FewShotConfig(), description="Few-shot search for mixing coefficients")
    search: SearchConfig = Field(SearchConfig(), description="Multi-objective search over compositions")
