"""What is left of the chain's full-precision model in every later one, paired by document and by item.

A chain of models that each keep 99 % of their parent has lost a tenth after ten of them. Each model's record
(`evaluation.safetensors`) therefore carries the counts of the merged model, the last one before ternary weights, and
hands them on, so that every descendant is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from training_core.evaluation.intervals import rate, wilson

ORIGIN = "merged_model"
OUTCOMES = "task."  # begins the names of the outcomes of each family's items in a record
_HANDED_ON = ("nats", "correct", OUTCOMES)


def handed_on(records: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the counts of the merged model from the records of a model's parents; none if it is no ancestor.

    Their names begin with `merged_model.`, under which they are to be stored with the model.
    """
    if (origin := records.get(ORIGIN)) is not None:
        return {f"{ORIGIN}.{key}": counts for key, counts in origin.items() if key.startswith(_HANDED_ON)}
    inherited = [record for record in records.values() if f"{ORIGIN}.nats" in record]
    return {key: counts for record in inherited[:1] for key, counts in record.items() if key.startswith(f"{ORIGIN}.")}


def retention(
    own: Mapping[str, Tensor],
    origin: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    chances: Mapping[str, float],
) -> dict[str, float]:
    """Return the metrics of a model's record beside that of `handed_on`, with bootstrap intervals.

    Next-token accuracy and bits per byte are ratios on all documents, accuracy on each source's as well. For each
    family of tasks that the merged model passes (the lower bound of its 95 % CI is above chance), the ratio is of
    accuracy above chance: a model that guesses retains nothing.
    """
    correct, nats = origin[f"{ORIGIN}.correct"], origin[f"{ORIGIN}.nats"]
    metrics = rate(own["nats"], nats).metrics(f"bits_per_byte_ratio_to_{ORIGIN}")
    metrics |= rate(own["correct"], correct).metrics(f"retention_to_{ORIGIN}")
    for name, where in sources.items():
        metrics |= rate(own["correct"][where], correct[where]).metrics(f"retention_to_{ORIGIN}_on_{name}")
    for family, chance in chances.items():
        before = origin.get(f"{ORIGIN}.{OUTCOMES}{family}")
        if before is not None and wilson(float(before.sum()), len(before)).low > chance:
            kept = rate(own[f"{OUTCOMES}{family}"] - chance, before - chance)
            metrics |= kept.metrics(f"retention_to_{ORIGIN}_in_{family}")
    return metrics
