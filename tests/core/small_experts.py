"""Phase 7 on a small ternary model and the small data set; run as a program, it makes products and is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from forge_resources.sandbox import open_sandbox
from tests.core.small_cycles import parent
from tests.nested import nested
from training_core.nn.ternary_cognate import TernarySettings
from training_core.phases.p7_experts import evaluator
from training_core.phases.p7_experts.config import ExpertsConfig
from training_core.phases.p7_experts.phase import make_experts
from training_core.reporting import Reporter, SilentReporter
from training_core.store.bundle import Product
from training_core.tasks.questions.bank import QuestionBank
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.ladder import cells, make
from training_core.tasks.questions.question import Question

TINY = {
    "supervised_steps": 3, "supervised_batch": 4, "supervised_lr": 0.3, "reward_steps": 2, "reward_batch": 3,
    "reward_max_tokens": 3, "few_shot_population": 10, "few_shot_rounds": 2, "few_shot_shots": 4,
    "search_population": 8, "search_generations": 3, "search_seeds": 2, "search_questions": 40, "search_windows": 2,
    "search_window_tokens": 32, "search_latency_questions": 2, "search_latency_repeats": 1,
    "search_latency_bound": 1000.0, "profile_questions": 8, "profile_resamples": 4, "expert_questions": 8,
    "chosen_questions": 6, "measured_questions": 6, "routed_tokens": 8, "router_texts": 12, "router_questions": 6,
    "most_experts": 3, "checkpoint_interval_s": 0.0,
}  # fmt: skip


FAMILIES = ("copying", "counting", "lists", "ordering")


def bank(families: Sequence[str] = FAMILIES) -> QuestionBank:
    """Twelve questions for training and eight held out, twice, of each of four families of the easiest levels."""
    parts: list[list[Question]] = [[], [], []]
    for family in families:
        kinds = [cell for level in (1, 2) for cell in cells(level) if cell.family == family]
        made = list(dict.fromkeys(make(kinds[seed % len(kinds)], seed) for seed in range(90)))
        distinct = list({question.prompt: question for question in made}.values())
        for part, (start, end) in zip(parts, ((0, 12), (12, 20), (20, 28)), strict=True):
            part += distinct[start:end]
    return QuestionBank(*parts, spent_usd=0.0, note="")


def config(**changes: object) -> ExpertsConfig:
    return nested(ExpertsConfig, **(TINY | changes))


def made(
    folders: dict[str, Path],
    reporter: Reporter,
    checkpoint: Path | None,
    questions: QuestionBank | None = None,
    **changes: object,
) -> Product:
    with open_sandbox("embedded") as sandbox:
        context = QuestionContext(
            folders=folders,
            bank=bank() if questions is None else questions,
            sandbox=sandbox,
            reporter=reporter,
            checkpoint=checkpoint,
        )
        return make_experts(parent(), TernarySettings(), context, config(**changes))


def fixed_time(evaluator: evaluator.Evaluator, structure: evaluator.Structure) -> float:
    """Seconds that do not depend on the machine: so many passes as a structure has."""
    adapts = structure.first_layer < evaluator.space.num_layers
    return structure.num_supervision * structure.cycles * (1 + structure.latent_steps) + 0.5 * adapts


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
    evaluator.Evaluator._seconds = fixed_time  # type: ignore[method-assign]
    product = made(folders, _Deadly(killed_at), folder / f"{name} checkpoint")
    save_file(dict(product.tensors or {}), folder / name)
    timed = {"first_pass_over_one_pass", "second_pass_over_one_pass"}
    metrics = {key: value for key, value in product.metrics.items() if key not in timed}
    shown = product.exhibits["experts"] | {"costs": []}
    (folder / f"{name}.json").write_text(json.dumps([metrics, shown, product.model_config]))


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
