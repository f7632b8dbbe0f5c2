"""Profiles: configurations of all assets at three sizes. Every value is a default that a run may override.

`nano` runs the whole graph in minutes on 2 CPU cores; `mini` takes hours and is used for ablations; `forge_25m` is the
25 M parameter model, which needs a GPU. The values are defined beside their phases (`presets.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Literal, get_args

from pydantic import BaseModel

from training_core.data.documents import WIKIPEDIA, CorpusConfig, SourceConfig
from training_core.data.packing import PackingConfig
from training_core.data.task_bank import TaskBankConfig
from training_core.data.tokenizer import TokenizerConfig
from training_core.evaluation.held_out import SuiteConfig
from training_core.phases.p1_cognate import presets as p1
from training_core.phases.p1_cognate.config import TrunkConfig, VariantConfig
from training_core.phases.p2_evomerge import presets as p2
from training_core.phases.p2_evomerge.evolution import EvolutionConfig
from training_core.phases.p3_quiet_star import presets as p3
from training_core.phases.p3_quiet_star.config import ReasoningConfig
from training_core.phases.p4_bitnet import presets as p4
from training_core.phases.p4_bitnet.config import TernaryConfig
from training_core.phases.p5_curriculum import presets as p5
from training_core.phases.p5_curriculum.config import CharacterConfig, CurriculumConfig
from training_core.phases.p6_baking import presets as p6
from training_core.phases.p6_baking.config import CyclesConfig
from training_core.phases.p7_experts import presets as p7
from training_core.phases.p7_experts.config import ExpertsConfig
from training_core.phases.p8_compression import presets as p8
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.tasks.questions.bank import QuestionBankConfig
from training_core.training.loop import TrainingConfig
from training_core.world.config import WorldConfig

ProfileName = Literal["nano", "mini", "forge_25m"]
WORLD = WorldConfig(  # of nano
    vocabulary=220,
    variety=0.1,
    pronouns=0.15,
    least_events=4,
    most_events=8,
    item_share=0.5,
    highest_level=6,
    solution_share=0.9,
    validation_fraction=0.15,
    test_fraction=0.15,
)
PROFILES: tuple[str, ...] = get_args(ProfileName)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The configuration of every asset. No field has a default, so that a missing one is a type error."""

    corpus: CorpusConfig
    tokenizer: TokenizerConfig
    tokens: PackingConfig
    task_bank: TaskBankConfig
    question_bank: QuestionBankConfig
    evaluation_suite: SuiteConfig
    trunk: TrunkConfig
    cognate_reasoning: VariantConfig
    cognate_memory: VariantConfig
    cognate_speed: VariantConfig
    merged_model: EvolutionConfig
    reasoning_model: ReasoningConfig
    ternary_model: TernaryConfig
    practised_model: CurriculumConfig
    curriculum_model: CharacterConfig
    baked_model: CyclesConfig
    expert_model: ExpertsConfig
    compressed_model: CompressionConfig


ASSETS: tuple[str, ...] = tuple(field.name for field in fields(Profile))


def nano() -> Profile:
    """Return the profile for about 1 M parameters."""
    cognate, curriculum = p1.nano(), p5.nano()
    return Profile(
        corpus=CorpusConfig(
            sources=[
                SourceConfig(kind="world", max_documents=20_000, weight=0.85, world=WORLD),
                WIKIPEDIA.model_copy(update={"weight": 0.15}),
            ]
        ),
        tokenizer=TokenizerConfig(),
        tokens=PackingConfig(),
        task_bank=TaskBankConfig(held_out_per_family=400, world_train_per_family=1000, one_hop_train=8000, world=WORLD),
        question_bank=QuestionBankConfig(
            train_per_level=400, held_out_per_level=200, world_shares=[1.0] * 4 + [0.8] * 6, world=WORLD
        ),
        evaluation_suite=SuiteConfig(
            test_tokens=32_000,
            validation_tokens=8_000,
            tasks_per_family=100,
            one_hop_tasks=400,
            minimal_pairs=100,
            world_stories=96,
            world=WORLD,
        ),
        trunk=cognate.trunk,
        cognate_reasoning=cognate.cognate_reasoning,
        cognate_memory=cognate.cognate_memory,
        cognate_speed=cognate.cognate_speed,
        merged_model=p2.nano(),
        reasoning_model=p3.nano(),
        ternary_model=p4.nano(),
        practised_model=curriculum.practised_model,
        curriculum_model=curriculum.curriculum_model,
        baked_model=p6.nano(),
        expert_model=p7.nano(),
        compressed_model=p8.nano(),
    )


