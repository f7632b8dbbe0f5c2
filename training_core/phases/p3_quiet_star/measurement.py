"""Measurement of the gain from thoughts: bits per token on held-out text, by position, with thoughts and without.

Positions are chosen without regard to the tokens that follow them: the hardest decile by the entropy of the *parent*
model, which this phase did not train, and a random sample of the rest. (Choosing them by the loss on the measured
tokens themselves would favour any changed model over the unchanged one, by regression to the mean.)

Shape legend: W windows, S sequence, P positions of a window (padded), N thoughts of a position.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training_core.evaluation.intervals import rate
from training_core.evaluation.windows import Windows
from training_core.nn.branching import Branches
from training_core.nn.cognate import Cognate
from training_core.phases.p3_quiet_star.injection import read_signals
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thinker
from training_core.record import Estimate

LN2 = math.log(2)
HARDEST = 0.1
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """The M positions to measure, in ascending order of windows.

    `window`, `position` and `document` are (M,) int64, `hard` (M,) bool; `weight` (M,) is the number of positions of
    the text that each one represents; `documents` is the number of documents in all windows.
    """

    window: Tensor
    position: Tensor
    document: Tensor
    hard: Tensor
    weight: Tensor
    documents: int

    def only(self, keep: Tensor) -> Sample:
        """Return the positions where `keep` (M,) is True."""
        window, position, document = self.window[keep], self.position[keep], self.document[keep]
        return Sample(window, position, document, self.hard[keep], self.weight[keep], self.documents)


@dataclass(frozen=True, slots=True)
class ThoughtOutcome:
    """Measurements at the M positions of a sample.

    `without` and `with_thoughts` (M,) are the losses on the next token in nats, and `alone` (M, N) the losses with
    each thought by itself; `score` (M, N) is coherence; `tokens` (M, N, L) are the thoughts.
    """

    without: Tensor
    with_thoughts: Tensor
    alone: Tensor
    score: Tensor
    tokens: Tensor

    def gain(self) -> Tensor:
        """Return the bits gained at each position, (M,) float64."""
        return (self.without - self.with_thoughts).double() / LN2


@torch.no_grad()
def choose_positions(parent: Cognate, windows: Windows, batch_size: int, seed: int) -> Sample:
    """Return the positions to measure, among those that have a next token.

    These are the hardest decile by the parent's entropy, and equally many random ones of the rest, weighted so that
    they represent all of the rest (stratified sampling).
    """
    entropies = []
    for start in range(0, windows.inputs.shape[0], batch_size):
        inputs = windows.inputs[start : start + batch_size].to(_device(parent))
        log_p = parent(inputs).logits.float().log_softmax(-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1).cpu())
    entropy = torch.cat(entropies).flatten()
    valid = (windows.targets >= 0).flatten().nonzero().squeeze(-1)
    order = valid[entropy[valid].argsort(descending=True)]
    count = max(1, int(HARDEST * len(order)))
    generator = torch.Generator().manual_seed(seed)
    others = order[count:][torch.randperm(len(order) - count, generator=generator)[:count]]
    strata = [order[:count], others]
    shares = [1.0, (len(order) - count) / max(1, len(others))]
    weight = torch.cat([torch.full((len(s),), w, dtype=torch.float64) for s, w in zip(strata, shares, strict=True)])
    is_hard = torch.arange(len(weight)) < len(strata[0])
    flat = torch.cat(strata)
    sort = flat.argsort()
    flat, length = flat[sort], windows.inputs.shape[1]
    document = windows.documents.flatten()[flat]
    return Sample(flat // length, flat % length, document, is_hard[sort], weight[sort], windows.num_documents)


@torch.no_grad()
def measure_thoughts(
    thinker: Thinker,
    windows: Windows,
    sample: Sample,
    batch_size: int,
    seed: int,
    given: Tensor | None = None,
    progress: Progress | None = None,
) -> ThoughtOutcome:
    """Think at every position of `sample` and measure the loss on the next token.

    `given` (M, N, L) replaces the tokens of the thoughts. The generator of each batch is seeded with `seed` and the
    index of its first window, so that measurements are reproducible.

    Raises:
        ValueError: when the sample is not ordered by window.
    """
    if bool((sample.window.diff() < 0).any()):
        raise ValueError("the positions of a sample must be ordered by window, as `choose_positions` returns them")
    thinker.eval()
    device = _device(thinker.cognate)
    total = windows.inputs.shape[0]
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, total, batch_size):
        inputs = windows.inputs[start : start + batch_size].to(device)
        inside = (sample.window >= start) & (sample.window < start + batch_size)
        if not bool(inside.any()):
            continue
        rows, at = sample.window[inside] - start, sample.position[inside]
        positions, slot = _pad(rows, at, inputs.shape[0])
        trace = thinker.cognate.trace(inputs)
        own = None if given is None else _place(given[inside], rows, slot, positions.shape).to(device)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        positions = positions.to(device)
        thoughts = thinker.think(trace, positions, generator, own)
        base = trace.y.gather(1, positions[..., None].expand(-1, -1, trace.y.shape[-1]))
        talk = thinker.talk(base, thoughts)
        targets = windows.targets[start : start + batch_size].gather(1, positions.cpu()).to(device).clamp_min(0)

        def nats(logits: Tensor, wanted: Tensor) -> Tensor:
            return -logits.float().log_softmax(-1).gather(-1, wanted[..., None]).squeeze(-1)

        measured = (
            nats(thinker.cognate.logits(base), targets),
            nats(talk.together, targets),
            nats(talk.alone, targets[..., None].expand(talk.alone.shape[:-1])),
            talk.score,
            thoughts.tokens,
        )
        parts.append(tuple(value[rows, slot].cpu() for value in measured))
        if progress is not None:
            progress(min(start + batch_size, total), total)
    return ThoughtOutcome(*(torch.cat(column) for column in zip(*parts, strict=True)))


def shuffled(tokens_MNL: Tensor, seed: int) -> Tensor:
    """Replace each position's thoughts by those of another position.

    The permutation is a random cycle over all positions, so that none keeps its own.

    Raises:
        ValueError: when there are fewer than two positions.
    """
    if tokens_MNL.shape[0] < 2:
        raise ValueError(
            f"{tokens_MNL.shape[0]} position has no other to take thoughts from: measure on 20 tokens of text or more"
        )
    order = torch.randperm(tokens_MNL.shape[0], generator=torch.Generator().manual_seed(seed))
    result = torch.empty_like(tokens_MNL)
    result[order] = tokens_MNL[order.roll(1)]
    return result


def gain_per_token(sample: Sample, gain_M: Tensor, chosen: Tensor | None = None) -> Estimate:
    """Return the weighted mean of `gain_M` over the sample, with a CI by bootstrap over documents.

    Positions that are not `chosen` count as 0. Only documents that contain a position of the sample are resampled.
    """
    keep = torch.ones_like(sample.weight) if chosen is None else chosen.double()
    total = _by_document(sample, gain_M.double() * keep * sample.weight)
    weight = _by_document(sample, sample.weight)
    present = weight > 0  # a resample of only documents without positions would divide by 0
    return rate(total[present], weight[present])


def correlation(x: Tensor, y: Tensor) -> float:
    """Return Pearson's correlation of two tensors of equal size, or 0 when one of them is constant."""
    x, y = x.double().flatten() - x.double().mean(), y.double().flatten() - y.double().mean()
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm > 0 else 0.0


