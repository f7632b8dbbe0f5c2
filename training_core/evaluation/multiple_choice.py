"""Multiple choice by likelihood: picks the option with the highest log-probability per byte, given the prompt.

Normalising by bytes removes the penalty on long options (Brown et al., 2020, section 2.4; `acc_norm` of lm-eval).
Minimal pairs are compared by the log-probability of the whole sentence (Warstadt et al., 2020, section 4).

Shape legend: B rows, S sequence, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.task_bank import Task
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.evaluation.family_score import FamilyScore
from training_core.nn.cognate import Cognate
from training_core.world.minimal_pairs import MinimalPair, pair_outcomes


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids of END_OF_TEXT, a context and its continuation, which begins at index `start`."""

    ids: tuple[int, ...]
    start: int


def score_tasks(model: Cognate, tokenizer: Tokenizer, tasks: Sequence[Task], batch_size: int) -> dict[str, FamilyScore]:
    """Return the score of every task family. Of several options with the highest score each counts in equal parts."""
    options = [_continuation(tokenizer, task.prompt, f" {option}") for task in tasks for option in task.options]
    scores = iter(log_likelihoods(model, options, batch_size).tolist())
    right: dict[str, list[float]] = {}
    chance: dict[str, list[float]] = {}
    for task in tasks:
        part = [next(scores) / (len(option.encode()) + 1) for option in task.options]
        leading = [place for place, score in enumerate(part) if score == max(part)]
        right.setdefault(task.family, []).append((task.answer_index in leading) / len(leading))
        chance.setdefault(task.family, []).append(1 / len(task.options))
    return {
        family: FamilyScore(torch.tensor(outcomes, dtype=torch.float64), sum(chance[family]) / len(outcomes))
        for family, outcomes in right.items()
    }


def score_pairs(
    model: Cognate, tokenizer: Tokenizer, pairs: Sequence[MinimalPair], batch_size: int
) -> dict[str, FamilyScore]:
    """Return the score of every phenomenon: the good sentence has the higher log-probability; ties count half."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    scores = log_likelihoods(model, [_continuation(tokenizer, "", text) for text in texts], batch_size).tolist()
    right: dict[str, list[float]] = {}
    for pair, outcome in zip(pairs, pair_outcomes(scores[::2], scores[1::2]), strict=True):
        right.setdefault(pair.phenomenon, []).append(outcome)
    return {
        phenomenon: FamilyScore(torch.tensor(outcomes, dtype=torch.float64), 0.5)
        for phenomenon, outcomes in right.items()
    }


@torch.no_grad()
def log_likelihoods(model: Cognate, asked: Sequence[Continuation], batch_size: int) -> Tensor:
    """Return the natural log-probability of each continuation given its context, (continuations,) float64.

    Continuations whose input begins another one's, as all of one token after the same prompt do, are read from the same
    row of logits.
    """
    model.eval()
    device = next(model.buffers(), next(model.parameters(), torch.zeros(0))).device
    readers: dict[tuple[int, ...], list[int]] = {}  # rows to compute, and the continuations that each of them scores
    for index in sorted(range(len(asked)), key=lambda i: asked[i].ids[:-1], reverse=True):
        inputs = asked[index].ids[:-1]
        last = next(reversed(readers), ())  # in this order an input follows directly those that it begins
        row = last if last[: len(inputs)] == inputs else inputs
        readers.setdefault(row, []).append(index)
    totals = torch.zeros(len(asked), dtype=torch.float64)
    order = sorted(readers, key=len)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        inputs_BS = torch.full((len(rows), len(rows[-1])), END_OF_TEXT_ID)
        for place, row in enumerate(rows):
            inputs_BS[place, : len(row)] = torch.tensor(row)
        places = [
            (place, index, at)
            for place, row in enumerate(rows)
            for index in readers[row]
            for at in range(asked[index].start, len(asked[index].ids))
        ]
        row_N, index_N, at_N = torch.tensor(places).unbind(1)
        logits_NV = model.logits(model.answers(inputs_BS.to(device))[row_N.to(device), at_N.to(device) - 1])
        targets_N = torch.tensor([asked[index].ids[at] for _, index, at in places], device=device)
        found_N = logits_NV.double().log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]
        totals.index_add_(0, index_N, found_N.cpu())
    return totals


def _continuation(tokenizer: Tokenizer, context: str, continuation: str) -> Continuation:
    before = (END_OF_TEXT_ID, *tokenizer.encode(context).ids)
    return Continuation((*before, *tokenizer.encode(continuation).ids), len(before))
