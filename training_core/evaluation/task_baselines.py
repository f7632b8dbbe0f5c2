"""Outcomes of rules without understanding on the items of the suite. They depend on no model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training_core.data.task_bank import Task
from training_core.evaluation.result import ANSWERED
from training_core.world.baselines import BASELINES, Majorities, outcomes
from training_core.world.checker import check_document
from training_core.world.minimal_pairs import MinimalPair, frequency_outcomes

Outcomes = Mapping[str, Mapping[str, Tensor]]  # by family and baseline, (items,) float64


def world_baselines(tasks: Sequence[Task], counts: Majorities) -> Outcomes:
    """Return what the rules of `world.baselines` reach on questions about the world, which are read back from their
    prompts: among the options of each family's items, and under `answered_` among all answers that a story offers.

    counts: how often each answer is right in training, by the world's own families.

    Raises:
        ValueError: when the world's reader finds another answer than the task has.
    """
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for task in tasks:
        read = check_document(task.prompt)
        true = read.answers[0].true if read.answers else None
        if true is None or true.word != task.answer:
            raise ValueError(
                f"the world reads another answer than {task.answer!r} from {task.prompt!r}: make the task again from "
                f"{task.generator!r}"
            )
        events = [event for sentence in read.story.sentences for event in sentence.events or ()]
        for name, choices in ((task.family, task.options), (f"{ANSWERED}{task.family}", true.candidates)):
            found[name].append(outcomes(events, true.query, true.word, choices, counts.get(true.family, {})))
    return {
        family: {name: torch.tensor([one[name] for one in of], dtype=torch.float64) for name in BASELINES}
        for family, of in found.items()
    }


def pair_baselines(pairs: Sequence[MinimalPair], counts: Mapping[str, int]) -> Outcomes:
    """Return what the word frequencies of the training text reach on minimal pairs, by phenomenon."""
    phenomena = dict.fromkeys(pair.phenomenon for pair in pairs)
    return {
        phenomenon: {
            "word_frequency": torch.tensor(
                frequency_outcomes([pair for pair in pairs if pair.phenomenon == phenomenon], counts),
                dtype=torch.float64,
            )
        }
        for phenomenon in phenomena
    }
