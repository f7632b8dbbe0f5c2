"""Phase 7 on a small ternary model and the small data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from forge_resources.sandbox import open_sandbox
from tests.core.small_cycles import parent
from tests.nested import nested
from training_core.nn.ternary_cognate import TernarySettings
from training_core.phases.p7_experts import evaluator
from training_core.phases.p7_experts.config import ExpertsConfig
from training_core.phases.p7_experts.phase import make_experts
from training_core.reporting import Reporter
from training_core.store.bundle import Product
from training_core.tasks.questions.bank import QuestionBank
from training_core.tasks.questions.context import QuestionContext
from training_core.tasks.questions.ladder import cells, make
from training_core.tasks.questions.question import Question

TINY = {
    "supervised_steps": 3, "supervised_batch": 4, "supervised_lr": 0.3, "reward_steps": 2, "reward_batch": 3,
    "reward_max_tokens": 3, "few_shot_population": 10, "few_shot_rounds": 2, "few_shot_shots": 4,
    "search_population": 6, "search_generations": 3, "search_seeds": 2, "search_questions": 24, "search_windows": 2,
    "search_window_tokens": 32, "search_latency_questions": 2, "search_latency_repeats": 1,
    "search_latency_bound": 1000.0, "profile_questions": 8, "profile_resamples": 4, "expert_questions": 8,
    "chosen_questions": 6, "measured_questions": 6, "routed_tokens": 8, "router_texts": 12, "router_questions": 6,
    "most_experts": 3, "checkpoint_interval_s": 0.0,
}  # fmt: skip


FAMILIES = ("copying", "counting", "lists", "ordering")


def bank(families: Sequence[str] = FAMILIES) -> QuestionBank:
    """Return a bank of levels 1 and 2: per family 12 training, 8 validation and 8 test questions."""
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
    """Return seconds that do not depend on the machine: the number of passes through the structure."""
    adapts = structure.first_layer < evaluator.space.num_layers
    return structure.num_supervision * structure.cycles * (1 + structure.latent_steps) + 0.5 * adapts


def told(product: Product) -> str:
    """Return everything in a product but the measured seconds, as JSON."""
    timed = {"first_pass_over_one_pass", "second_pass_over_one_pass"}
    metrics = {key: value for key, value in product.metrics.items() if key not in timed}
    return json.dumps([metrics, product.exhibits["experts"] | {"costs": []}, product.model_config])


def keep(reporter: Reporter, folder: Path, data: dict[str, Path]) -> None:
    """Make the product with a checkpoint and a fake clock, and write all of it (a `Run` for `tests.killed`)."""
    evaluator.Evaluator._seconds = fixed_time  # type: ignore[method-assign]
    product = made(data, reporter, folder / "checkpoint")
    save_file(dict(product.tensors or {}), folder / "tensors")
    (folder / "json").write_text(told(product))
