"""Do thoughts help? Every number of phase 3 that the ledger and the gates read, and the controls that could say no.

Metrics, in bits per token of held-out text unless named otherwise (`_hard`: on its hardest decile; gains have `_low`
and `_high`, the ends of the 95 % interval):

    thought_gain, thought_gain_hard             without thoughts less with thoughts, the same weights
    thought_gain_{shuffled,pause,random_reward}_hard   the same for the controls
    thought_over_{shuffled,pause,random_reward}_hard   gain of the trained thoughts less that of the control, paired
    thought_gain_{difficulty,surprise,random}   thinking only where the rule says; *_bits_per_gflop for each rule
    task_thought_gain, paraphrase_thought_gain  first answer token of held-out tasks, and of the same tasks reworded
    coherence_correlation                       Pearson's, of a thought's coherence with the bits it gains alone
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
    Outcome,
    Sample,
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
from training_core.phases.p3_quiet_star.worked_solutions import paraphrase
from training_core.record import Estimate
from training_core.reporting import Reporter

GREEDY_POSITIONS = 24
RULES_MEASURED: tuple[Rule, ...] = ("everywhere", "difficulty", "surprise")


@dataclass(frozen=True, slots=True)
class Arm:
    """Bits per token gained on the hardest decile by the trained thoughts or by a control."""

    name: str
    description: str
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Gating:
    """What a rule of where to think gains over the whole text, and what it costs."""

    name: str
    share: float
    gain: Estimate
    gflop_per_token: float

    @property
    def bits_per_gflop(self) -> float:
        """Bits gained per 1e9 additional floating-point operations; 0 for a rule that never thinks."""
        return self.gain.value / self.gflop_per_token if self.gflop_per_token > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Assessment:
    """Metrics, the arms and rules they come from, and the positions and outcomes for a person to look at."""

    metrics: Mapping[str, float]
    arms: Sequence[Arm]
    gating: Sequence[Gating]
    sample: Sample
    outcome: Outcome


def helps(
    thinker: Thinker, parent: Cognate, injector: ThoughtInjector, windows: Windows, batch_size: int, seed: int
) -> bool:
    """Whether thinking where it is difficult gains bits on `windows`, at the low end of the 95 % interval.

    Decides what generation does; on validation text, so that the test text remains unseen by any choice.
    """
    sample = choose_positions(parent, windows, batch_size, seed)
    outcome = measure_thoughts(thinker, windows, sample, batch_size, seed)
    chosen = decisions(thinker.cognate, injector, windows, batch_size)["difficulty"][sample.window, sample.position]
    return gain_per_token(sample, outcome.gain(), chosen).low > 0


def decisions(model: Cognate, injector: ThoughtInjector, windows: Windows, batch_size: int) -> dict[str, Tensor]:
    """Where each rule thinks, (windows, length) bool; never behind the text."""
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
) -> Assessment:
    """Measure a thinker and its controls on held-out `windows` and `tasks`."""

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
    few = torch.arange(len(sample.window)) < 0
    few[torch.randperm(len(few), generator=torch.Generator().manual_seed(seed))[:GREEDY_POSITIONS]] = True
    metrics["greedy_divergence"] = divergence_from_greedy(thinker, windows, sample.only(few), own.tokens[few])
    metrics["undecodable_thoughts"] = undecodable(own.tokens, tokenizer)
    metrics["thought_leaks"] = leaks(thinker, windows.inputs[:1], seed)
    metrics["mean_thought_tokens"] = float((own.tokens != ENDED).sum(-1).double().mean())
    return Assessment(metrics, arms, gating, sample, own)


def _arms(
    thinker: Thinker,
    controls: Mapping[str, Thinker],
    windows: Windows,
    sample: Sample,
    own: Outcome,
    batch_size: int,
    seed: int,
) -> tuple[list[Arm], dict[str, float]]:
    hard = sample.only(sample.hard)
    mine = Outcome(*(getattr(own, name)[sample.hard] for name in Outcome.__slots__))
    arms = [
        Arm(
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
        arms.append(Arm(name, descriptions.get(name, name), gain_per_token(hard, outcome.gain())))
        metrics |= arms[-1].gain.metrics(f"thought_gain_{key}_hard")
        metrics |= gain_per_token(hard, mine.gain() - outcome.gain()).metrics(f"thought_over_{key}_hard")
    return arms, metrics


def _gating(
    thinker: Thinker,
    injector: ThoughtInjector,
    windows: Windows,
    sample: Sample,
    own: Outcome,
    batch_size: int,
    seed: int,
) -> list[Gating]:
    """Each rule over the whole text; `random` thinks at as many positions as the surprise rule, drawn at random."""
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
    """Gain on the first token of the answer, for tasks in the bank's form and in another: a model that has only
    memorised the form gains on the first alone."""
    reworded = [(task, other) for task in tasks if (other := paraphrase(task)) is not None]
    metrics: dict[str, float] = {}
    for name, chosen in (("task", [a for a, _ in reworded]), ("paraphrase", [b for _, b in reworded])):
        windows, sample = _questions(chosen, tokenizer, thinker.cognate.config.max_seq_len)
        outcome = measure_thoughts(thinker, windows, sample, batch_size, seed)
        metrics |= gain_per_token(sample, outcome.gain()).metrics(f"{name}_thought_gain")
    return metrics


def _questions(tasks: Sequence[Task], tokenizer: Tokenizer, max_seq_len: int) -> tuple[Windows, Sample]:
    """One window a task, with its last prompt token as the position to think at; too long prompts are left out.

    Raises:
        ValueError: when none is left.
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
    """Thoughts that are not text: an unknown or end-of-text id, something behind the end, or no text at all where
    there are tokens. Bytes of a character that was cut are text."""
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
    """Thought tokens, and logits with thoughts, that move in any bit when a token behind their position does."""
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
