"""Multiple choice by likelihood: picks the option with the highest log-probability per byte, given the prompt.

Normalising by bytes removes the penalty on long options (Brown et al., 2020, section 2.4; `acc_norm` of lm-eval).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.task_bank import Task
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.evaluation.intervals import wilson
from training_core.nn.cognate import Cognate


@dataclass(frozen=True, slots=True)
class FamilyScore:
    """Accuracy of one family with its 95 % interval; corrected for chance it is (p - chance) / (1 - chance).

    `outcomes` holds 1 for each item that was solved, else 0, (items,) float64.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    outcomes: Tensor

    def as_dict(self) -> dict[str, float]:
        """Return flat scalars for the ledger."""

        def corrected(p: float) -> float:
            return (p - self.chance) / (1 - self.chance)

        return {
            "accuracy": self.accuracy,
            "chance": self.chance,
            "corrected": corrected(self.accuracy),
            "corrected_low": corrected(self.low),
            "corrected_high": corrected(self.high),
            "items": len(self.outcomes),
        }


@torch.no_grad()
def score_tasks(model: Cognate, tokenizer: Tokenizer, tasks: Sequence[Task], batch_size: int) -> dict[str, FamilyScore]:
    """Return the score of every task family. Ties are resolved in favour of the first option."""
    sequences = [_Option(tokenizer, task, option) for task in tasks for option in task.options]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    scores = torch.zeros(len(sequences), dtype=torch.float64)
    model.eval()
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, value in zip(chosen, _log_likelihoods(model, [sequences[i] for i in chosen]), strict=True):
            scores[index] = value / sequences[index].num_bytes
    right: dict[str, list[bool]] = {}
    chance: dict[str, list[float]] = {}
    position = 0
    for task in tasks:
        part = scores[position : position + len(task.options)]
        position += len(task.options)
        right.setdefault(task.family, []).append(int(part.argmax()) == task.answer_index)
        chance.setdefault(task.family, []).append(1 / len(task.options))
    result = {}
    for family, outcomes in right.items():
        estimate = wilson(sum(outcomes), len(outcomes))
        level = sum(chance[family]) / len(outcomes)
        result[family] = FamilyScore(
            estimate.value, estimate.low, estimate.high, level, torch.tensor(outcomes, dtype=torch.float64)
        )
    return result


class _Option:
    """Token ids of prompt and option, and the index at which the option begins."""

    def __init__(self, tokenizer: Tokenizer, task: Task, option: str) -> None:
        prompt = tokenizer.encode(task.prompt).ids
        continuation = tokenizer.encode(f" {option}").ids
        self.ids = [END_OF_TEXT_ID, *prompt, *continuation]
        self.start = 1 + len(prompt)
        self.num_bytes = len(option.encode()) + 1


def _log_likelihoods(model: Cognate, options: Sequence[_Option]) -> Tensor:
    device = next(model.buffers(), next(model.parameters(), torch.zeros(0))).device
    longest = max(len(o.ids) for o in options)
    tokens = torch.full((len(options), longest), END_OF_TEXT_ID)
    mask = torch.zeros(len(options), longest - 1, dtype=torch.bool)
    for row, option in enumerate(options):
        tokens[row, : len(option.ids)] = torch.tensor(option.ids)
        mask[row, option.start - 1 : len(option.ids) - 1] = True
    tokens = tokens.to(device)
    log_p = model(tokens[:, :-1]).logits.double().log_softmax(-1)
    chosen = log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1).cpu()
    total: Tensor = (chosen * mask).sum(-1)
    return total
