"""Phase 6 on a small ternary model and the small data set."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from forge_resources.sandbox import open_sandbox
from tests.core.small_data import SHAPE
from tests.core.test_character_phase import bank
from tests.nested import nested
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.ternary_cognate import TernarySettings, make_ternary
from training_core.phases.p6_baking.config import CyclesConfig
from training_core.phases.p6_baking.context import CycleContext
from training_core.phases.p6_baking.phase import make_baked
from training_core.reporting import Reporter
from training_core.store.bundle import Product
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.sandbox import Sandbox

SMALL = SHAPE | {"max_seq_len": 320, "num_layers": 2, "num_core_layers": 1, "memory_layers": []}
TINY = {
    "tool_prompt": "Fix.", "repairs": 2, "shown_repairs": 2, "unprompted_repairs": 2,
    "staying_rows": 2, "tool_questions": 2, "lessons_steps": 2,
    "lessons_batch_size": 2, "lessons_text_tokens": 32, "rehearsed_tokens": 4,
    "repair_tokens": 20, "repair_lines": 2, "proposals": 3, "proposal_tokens": 8, "scored_questions": 4,
    "persona_tokens": 4, "num_trajectories": 4, "held_out_trajectories": 3, "scored_repairs": 3,
    "measured_repairs": 3, "questions_per_level": 2, "conversations": 2, "turns": 3, "reply_tokens": 2,
    "style_texts": 3, "style_tokens": 8, "max_iterations": 2, "max_turn": 1, "steps": 2, "batch_size": 2,
    "seq_len": 32, "checkpoint_interval_s": 0.0, "muon_lr": 1e-4, "adamw_lr": 1e-4, "lessons_muon_lr": 1e-4,
    "lessons_adamw_lr": 1e-4,
}  # fmt: skip


def parent() -> Cognate:
    torch.manual_seed(0)
    model = Cognate(CognateConfig(vocab_size=320, **SMALL))  # type: ignore[arg-type]
    make_ternary(model, TernarySettings())
    return model.eval()


def config(**changes: object) -> CyclesConfig:
    return nested(CyclesConfig, **(TINY | changes))


def material(
    folders: dict[str, Path], sandbox: Sandbox, checkpoint: Path | None = None, **changes: object
) -> CycleContext:
    context = QuestionContext(folders=folders, bank=bank(), sandbox=sandbox, checkpoint=checkpoint)
    return CycleContext(parent(), context, config(**changes))


def made(folders: dict[str, Path], reporter: Reporter, checkpoint: Path | None, **changes: object) -> Product:
    with open_sandbox("embedded") as sandbox:
        context = QuestionContext(
            folders=folders, bank=bank(), sandbox=sandbox, reporter=reporter, checkpoint=checkpoint
        )
        return make_baked(parent(), TernarySettings(), context, config(**changes))


def keep(reporter: Reporter, folder: Path, data: dict[str, Path]) -> None:
    """Make the product with a checkpoint, and write all of it (a `Run` for `tests.killed`)."""
    product = made(data, reporter, folder / "checkpoint")
    save_file(dict(product.tensors or {}), folder / "tensors")
    (folder / "json").write_text(json.dumps([product.metrics, product.exhibits]))
    (folder / "ternary").write_bytes(product.payload or b"")