@torch.no_grad()
def divergence_from_greedy(thinker: Thinker, windows: Windows, sample: Sample, tokens_MNL: Tensor) -> float:
    """Return the mean normalised Levenshtein distance of each position's first thought from the greedy continuation.

    The continuation starts from the same position and has the same length. The distance is 0 for a thought that only
    repeats what the model would have generated anyway.
    """
    model = thinker.cognate
    distances = []
    for number in range(len(sample.window)):
        inputs = windows.inputs[sample.window[number]][None].to(_device(model))
        thought = [t for t in tokens_MNL[number, 0].tolist() if t != ENDED]
        trace = model.trace(inputs[:, : int(sample.position[number]) + 1])
        branches = Branches.from_trace(model, trace, sample.position[number].view(1, 1).to(inputs.device))
        answer, greedy = trace.y[:, -1:], list[int]()
        while len(greedy) < len(thought):
            greedy.append(int(model.logits(answer).argmax()))
            answer = branches.feed(model.embed(torch.tensor([[greedy[-1]]], device=inputs.device)))
        if thought:
            distances.append(levenshtein(thought, greedy) / len(thought))
    return sum(distances) / max(1, len(distances))


def levenshtein(a: list[int], b: list[int]) -> int:
    """Return the fewest insertions, deletions and substitutions that turn `a` into `b` (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


@torch.no_grad()
def window_signals(model: Cognate, windows: Windows, batch_size: int) -> list[dict[str, Tensor]]:
    """Return the injector's signals over all windows, batch by batch; they are NaN in the padding after the text."""
    result = []
    for start in range(0, windows.inputs.shape[0], batch_size):
        inputs = windows.inputs[start : start + batch_size].to(_device(model))
        behind = (windows.targets[start : start + batch_size] < 0).to(inputs.device)
        signals = read_signals(model, model.trace(inputs), inputs)
        result.append({name: value.masked_fill(behind, float("nan")).cpu() for name, value in signals.items()})
    return result


