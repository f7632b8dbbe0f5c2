"""Evaluation of phase 3: whether thoughts help, compared with controls that could show that they do not.

Metrics are in bits per token of held-out text unless stated otherwise. `_hard` means the hardest decile of tokens;
`_low` and `_high` are the bounds of the 95 % CI of a gain:

    thought_gain, thought_gain_hard             loss without thoughts minus loss with thoughts, same weights
    thought_gain_{shuffled,pause,random_reward}_hard   the same for the controls
    thought_over_{shuffled,pause,random_reward}_hard   gain of the trained thoughts minus that of the control, paired
    thought_gain_{difficulty,surprise,random}   thinking only where the rule decides to; *_bits_per_gflop per rule
    task_thought_gain, paraphrase_thought_gain  first answer token of held-out tasks, and of the same tasks paraphrased
    coherence_correlation                       Pearson's r between a thought's coherence and the bits it gains alone
    greedy_divergence                           normalised edit distance of thoughts from the greedy continuation
    undecodable_thoughts, thought_leaks         counts that must be 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.task_bank import Task
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.evaluation.windows import IGNORED, Windows
from training_core.nn.cognate import Cognate
from training_core.phases.p3_quiet_star.injection import SIGNALS, Rule, ThoughtInjector
from training_core.phases.p3_quiet_star.measurement import (
    LN2,
    Sample,
    ThoughtOutcome,
    choose_positions,
    correlation,
    divergence_from_greedy,
    flops,
    gain_per_token,
    measure_thoughts,
    shuffled,
    window_signals,
)
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thinker
from training_core.phases.p3_quiet_star.worked_solutions import material, paraphrase
from training_core.record import Estimate
from training_core.reporting import Reporter

GREEDY_POSITIONS = 24
RULES_MEASURED: tuple[Rule, ...] = ("everywhere", "difficulty", "surprise")


@dataclass(frozen=True, slots=True)
class ThoughtArm:
    """The gain on the hardest decile, in bits per token, of the trained thoughts or of a control."""

    name: str
    description: str
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Gating:
    """The gain of a gating rule over the whole text, its cost, and the share of positions at which it thinks."""

    name: str
    share: float
    gain: Estimate
    gflop_per_token: float

    @property
    def bits_per_gflop(self) -> float:
        """Bits gained per 1e9 additional floating-point operations, or 0 for a rule that never thinks."""
        return self.gain.value / self.gflop_per_token if self.gflop_per_token > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ThoughtAssessment:
    """The metrics, the arms and rules behind them, and the measured positions, from which the report draws examples."""

    metrics: Mapping[str, float]
    arms: Sequence[ThoughtArm]
    gating: Sequence[Gating]
    sample: Sample
    outcome: ThoughtOutcome


def helps(
    thinker: Thinker, parent: Cognate, injector: ThoughtInjector, windows: Windows, batch_size: int, seed: int
) -> bool:
    """Return whether thinking at difficult positions gains bits on `windows`, by the lower bound of the 95 % CI.

    This decides whether generation thinks by default. It is measured on validation text, so that no choice depends
    on the test set.
    """
    sample = choose_positions(parent, windows, batch_size, seed)
    outcome = measure_thoughts(thinker, windows, sample, batch_size, seed)
    chosen = decisions(thinker.cognate, injector, windows, batch_size)["difficulty"][sample.window, sample.position]
    return gain_per_token(sample, outcome.gain(), chosen).low > 0


def decisions(model: Cognate, injector: ThoughtInjector, windows: Windows, batch_size: int) -> dict[str, Tensor]:
    """Return where each rule thinks, (windows, length) bool; never in the padding after the text."""
    signals = window_signals(model, windows, batch_size)
    percentiles = injector.percentiles({name: torch.cat([batch[name] for batch in signals]) for name in SIGNALS})
    valid = windows.targets >= 0
    return {str(rule): injector.decide(rule, percentiles) & valid for rule in RULES_MEASURED}


def assess(
    parent: Cognate,
    thinker: Thinker,
    controls: Mapping[str, Thinker],
    injector: ThoughtInjector,
    windows: Windows,
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    batch_size: int,
    seed: int,
    reporter: Reporter,
) -> ThoughtAssessment:
    """Evaluate a thinker and its controls on held-out `windows` and `tasks`."""

    def progress(done: int, total: int) -> None:
        reporter.progress(done, total, "measuring thoughts")

    sample = choose_positions(parent, windows, batch_size, seed)
    own = measure_thoughts(thinker, windows, sample, batch_size, seed, progress=progress)
    arms, metrics = _arms(thinker, controls, windows, sample, own, batch_size, seed)
    metrics |= gain_per_token(sample, own.gain()).metrics("thought_gain")
    gating = _gating(thinker, injector, windows, sample, own, batch_size, seed)
    for rule in gating:
        metrics[f"thought_bits_per_gflop_{rule.name}"] = rule.bits_per_gflop
        metrics[f"thought_share_{rule.name}"] = rule.share
        if rule.name != "everywhere":
            metrics |= rule.gain.metrics(f"thought_gain_{rule.name}")
    metrics |= _on_tasks(thinker, tasks, tokenizer, batch_size, seed)
    usefulness = (own.without[:, None] - own.alone) / LN2
    metrics["coherence_correlation"] = correlation(own.score, usefulness)
    few = torch.arange(len(sample.window)) < 0  # all False; the next line selects a random subset
    few[torch.randperm(len(few), generator=torch.Generator().manual_seed(seed))[:GREEDY_POSITIONS]] = True
    metrics["greedy_divergence"] = divergence_from_greedy(thinker, windows, sample.only(few), own.tokens[few])
    metrics["undecodable_thoughts"] = undecodable(own.tokens, tokenizer)
    metrics["thought_leaks"] = leaks(thinker, windows.inputs[:1], seed)
    metrics["mean_thought_tokens"] = float((own.tokens != ENDED).sum(-1).double().mean())
    return ThoughtAssessment(metrics, arms, gating, sample, own)


def _arms(
    thinker: Thinker,
    controls: Mapping[str, Thinker],
    windows: Windows,
    sample: Sample,
    own: ThoughtOutcome,
    batch_size: int,
    seed: int,
) -> tuple[list[ThoughtArm], dict[str, float]]:
    hard = sample.only(sample.hard)
    mine = ThoughtOutcome(*(getattr(own, name)[sample.hard] for name in ThoughtOutcome.__slots__))
    arms = [
        ThoughtArm(
            "thoughts",
            "the trained model with its own thoughts, over itself with thoughts removed",
            gain_per_token(hard, mine.gain()),
        )
    ]
    metrics = arms[0].gain.metrics("thought_gain_hard")
    others = {
        "shuffled": measure_thoughts(thinker, windows, hard, batch_size, seed, shuffled(mine.tokens, seed)),
        **{name: measure_thoughts(c, windows, hard, batch_size, seed) for name, c in controls.items()},
    }
    descriptions = {
        "shuffled": "the same model with the thoughts of another position",
        "pause": "trained alike with learned tokens that have no content: equal compute",
        "random reward": "trained alike with noise for a reward",
    }
    for name, outcome in others.items():
        key = name.replace(" ", "_")
        arms.append(ThoughtArm(name, descriptions.get(name, name), gain_per_token(hard, outcome.gain())))
        metrics |= arms[-1].gain.metrics(f"thought_gain_{key}_hard")
        metrics |= gain_per_token(hard, mine.gain() - outcome.gain()).metrics(f"thought_over_{key}_hard")
    return arms, metrics


def _gating(
    thinker: Thinker,
    injector: ThoughtInjector,
    windows: Windows,
    sample: Sample,
    own: ThoughtOutcome,
    batch_size: int,
    seed: int,
) -> list[Gating]:
    """Evaluate each rule over the whole text; `random` thinks at random positions, about as many as `surprise`."""
    valid = windows.targets >= 0
    decided = decisions(thinker.cognate, injector, windows, batch_size)
    share = float(decided["surprise"].sum() / valid.sum())
    uniform = torch.rand(valid.shape, generator=torch.Generator().manual_seed(seed))
    decided["random"] = (uniform < share) & valid
    _, per_position = flops(thinker, windows.inputs[:1].to(thinker.cognate.embedding.weight.device))
    rules = []
    for name, where in decided.items():
        chosen = where[sample.window, sample.position]
        portion = float(where.sum() / valid.sum())
        gain = gain_per_token(sample, own.gain(), chosen)
        rules.append(Gating(name, portion, gain, portion * per_position / 1e9))
    return rules


def _on_tasks(
    thinker: Thinker, tasks: Sequence[Task], tokenizer: Tokenizer, batch_size: int, seed: int
) -> dict[str, float]:
    """Return the gain on the first answer token, for tasks in the bank's form and for the same tasks paraphrased.

    A model that has only memorised the bank's form gains on the former alone.
    """
    reworded = [(task, other) for task in material(tasks) if (other := paraphrase(task)) is not None]
    metrics: dict[str, float] = {}
    for name, chosen in (("task", [a for a, _ in reworded]), ("paraphrase", [b for _, b in reworded])):
        windows, sample = _questions(chosen, tokenizer, thinker.cognate.config.max_seq_len)
        outcome = measure_thoughts(thinker, windows, sample, batch_size, seed)
        metrics |= gain_per_token(sample, outcome.gain()).metrics(f"{name}_thought_gain")
    return metrics


def _questions(tasks: Sequence[Task], tokenizer: Tokenizer, max_seq_len: int) -> tuple[Windows, Sample]:
    """Return one window per task, and the last prompt token of each as the position to think at.

    Prompts longer than `max_seq_len` are skipped.

    Raises:
        ValueError: when all prompts are too long.
    """
    rows = []
    for task in tasks:
        prompt = [END_OF_TEXT_ID, *tokenizer.encode(task.prompt).ids]
        if len(prompt) <= max_seq_len:
            rows.append((prompt, tokenizer.encode(f" {task.answer}").ids[0]))
    if not rows:
        raise ValueError(
            f"none of {len(tasks)} tasks fits max_seq_len = {max_seq_len}: put shorter tasks into the suite, or "
            "raise max_seq_len"
        )
    longest = max(len(prompt) for prompt, _ in rows)
    inputs = torch.full((len(rows), longest), END_OF_TEXT_ID)
    targets = torch.full((len(rows), longest), IGNORED)
    for number, (prompt, answer) in enumerate(rows):
        inputs[number, : len(prompt)] = torch.tensor(prompt)
        targets[number, len(prompt) - 1] = answer
    count = torch.arange(len(rows))
    documents = torch.where(targets >= 0, count[:, None], IGNORED)
    position = (targets >= 0).int().argmax(-1)
    ones = torch.ones(len(rows), dtype=torch.float64)
    sample = Sample(count, position, count, ones > 0, ones, len(rows))
    return Windows(inputs, targets, documents, torch.ones(len(rows), dtype=torch.long)), sample


def undecodable(tokens_MNL: Tensor, tokenizer: Tokenizer) -> int:
    """Count the thoughts that do not decode to text.

    These contain an unknown or end-of-text id, or tokens after their end, or decode to an empty string although they
    have tokens. The bytes of a truncated character count as text.
    """
    vocab = tokenizer.get_vocab_size()
    bad = 0
    for row in tokens_MNL.flatten(0, 1).tolist():
        end = row.index(ENDED) if ENDED in row else len(row)
        ids = row[:end]
        whole = all(END_OF_TEXT_ID < token < vocab for token in ids) and all(t == ENDED for t in row[end:])
        bad += not (whole and (not ids or tokenizer.decode(ids) != ""))
    return bad


@torch.no_grad()
def leaks(thinker: Thinker, tokens_BS: Tensor, seed: int) -> int:
    """Count the thought tokens and logits with thoughts that change in any bit when a token after their position does.

    A causal model has none.
    """
    tokens = tokens_BS.to(thinker.cognate.embedding.weight.device)
    seq = tokens.shape[1]
    positions = torch.arange(0, seq, max(1, seq // 8), device=tokens.device)[None].expand(tokens.shape[0], -1)

    def everything(inputs: Tensor) -> tuple[Tensor, Tensor]:
        trace = thinker.cognate.trace(inputs)
        thoughts = thinker.think(trace, positions, torch.Generator().manual_seed(seed))
        base = trace.y.gather(1, positions[..., None].expand(-1, -1, trace.y.shape[-1]))
        return thoughts.tokens, thinker.talk(base, thoughts).together

    original = everything(tokens)
    moved = 0
    for cut in (1, seq // 2, seq - 1):
        changed = tokens.clone()
        changed[:, cut] = (changed[:, cut] + 1) % thinker.cognate.config.vocab_size
        before = (positions < cut)[0]
        for old, new in zip(original, everything(changed), strict=True):
            moved += int((old[:, before] != new[:, before]).sum())
    return moved
