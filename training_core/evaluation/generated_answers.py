"""Answers that a model writes: greedy decoding after the prompt of a task, compared with the known answer.

The format is the corpus' own: `Question: ...\\nAnswer: word`, or a worked solution and ` The answer is word`.

**Does not cover** other wordings: an answer in a sentence of its own counts as wrong, as does a call of a tool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from training_core.data.task_bank import ANSWER_CUE, Task
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.evaluation.result import ANSWERED
from training_core.nn.cognate import Cognate
from training_core.tasks.questions.question import normalise_answer
from training_core.text.sampling import continue_rows

ANSWER_TOKENS = 64  # the longest worked solution of 3,200 questions has 57 with its answer, at a vocabulary of 700


def answer_tasks(model: Cognate, tokenizer: Tokenizer, tasks: Sequence[Task]) -> dict[str, torch.Tensor]:
    """Return the outcomes of generated answers by family, named `answered_` and the family: (items,) float64."""
    prompts = [tokenizer.encode(task.prompt).ids for task in tasks]
    order = sorted(range(len(tasks)), key=lambda i: len(prompts[i]))  # rows of a batch are about equally long
    drawn = continue_rows(model, [prompts[i] for i in order], ANSWER_TOKENS, torch.Generator(), temperature=0.0)
    written = {
        i: tokenizer.decode([token for token in row.ids if token != END_OF_TEXT_ID])
        for i, row in zip(order, drawn, strict=True)
    }
    right: dict[str, list[float]] = {}
    for i, task in enumerate(tasks):
        is_right = normalise_answer(final_answer(written[i])) == normalise_answer(task.answer)
        right.setdefault(f"{ANSWERED}{task.family}", []).append(float(is_right))
    return {family: torch.tensor(outcomes, dtype=torch.float64) for family, outcomes in right.items()}


def final_answer(text: str) -> str:
    """Return the answer in a continuation: what follows the last ` The answer is ` of its first line, else that line.

    A model that goes on to a question of its own has ended its answer there.
    """
    return text.split("\n", 1)[0].rpartition(ANSWER_CUE.strip())[2].strip()