@torch.no_grad()
def flops(thinker: Thinker, inputs_BS: Tensor) -> tuple[float, float]:
    """Return the floating-point operations per token of text and per thinking position, as counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    thinker = copy.deepcopy(thinker).requires_grad_(
        requires_grad=False
    )  # the counter's hooks fail on parameters that require grad
    batch, seq = inputs_BS.shape
    positions = torch.arange(0, seq, max(1, seq // 16), device=inputs_BS.device).expand(batch, -1)
    with FlopCounterMode(display=False) as plain:
        trace = thinker.cognate.trace(inputs_BS)
        thinker.cognate.logits(trace.y)
    with FlopCounterMode(display=False) as thinking:
        thoughts = thinker.think(trace, positions, torch.Generator().manual_seed(0))
        thinker.talk(trace.y.gather(1, positions[..., None].expand(-1, -1, trace.y.shape[-1])), thoughts)
    return plain.get_total_flops() / inputs_BS.numel(), thinking.get_total_flops() / positions.numel()


def first_windows(windows: Windows, count: int) -> Windows:
    """Return the first `count` windows and the documents that they contain."""
    documents = windows.documents[:count]
    last = int(documents.max()) + 1
    return Windows(windows.inputs[:count], windows.targets[:count], documents, windows.num_bytes[:last])


def _pad(rows: Tensor, at: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the positions of each row, (rows, most) padded with 0, and the column of each position in its row."""
    counts = torch.bincount(rows, minlength=num_rows)
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(rows)) - first[rows]
    positions = torch.zeros(num_rows, int(counts.max()), dtype=torch.long)
    positions[rows, slot] = at
    return positions, slot


def _place(given: Tensor, rows: Tensor, slot: Tensor, shape: torch.Size) -> Tensor:
    placed = torch.zeros(*shape, *given.shape[1:], dtype=given.dtype)
    placed[rows, slot] = given
    return placed


def _by_document(sample: Sample, values: Tensor) -> Tensor:
    return torch.zeros(sample.documents, dtype=torch.float64).index_add_(0, sample.document, values)


def _device(model: Cognate) -> torch.device:
    return model.embedding.weight.device
