"""The context of a phase that asks questions: a question bank in three splits, and tools in a sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel
from torch import nn

from training_core.phase import DATA, PhaseContext, ReportData, SelectionData
from training_core.store.bundle import canonical_json
from training_core.store.checkpoint import weights_digest
from training_core.tasks.questions.bank import QuestionBank, open_bank
from training_core.tasks.questions.question import Question
from training_core.tasks.questions.tools import ToolBox
from training_core.world.config import WorldConfig

QUESTIONED = (*DATA, "question_bank")


@dataclass(frozen=True, slots=True)
class QuestionSelection(SelectionData):
    """Validation text and validation questions."""

    questions: Sequence[Question]


@dataclass(frozen=True, slots=True)
class QuestionReport(ReportData):
    """Test text, test tasks and test questions."""

    questions: Sequence[Question]


class QuestionContext(PhaseContext):
    """A `PhaseContext` with questions. bank: used instead of the one in the folder `question_bank`."""

    def __init__(self, *, bank: QuestionBank | None = None, **given: Any) -> None:
        super().__init__(**given)
        self._bank_given = bank

    @cached_property
    def tools(self) -> ToolBox:
        """The calculator, and Python in the sandbox.

        Raises:
            SandboxUnavailableError: when there is no sandbox.
        """
        return ToolBox(self.sandbox)

    @property
    def train_questions(self) -> Sequence[Question]:
        """The training questions."""
        return self._bank.train

    @property
    def avoided(self) -> frozenset[str]:
        """Contents that no further question may have (`tasks.questions.bank`)."""
        return self._bank.avoided

    @property
    def world(self) -> WorldConfig | None:
        """Settings of the world that some questions are about, from which variants of them are made."""
        return self._bank.world

    @property
    def spent_usd(self) -> float:
        """Cost of the frontier models that were asked for the question bank, in US dollars."""
        return self._bank.spent_usd

    @property
    def note(self) -> str:
        """Why collecting questions stopped early; empty if it did not."""
        return self._bank.note

    @cached_property
    def selection(self) -> QuestionSelection:
        """Validation text and questions."""
        return QuestionSelection(self._suite.validation, self._bank.validation)

    @property
    def report(self) -> QuestionReport:
        """Test text, tasks and questions.

        Raises:
            SealedDataError: before `fix`, and when the fixed product has changed since.
        """
        self.require_fixed()
        return self._report

    def refuse_unless(self, check: Callable[[Sequence[Question]], None]) -> None:
        """Run `check` on the test questions before training; it raises ValueError when they do not suffice."""
        # The result is discarded: before `fix`, nothing may be selected by the test questions.
        check(self._report.questions)

    def fingerprint(self, parent: nn.Module, config: BaseModel) -> str:
        """Return the cache key of results: SHA-256 of the parent's weights, the configuration (without its checkpoint
        interval), questions, suite, tokenizer and sandbox."""
        hasher = hashlib.sha256(canonical_json(_without_interval(config.model_dump(mode="json"))))
        hasher.update(canonical_json([self._suite.digest, self.training.tokenizer_json, self.tools.sandbox_name]))
        for split in (self._bank.train, self._bank.validation, self._bank.test):
            hasher.update(canonical_json([[q.prompt, q.solution, q.answer] for q in split]))
        hasher.update(weights_digest(parent))
        return hasher.hexdigest()

    @cached_property
    def _bank(self) -> QuestionBank:
        return self._bank_given if self._bank_given is not None else open_bank(self._folder("question_bank"))

    @cached_property
    def _report(self) -> QuestionReport:
        return QuestionReport(self._suite.test, self._suite.tasks, self._suite.sources, self._bank.test)


def _without_interval(document: Any) -> Any:
    """The configuration without the checkpoint interval, which does not affect results."""
    if isinstance(document, dict):
        return {k: _without_interval(v) for k, v in document.items() if k != "checkpoint_interval_s"}
    return document
