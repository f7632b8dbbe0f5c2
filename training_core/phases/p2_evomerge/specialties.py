"""Whether each specialist is the best of the three in what it is named for: what there is to merge."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from training_core.evaluation.intervals import paired_difference
from training_core.evaluation.result import ANSWERED
from training_core.evaluation.retention import OUTCOMES
from training_core.store.bundle import Bundle

SPECIALISTS = ("cognate_reasoning", "cognate_memory", "cognate_speed")
# What the answers of a specialist are compared on: questions with several hops, and long stories.
_NAMED_FOR = {"reasoning": ("two_hops", "three_hops", "four_hops"), "memory": ("long_story",)}


def leads(specialists: Mapping[str, Bundle]) -> dict[str, float]:
    """Return the lead of the reasoning and of the memory specialist over the better of the other two in their own
    questions, paired by question, and the milliseconds per token of the speed specialist over those of the faster of
    the other two.

    A model that was measured on no question about the world has no lead.
    """
    counts = {name: specialists[name].evaluation_counts() for name in SPECIALISTS}
    metrics: dict[str, float] = {}
    for kind, families in _NAMED_FOR.items():
        keys = [f"{OUTCOMES}{ANSWERED}{family}" for family in families]
        if all(key in record for key in keys for record in counts.values()):
            right = {name: torch.cat([record[key] for key in keys]) for name, record in counts.items()}
            own = right.pop(f"cognate_{kind}")
            best = max(right.values(), key=lambda outcomes: float(outcomes.mean()))
            metrics |= paired_difference(own, best).metrics(f"{kind}_lead")
    latency = {name: specialists[name].lineage().metrics["latency_ms_per_token"] for name in SPECIALISTS}
    own_latency = latency.pop("cognate_speed")
    return metrics | {"speed_latency_ratio": own_latency / min(latency.values())}
