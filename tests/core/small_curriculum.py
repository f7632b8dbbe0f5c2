"""A small ternary model and question bank on the small data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from forge_resources.sandbox import open_sandbox
from tests.core.small_data import SHAPE
from tests.nested import nested
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phases.p5_curriculum.config import CurriculumConfig
from training_core.phases.p5_curriculum.practised_model import make_practised
from training_core.reporting import Reporter, SilentReporter
from training_core.store.bundle import Product
from training_core.tasks.questions.bank import QuestionBank, QuestionBankConfig, make_question_bank, open_bank
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.question import LEVELS, Question

CONFIG = nested(
    CurriculumConfig,
    rounds=2, steps=3, batch_size=4, seq_len=32, text_rows=1, questions_per_round=6, passes=4, focus_levels=2,
    max_tokens=6, first_questions=4, more_questions=2, most_questions=6, measured_questions=3, consolidation_steps=2,
    num_dreams=6, memory_tokens=7, checkpoint_interval_s=0.0, muon_lr=0.01, adamw_lr=0.005, grokfast_lambda=0.0,
    text_teacher=True,
)  # fmt: skip


def small_bank(folder: Path) -> QuestionBank:
    folder.mkdir(exist_ok=True)
    make_question_bank(QuestionBankConfig(train_per_level=30, held_out_per_level=10), folder, SilentReporter())
    return shortened(open_bank(folder))


def shortened(bank: QuestionBank) -> QuestionBank:
    """Keep the six shortest held-out questions of each level in both splits, and the twelve shortest for training."""

    def short(questions: Sequence[Question], number: int) -> list[Question]:
        ordered = sorted(questions, key=lambda q: len(q.prompt))
        return [q for level in LEVELS for q in [q for q in ordered if q.level == level][:number]]

    return replace(bank, train=short(bank.train, 12), validation=short(bank.validation, 6), test=short(bank.test, 6))


def small_ternary(vocab_size: int) -> Cognate:
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=vocab_size, **SHAPE | {"max_seq_len": 600}))  # type: ignore[arg-type]
    make_ternary(model, TernarySettings())
    return model


def practise(
    data: dict[str, Path],
    bank: QuestionBank,
    config: CurriculumConfig,
    checkpoint: Path | None = None,
    reporter: Reporter | None = None,
) -> Product:
    with open_sandbox("embedded") as sandbox:
        context = QuestionContext(folders=data, bank=bank, sandbox=sandbox, checkpoint=checkpoint, reporter=reporter)
        return make_practised(small_ternary(320), TernarySettings(), context, config)


def keep(reporter: Reporter, folder: Path, data: dict[str, Path], bank: QuestionBank) -> None:
    """Practise with a checkpoint, and write the weights (a `Run` for `tests.killed`)."""
    product = practise(data, bank, CONFIG, folder, reporter)
    save_file(dict(product.tensors or {}), folder / "tensors")
