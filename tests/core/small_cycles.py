"""Phase 6 on a small ternary model and the small data set; run as a program, it makes products and is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
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
from training_core.reporting import Reporter, SilentReporter
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


class _Deadly(SilentReporter):
    """Says what happens, and kills its process at one of these things."""

    def __init__(self, killed_at: str) -> None:
        self.killed_at = killed_at

    def progress(self, done: int, total: int, label: str) -> None:
        print(f"{label} {done}", flush=True)
        if f"{label} {done}" == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _run(name: str, killed_at: str, folders: dict[str, Path], folder: Path) -> None:
    torch.manual_seed(os.getpid())  # what else drew numbers in this process is of no account
    product = made(folders, _Deadly(killed_at), folder / f"{name} checkpoint")
    save_file(dict(product.tensors or {}), folder / name)
    (folder / f"{name}.json").write_text(json.dumps([product.metrics, product.exhibits]))
    (folder / f"{name}.ternary").write_bytes(product.payload or b"")


if __name__ == "__main__":
    torch.set_num_threads(1)
    given, out = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}, Path(sys.argv[2])
    for run, kill in (("whole", ""), *(("broken", at) for at in sys.argv[3:]), ("broken", "")):
        print(f"start {run}", flush=True)
        child = os.fork()
        if not child:
            _run(run, kill, given, out)
            os._exit(0)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
