"""Presets: the same code at three sizes. Every value is a default that a run may change.

`nano` finishes the whole graph in minutes on 2 CPU cores; `mini` is for hours there and is where ablations
are run;
`forge_25m` is the 25 M parameter model and wants a GPU.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel

from training_core.data.documents import CorpusConfig
from training_core.data.packing import PackingConfig
from training_core.data.task_bank import TaskBankConfig
from training_core.data.tokenizer import TokenizerConfig
from training_core.evaluation.held_out import SuiteConfig
from training_core.phases.p1_cognate.train import TrunkConfig, VariantConfig
from training_core.phases.p2_evomerge.evolution import EvolutionConfig
from training_core.phases.p3_quiet_star.training import ReasoningConfig
from training_core.phases.p4_bitnet.train import TernaryConfig
from training_core.phases.p5_curriculum.config import CharacterConfig
from training_core.phases.p5_curriculum.dreams import CurriculumConfig
from training_core.phases.p6_baking.config import CyclesConfig
from training_core.phases.p7_experts.config import ExpertsConfig
from training_core.phases.p8_compression.student import CompressionConfig
from training_core.tasks.questions.bank import QuestionBankConfig

Profile = Literal["nano", "mini", "forge_25m"]
PROFILES: tuple[str, ...] = get_args(Profile)

CONFIGS: dict[str, type[BaseModel]] = {
    "corpus": CorpusConfig,
    "tokenizer": TokenizerConfig,
    "tokens": PackingConfig,
    "task_bank": TaskBankConfig,
    "question_bank": QuestionBankConfig,
    "evaluation_suite": SuiteConfig,
    "trunk": TrunkConfig,
    "cognate_reasoning": VariantConfig,
    "cognate_memory": VariantConfig,
    "cognate_speed": VariantConfig,
    "merged_model": EvolutionConfig,
    "reasoning_model": ReasoningConfig,
    "ternary_model": TernaryConfig,
    "practised_model": CurriculumConfig,
    "curriculum_model": CharacterConfig,
    "baked_model": CyclesConfig,
    "expert_model": ExpertsConfig,
    "compressed_model": CompressionConfig,
}

Values = dict[str, Any]

REASONING: Values = {"text_share": 0.6, "arithmetic_share": 0.2, "logic_share": 0.15, "needle_share": 0.05}
MEMORY: Values = {"text_share": 0.7, "arithmetic_share": 0.0, "logic_share": 0.0, "needle_share": 0.3}
SPEED: Values = {"text_share": 1.0, "arithmetic_share": 0.0, "logic_share": 0.0, "needle_share": 0.0}


# About 1 M parameters; the field defaults are this profile's values where nothing is named.
NANO_SHORT: Values = {"batch_size": 8, "seq_len": 128, "decay_fraction": 1.0, "grokfast_lambda": 0.0}
NANO_GENTLE: Values = {"muon_lr": 0.01, "adamw_lr": 0.003}
NANO: dict[str, Values] = {
    "evaluation_suite": {"test_tokens": 32_000, "validation_tokens": 8_000, "tasks_per_family": 40},
    "trunk": {
        "max_seq_len": 512,
        "memory_chunk": 128,
        "steps": 440,
        "batch_size": 8,
        "seq_len": 128,
        "muon_lr": 0.015,
        "adamw_lr": 0.02,
        "decay_fraction": 0.8,
        "grokfast_lambda": 0.0,
    },
    "cognate_reasoning": NANO_SHORT
    | REASONING
    | NANO_GENTLE
    | {"steps": 45, "latent_steps": 1, "num_supervision": 2, "halt_threshold": 0.6},
    "cognate_memory": NANO_SHORT
    | MEMORY
    | NANO_GENTLE
    | {"steps": 40, "batch_size": 2, "seq_len": 512, "memory_max_lr": 1.0},
    "cognate_speed": NANO_SHORT | SPEED | NANO_GENTLE | {"steps": 50},
    "merged_model": {"generations": 2},
    "reasoning_model": NANO_SHORT
    | NANO_GENTLE
    | {
        "muon_lr": 0.005,
        "steps": 10,
        "batch_size": 4,
        "min_length": 2,
        "max_length": 4,
        "positions_per_sequence": 8,
        "true_tokens": 2,
        "baking_steps": 8,
        "baking_batch_size": 4,
        "baking_trajectories": 8,
        "baking_max_tokens": 16,
        "baking_examples": 1,
        "measured_windows": 16,
    },
    "ternary_model": NANO_SHORT | NANO_GENTLE | {"steps": 120, "decay_fraction": 0.5, "distillation_weight": 0.3},
    "question_bank": {"train_per_level": 200, "held_out_per_level": 200},
    "practised_model": NANO_SHORT
    | {
        "muon_lr": 0.016,
        "adamw_lr": 0.004,
        "momentum": 0.8,
        "decay_fraction": 0.4,
        "batch_size": 24,
        "text_rows": 3,
        "text_weight": 10.0,
        "text_teacher": True,
        "steps": 34,
        "rounds": 3,
        "focus_levels": 1,
        "questions_per_round": 96,
        "max_tokens": 16,
        "first_questions": 12,
        "more_questions": 12,
        "most_questions": 36,
        "measured_questions": 24,
        "consolidation_steps": 5,
        "consolidation_lr_factor": 0.2,
        "memory_tokens": 64,
        "memory_weight": 2.0,
        "num_dreams": 64,
    },
    "curriculum_model": {
        "steps": 8,
        "held_out_situations": 12,
        "answer_tokens": 16,
        "questions_per_level": 12,
        "council_questions": 24,
        "ooda_practice_questions": 16,
        "ooda_questions": 24,
        "self_samples": 200,
        "self_held_out": 160,
        "self_steps": 150,
    },
    "baked_model": {
        "repair_lines": 2,
        "repair_names": 6,
        "repair_tokens": 32,
        "shown_repairs": 300,
        "tool_prompt": "Use <fix>.",
        "lesson_steps": 16,
        "lesson_batch": 10,
        "lesson_text_tokens": 96,
        "lesson_text_weight": 8.0,
        "rehearsed_tokens": 64,
        "rehearsal_weight": 5.0,
        "unprompted_tokens": 24,
        "num_trajectories": 32,
        "held_out_trajectories": 24,
        "staying_rows": 16,
        "text_weight": 12.0,
        "scored_questions": 64,
        "scored_repairs": 24,
        "measured_repairs": 32,
        "questions_per_level": 12,
        "conversations": 8,
        "line_tokens": 1,
        "reply_tokens": 3,
        "proposals": 8,
        "style_texts": 12,
        "style_tokens": 20,
        "lesson_muon_lr": 0.012,
        "steps": 10,
        "muon_lr": 0.003,
        "batch_size": 8,
        "adamw_lr": 0.002,
        "strength": 0.4,
        "last_strength": 0.4,
        "max_iterations": 2,
        "max_turn": 1,
    },
    "expert_model": {
        "hardest_level": 2,
        "supervised_steps": 40,
        "supervised_batch": 16,
        "reward_steps": 8,
        "reward_batch": 16,
        "reward_attempts": 2,
        "reward_baseline": "group",
        "reward_max_tokens": 8,
        "few_shot_population": 16,
        "few_shot_rounds": 4,
        "search_population": 8,
        "search_generations": 3,
        "search_questions": 48,
        "search_windows": 2,
        "search_latency_repeats": 3,
        "profile_questions": 40,
        "router_questions": 200,
        "chosen_questions": 200,
        "measured_questions": 120,
    },
    "compressed_model": {
        "student_d_model": 128,
        "student_num_heads": 4,
        "student_d_ff": 320,
        "student_blocks": 2,
        "student_loops": 1,
        "student_embedding_rank": 0,
        "steps": 400,
        "batch_size": 8,
        "seq_len": 128,
        "muon_lr": 0.01,
        "adamw_lr": 0.004,
        "grokfast_lambda": 0.0,
        "decay_fraction": 0.6,
        "distillation_weight": 0.3,
        "expert_steps": 40,
        "expert_batch": 16,
        "expert_lr": 0.2,
    },
}

# About 5 M parameters.
MINI_SHORT: Values = {"batch_size": 16, "seq_len": 512, "warmup_fraction": 0.05, "decay_fraction": 1.0}
MINI_GENTLE: Values = {"muon_lr": 0.01, "adamw_lr": 0.002}
MINI: dict[str, Values] = {
    "tokenizer": {"vocab_size": 4096},
    "task_bank": {"train_per_family": 10_000, "held_out_per_family": 300, "needle_max_statements": 12},
    "evaluation_suite": {
        "test_tokens": 80_000,
        "validation_tokens": 30_000,
        "window": 512,
        "tasks_per_family": 150,
    },
    "trunk": {
        "d_model": 256,
        "num_layers": 6,
        "num_heads": 4,
        "d_ff": 640,
        "window": 128,
        "max_seq_len": 1024,
        "memory_layers": [1, 3],
        "memory_heads": 4,
        "memory_rank": 64,
        "num_persistent": 8,
        "steps": 900,
        "batch_size": 16,
        "seq_len": 512,
    },
    "cognate_reasoning": MINI_SHORT
    | REASONING
    | MINI_GENTLE
    | {"steps": 60, "latent_steps": 1, "num_supervision": 2, "halt_threshold": 0.6},
    "cognate_memory": MINI_SHORT
    | MEMORY
    | MINI_GENTLE
    | {"steps": 80, "batch_size": 8, "seq_len": 1024, "memory_max_lr": 1.0},
    "cognate_speed": MINI_SHORT | SPEED | MINI_GENTLE | {"steps": 80},
    "merged_model": {"generations": 10},
    "reasoning_model": MINI_SHORT
    | MINI_GENTLE
    | {"steps": 200, "batch_size": 8, "seq_len": 256, "min_length": 4, "max_length": 8, "true_tokens": 4},
    "ternary_model": MINI_SHORT | MINI_GENTLE | {"steps": 150},
    "practised_model": MINI_SHORT
    | {
        "muon_lr": 0.007,
        "adamw_lr": 0.003,
        "seq_len": 256,
        "text_weight": 2.0,
        "steps": 100,
        "rounds": 6,
        "questions_per_round": 240,
        "max_tokens": 40,
        "consolidation_steps": 40,
        "num_dreams": 256,
        "measured_questions": 100,
    },
    "curriculum_model": {"steps": 60, "questions_per_level": 100, "council_questions": 200, "ooda_questions": 200},
    "expert_model": {
        "hardest_level": 6,
        "reward_baseline": "group",
        "reward_attempts": 4,
        "search_questions": 32,
        "search_windows": 2,
        "search_seeds": 1,
        "search_latency_bound": 3.0,
    },
    "compressed_model": {
        "student_d_model": 256,
        "student_num_heads": 4,
        "student_d_ff": 640,
        "student_blocks": 2,
        "student_loops": 1,
        "student_embedding_rank": 0,
        "student_window": 128,
        "muon_lr": 0.01,
        "adamw_lr": 0.002,
        "distillation_weight": 0.3,
        "steps": 900,
        "batch_size": 16,
        "seq_len": 512,
        "grokfast_lambda": 0.0,
    },
}

# 25.0 M parameters, 100 MB in fp32; the compressed file's budget is 0.4 MB.
FORGE_25M_SHORT: Values = {"batch_size": 32, "seq_len": 1024, "warmup_fraction": 0.05, "decay_fraction": 1.0}
FORGE_25M_GENTLE: Values = {"muon_lr": 0.01, "adamw_lr": 0.002}
FORGE_25M: dict[str, Values] = {
    "tokenizer": {"vocab_size": 6144},
    "task_bank": {"train_per_family": 50_000, "held_out_per_family": 500, "needle_max_statements": 16},
    "evaluation_suite": {
        "test_tokens": 200_000,
        "validation_tokens": 60_000,
        "window": 1024,
        "tasks_per_family": 300,
    },
    "trunk": {
        "d_model": 512,
        "num_layers": 8,
        "num_heads": 8,
        "d_ff": 1024,
        "window": 256,
        "max_seq_len": 2048,
        "memory_layers": [1, 4],
        "memory_heads": 8,
        "memory_rank": 64,
        "num_persistent": 16,
        "steps": 5000,
        "batch_size": 64,
        "seq_len": 1024,
    },
    "cognate_reasoning": FORGE_25M_SHORT
    | REASONING
    | FORGE_25M_GENTLE
    | {"steps": 500, "latent_steps": 1, "num_supervision": 2, "halt_threshold": 0.6},
    "cognate_memory": FORGE_25M_SHORT
    | MEMORY
    | FORGE_25M_GENTLE
    | {"steps": 500, "batch_size": 16, "seq_len": 2048, "memory_max_lr": 1.0},
    "cognate_speed": FORGE_25M_SHORT | SPEED | FORGE_25M_GENTLE | {"steps": 500},
    "merged_model": {"generations": 50},
    "reasoning_model": FORGE_25M_SHORT
    | FORGE_25M_GENTLE
    | {"steps": 500, "positions_per_sequence": 64, "baking_steps": 200},
    "ternary_model": FORGE_25M_SHORT | FORGE_25M_GENTLE | {"steps": 1500},
    "practised_model": FORGE_25M_SHORT
    | {
        "muon_lr": 0.005,
        "adamw_lr": 0.002,
        "seq_len": 512,
        "text_rows": 8,
        "text_weight": 2.0,
        "steps": 400,
        "rounds": 8,
        "questions_per_round": 480,
        "max_tokens": 64,
        "consolidation_steps": 100,
        "num_dreams": 512,
        "measured_questions": 200,
    },
    "curriculum_model": {"steps": 100, "questions_per_level": 200, "council_questions": 400, "ooda_questions": 400},
    "compressed_model": {
        "student_d_model": 256,
        "student_num_heads": 8,
        "student_d_ff": 608,
        "student_blocks": 2,
        "student_loops": 4,
        "student_embedding_rank": 64,
        "student_window": 256,
        "steps": 8000,
        "batch_size": 64,
        "seq_len": 1024,
        "grokfast_lambda": 0.0,
    },
}


def preset(profile: str, asset: str) -> BaseModel:
    """The configuration of `asset` at `profile`.

    Raises:
        ValueError: for a profile or an asset that does not exist.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    if asset not in CONFIGS:
        raise ValueError(f"asset must be one of {', '.join(CONFIGS)}, got {asset!r}")
    values = {"nano": NANO, "mini": MINI, "forge_25m": FORGE_25M}[profile]
    return CONFIGS[asset].model_validate(values.get(asset, {}))
