"""What determines the results of a phase that asks questions with tools, as one digest."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel

from training_core.bundle import canonical_json
from training_core.data.batches import TrainingData
from training_core.evaluation.held_out import Suite
from training_core.models.cognate import Cognate
from training_core.questions.bank import QuestionBank
from training_core.questions.tools import ToolBox
from training_core.training.checkpoint import weights_digest


def fingerprint_of(
    parent: Cognate, config: BaseModel, bank: QuestionBank, suite: Suite, data: TrainingData, tools: ToolBox
) -> str:
    """SHA-256 of the parent's weights, the configuration (but how often it is saved), questions, suite, tokenizer and
    sandbox: a kept result under another one is not used."""
    hasher = hashlib.sha256(canonical_json(config.model_dump(exclude={"checkpoint_interval_s"})))
    hasher.update(canonical_json([suite.digest, data.tokenizer_json, tools.sandbox_name]))
    for split in (bank.train, bank.validation, bank.test):
        hasher.update(canonical_json([[q.prompt, q.solution, q.answer] for q in split]))
    hasher.update(weights_digest(parent))
    return hasher.hexdigest()