def mini() -> Profile:
    """Return the profile for about 5 M parameters."""
    cognate, curriculum = p1.mini(), p5.mini()
    return Profile(
        corpus=CorpusConfig(),
        tokenizer=TokenizerConfig(vocab_size=4096),
        tokens=PackingConfig(),
        task_bank=TaskBankConfig(train_per_family=10_000, held_out_per_family=300, needle_max_statements=12),
        question_bank=QuestionBankConfig(),
        evaluation_suite=SuiteConfig(test_tokens=80_000, validation_tokens=30_000, window=512, tasks_per_family=150),
        trunk=cognate.trunk,
        cognate_reasoning=cognate.cognate_reasoning,
        cognate_memory=cognate.cognate_memory,
        cognate_speed=cognate.cognate_speed,
        merged_model=p2.mini(),
        reasoning_model=p3.mini(),
        ternary_model=p4.mini(),
        practised_model=curriculum.practised_model,
        curriculum_model=curriculum.curriculum_model,
        baked_model=p6.mini(),
        expert_model=p7.mini(),
        compressed_model=p8.mini(),
    )


def forge_25m() -> Profile:
    """Return the profile for 25.0 M parameters (100 MB in fp32); the compressed file's budget is 0.4 MB."""
    cognate, curriculum = p1.forge_25m(), p5.forge_25m()
    return Profile(
        corpus=CorpusConfig(),
        tokenizer=TokenizerConfig(vocab_size=6144),
        tokens=PackingConfig(),
        task_bank=TaskBankConfig(train_per_family=50_000, held_out_per_family=500, needle_max_statements=16),
        question_bank=QuestionBankConfig(),
        evaluation_suite=SuiteConfig(test_tokens=200_000, validation_tokens=60_000, window=1024, tasks_per_family=300),
        trunk=cognate.trunk,
        cognate_reasoning=cognate.cognate_reasoning,
        cognate_memory=cognate.cognate_memory,
        cognate_speed=cognate.cognate_speed,
        merged_model=p2.forge_25m(),
        reasoning_model=p3.forge_25m(),
        ternary_model=p4.forge_25m(),
        practised_model=curriculum.practised_model,
        curriculum_model=curriculum.curriculum_model,
        baked_model=p6.forge_25m(),
        expert_model=p7.forge_25m(),
        compressed_model=p8.forge_25m(),
    )


def training_tokens(profile: Profile) -> int:
    """Return the tokens of the training runs in a profile's `training` sections, and of the trunk's first stage.

    A supervision step of a recursion counts as a step. Not counted: further rounds of practice, thoughts, experts.
    """
    first = profile.trunk.first
    total = first.steps * first.batch_size * first.seq_len
    for asset in ASSETS:
        config = getattr(profile, asset)
        if isinstance(training := getattr(config, "training", None), TrainingConfig):
            steps = training.steps * (config.recursion.num_supervision if isinstance(config, VariantConfig) else 1)
            total += steps * training.batch_size * training.seq_len
    return total


@cache
def profile_of(name: str) -> Profile:
    """Return the profile called `name`.

    Raises:
        ValueError: when there is no such profile.
    """
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}")
    return {"nano": nano, "mini": mini, "forge_25m": forge_25m}[name]()


def preset(profile: str, asset: str) -> BaseModel:
    """Return the configuration of `asset` in `profile`.

    Raises:
        ValueError: for a profile or an asset that does not exist.
    """
    if asset not in ASSETS:
        raise ValueError(f"asset must be one of {', '.join(ASSETS)}, got {asset!r}")
    config: BaseModel = getattr(profile_of(profile), asset)
    return config
