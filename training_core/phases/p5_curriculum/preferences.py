"""Preference accuracy on held-out scenario pairs: whether the better of two written continuations is more likely.

The preference margin of a pair with the situation x, in nats per byte, with or without a prompt u in front, is

    m = log P(better | [u,] x) / |better| - log P(worse | [u,] x) / |worse|.

The preference is correct when m > 0 (m = 0 counts half). Log-likelihoods are normalised per byte, as in the suite's
multiple choice, because their sum would favour the shorter continuation whatever it says. CIs are bootstrapped over
held-out *templates*, because the fillings of one template are not independent evidence.

**Does not cover**: whether a model means it. These are likelihoods of sentences that people wrote.

Shape legend: N continuations, S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.evaluation.intervals import difference_of_proportions, proportion
from training_core.nn.cognate import Cognate
from training_core.phases.p5_curriculum.config import CharacterConfig
from training_core.phases.p5_curriculum.eudaimonia import rule_prompt
from training_core.phases.p5_curriculum.scenarios import RULES, ScenarioPair, scenario_pairs
from training_core.record import Estimate

ROWS_AT_ONCE = 32
PAIRS_SHOWN = 3  # per rule, each from a different template


def measure_preferences(
    parent: Cognate, model: Cognate, tokenizer: Tokenizer, config: CharacterConfig
) -> dict[str, dict[str, Any]]:
    """Measure the preferences of the parent, of the parent with each rule as a prompt, and of the model.

    Returns `metrics` and the exhibit (`shown`).
    """
    pairs = [
        p
        for rule in RULES
        for p in scenario_pairs(rule.name, "held_out", config.rules.fillings_per_template, config.training.seed)
    ]
    prompts = {rule.name: rule_prompt(rule, tokenizer) for rule in RULES}
    margins_by_model = {
        "base": margins(parent, tokenizer, pairs),
        "prompted": margins(parent, tokenizer, pairs, [prompts[pair.rule] for pair in pairs]),
        "baked": margins(model, tokenizer, pairs),
    }
    metrics: dict[str, float] = {}
    rules: dict[str, Any] = {}
    for rule in (None, *prompts):
        of = [number for number, pair in enumerate(pairs) if rule in (None, pair.rule)]
        chosen = [pairs[number] for number in of]
        own = {name: [each[number] for number in of] for name, each in margins_by_model.items()}
        suffix = "" if rule is None else f"_{rule}"
        estimates = {name: preference(chosen, each) for name, each in own.items()}
        for name, estimate in estimates.items():
            metrics |= estimate.metrics(f"preference_{name}{suffix}")
        metrics |= preference_gain(chosen, own["baked"], own["base"]).metrics(f"preference_gain{suffix}")
        if rule is not None:
            rules[rule] = {name: estimate.document() for name, estimate in estimates.items()}
    each_template = range(0, len(pairs), config.rules.fillings_per_template)
    shown = [
        {
            "rule": pairs[number].rule,
            "situation": pairs[number].situation,
            "better": pairs[number].better.strip(),
            "worse": pairs[number].worse.strip(),
            "base_margin": margins_by_model["base"][number],
            "baked_margin": margins_by_model["baked"][number],
        }
        for rule in prompts
        for number in [n for n in each_template if pairs[n].rule == rule][:PAIRS_SHOWN]
    ]
    return {"metrics": metrics, "shown": {"rules": rules, "pairs": shown}}


@torch.no_grad()
def log_likelihoods(
    model: Cognate,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Tensor:
    """Return sum_t log P(y_t | END_OF_TEXT, context, y_<t) of (context, continuation) ids, float64 (N) in nats."""
    # Rows of similar length share a batch, which saves padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    result = torch.zeros(len(rows), dtype=torch.float64)
    device = next(model.parameters()).device
    model.eval()
    for start in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[start : start + ROWS_AT_ONCE]
        longest = 1 + max(len(rows[i][0]) + len(rows[i][1]) for i in chosen)
        tokens_NS = torch.full((len(chosen), longest), END_OF_TEXT_ID)
        mask_NS = torch.zeros(len(chosen), longest - 1, dtype=torch.bool)
        for row, index in enumerate(chosen):
            context, continuation = rows[index]
            end = 1 + len(context) + len(continuation)
            tokens_NS[row, 1:end] = torch.tensor([*context, *continuation])
            mask_NS[row, len(context) : end - 1] = True
        tokens_NS = tokens_NS.to(device)
        log_p_NSV = model(tokens_NS[:, :-1]).logits.double().log_softmax(-1)
        log_p_NS = log_p_NSV.gather(-1, tokens_NS[:, 1:, None])[..., 0].cpu()
        result[chosen] = (log_p_NS * mask_NS).sum(-1)
    return result


def margins(
    model: Cognate, tokenizer: Tokenizer, pairs: Sequence[ScenarioPair], prompts: Sequence[Sequence[int]] | None = None
) -> list[float]:
    """Return the preference margin m of each pair, in nats per byte; `prompts` (one per pair) go in front."""
    rows, lengths = [], []
    for number, pair in enumerate(pairs):
        context = [*(prompts[number] if prompts is not None else ()), *tokenizer.encode(pair.situation).ids]
        for text in (pair.better, pair.worse):
            rows.append((context, tokenizer.encode(text).ids))
            lengths.append(len(text.encode()))
    per_byte = (log_likelihoods(model, rows) / torch.tensor(lengths, dtype=torch.float64)).view(-1, 2)
    result: list[float] = (per_byte[:, 0] - per_byte[:, 1]).tolist()
    return result


def preference(pairs: Sequence[ScenarioPair], of: Sequence[float]) -> Estimate:
    """Return the share of pairs with a positive margin, with a 95 % CI by bootstrap over templates."""
    right, count = _by_template(pairs, of)
    return proportion(right, count)


def preference_gain(pairs: Sequence[ScenarioPair], after: Sequence[float], before: Sequence[float]) -> Estimate:
    """Return the difference of two preference accuracies on the same pairs, with a CI by paired bootstrap.

    Margins that are all equal are those of one model; it differs from itself by exactly 0.
    """
    if list(after) == list(before):
        return Estimate(0.0, 0.0, 0.0)
    (right, count), (other, _) = _by_template(pairs, after), _by_template(pairs, before)
    return difference_of_proportions(right, other, count)


def _by_template(pairs: Sequence[ScenarioPair], of: Sequence[float]) -> tuple[Tensor, Tensor]:
    names = sorted({pair.template for pair in pairs})
    right, count = np.zeros(len(names)), np.zeros(len(names))
    for pair, margin in zip(pairs, of, strict=True):
        right[names.index(pair.template)] += 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
        count[names.index(pair.template)] += 1
    return torch.from_numpy(right), torch.from_numpy(count)
