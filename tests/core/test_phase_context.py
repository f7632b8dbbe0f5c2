"""Test data is sealed until the product is fixed: what chooses by it fails at run time."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.core import small_curriculum, small_cycles, small_experts, test_character_phase
from training_core.phase import PhaseContext, SealedDataError
from training_core.phases.p8_compression.config import CompressionConfig
from training_core.phases.p8_compression.student_experts import teach_student
from training_core.reporting import SilentReporter
from training_core.tasks.questions.context import QuestionContext, QuestionSelection

PHASES = Path(__file__).parents[2] / "training_core" / "phases"
# Whatever opens a split by itself, or holds all of them: a phase takes what its context hands out.
UNSPLIT = {"open_suite", "open_bank", "read_tasks", "TokenStream", "QuestionBank", "Suite"}


def test_the_report_opens_when_the_product_is_fixed(small_data: dict[str, Path]) -> None:
    context, model = PhaseContext(folders=small_data), nn.Linear(2, 2)
    assert context.selection.text.num_documents > 0
    with pytest.raises(SealedDataError, match="test data is sealed until the product is fixed"):
        context.report  # noqa: B018
    context.fix(model, {"thoughts": True}, b"payload", {"codes": torch.ones(3)})
    assert context.report.text.num_documents > 0
    assert not torch.equal(context.report.text.inputs[:1], context.selection.text.inputs[:1])
    context.check_fixed()
    with pytest.raises(SealedDataError, match="fixed once"):
        context.fix(model)
    with torch.no_grad():
        model.weight[0, 0] += 1
    with pytest.raises(SealedDataError, match="the product changed after it was fixed"):
        context.report  # noqa: B018


def test_questions_are_sealed_alike(small_data: dict[str, Path]) -> None:
    bank = small_experts.bank()
    context = QuestionContext(folders=small_data, bank=bank)
    assert context.selection.questions == bank.validation
    assert context.train_questions == bank.train
    with pytest.raises(SealedDataError, match="sealed"):
        context.report  # noqa: B018
    with pytest.raises(SealedDataError, match="sealed"):
        context.require_fixed()
    context.fix()
    assert context.report.questions == bank.test


def test_a_check_of_test_questions_only_refuses(small_data: dict[str, Path]) -> None:
    def refuse(questions: object) -> None:
        raise ValueError("too few")

    context = QuestionContext(folders=small_data, bank=small_experts.bank())
    assert context.refuse_unless(lambda questions: None) is None
    with pytest.raises(ValueError, match="too few"):
        context.refuse_unless(refuse)


def choosing_by_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every choice of a phase were made on test questions and test text."""

    def selection(context: QuestionContext) -> QuestionSelection:
        return QuestionSelection(context.report.text, context.report.questions)

    monkeypatch.setattr(QuestionContext, "selection", property(selection))


def practised(data: dict[str, Path], folder: Path) -> None:
    small_curriculum.practise(data, small_curriculum.small_bank(folder / "bank"), small_curriculum.CONFIG)


def character(data: dict[str, Path], folder: Path) -> None:
    test_character_phase.made(data, SilentReporter(), None)


def baked(data: dict[str, Path], folder: Path) -> None:
    small_cycles.made(data, SilentReporter(), None)


def experts(data: dict[str, Path], folder: Path) -> None:
    small_experts.made(data, SilentReporter(), None)


def file_experts(data: dict[str, Path], folder: Path) -> None:
    context = QuestionContext(folders=data, bank=small_experts.bank())
    config = CompressionConfig().experts.model_copy(update={"steps": 1, "batch_size": 2, "measured": 2})
    teach_student(small_cycles.parent(), ["a"], [["copying"]], context, config, 0)


@pytest.mark.parametrize("make", [practised, character, baked, experts, file_experts])
def test_a_phase_that_chooses_by_test_data_fails(
    make: Callable[[dict[str, Path], Path], None],
    small_data: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choosing_by_the_report(monkeypatch)
    with pytest.raises(SealedDataError, match="test data is sealed until the product is fixed"):
        make(small_data, tmp_path)


def test_no_phase_opens_a_split_by_itself() -> None:
    for path in PHASES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            assert not names & UNSPLIT, f"{path.name} imports {names & UNSPLIT}: take it from the context"
