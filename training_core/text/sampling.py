"""Batched sampling: rows advance in lockstep, each from its own position 0.

Rows with shorter prompts start decoding while longer prompts are still in prefill, so there is no padding and every row
sees exactly its own tokens. Tokens may also be inserted into a row from outside, such as a tool's reply to a call; the
row continues after them.

Shape legend: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate, StreamState
from training_core.nn.streaming import take_rows
from training_core.text.generation import sample

ROWS_AT_ONCE = 128
KEPT_SHARE = 0.75  # finished rows are dropped from the batch once at most this share is still running


class Interject(Protocol):
    """Called after every sampled token of a row; returns the tokens to insert next, usually none."""

    def __call__(self, row: int, written: Sequence[int]) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """A continuation: its token ids, which of them the model sampled itself, and their log-probabilities.

    `log_probs` are natural logarithms under the model itself, independent of the sampling temperature and nucleus; 0.0
    for inserted tokens. A sampled END_OF_TEXT is part of the continuation.
    """

    ids: tuple[int, ...]
    own: tuple[bool, ...]
    log_probs: tuple[float, ...]


@torch.no_grad()
def continue_rows(
    model: Cognate,
    rows: Sequence[Sequence[int]],
    max_tokens: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    interject: Interject | None = None,
) -> list[Drawn]:
    """Sample a continuation of END_OF_TEXT + row for every row, in the order given.

    A continuation ends with a sampled END_OF_TEXT or after `max_tokens` tokens; inserted tokens count, and are
    truncated there. `generator` must be on the CPU. The model's training mode is restored.

    Raises:
        ValueError: for no rows, fewer than one token, or as `generation.sample`.
    """
    if not rows or max_tokens < 1:
        raise ValueError(f"there must be rows to continue and at least one token, got {len(rows)} rows, {max_tokens}")
    was_training = model.training
    model.eval()
    drawn: list[Drawn] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = [_Row(start + i, [END_OF_TEXT_ID, *row]) for i, row in enumerate(rows[start : start + ROWS_AT_ONCE])]
        _advance(model, part, max_tokens, generator, temperature, top_p, interject)
        drawn += [row.drawn() for row in part]
    model.train(was_training)
    return drawn


class _Row:
    """A row in progress: prompt and continuation in `ids`, of which the first `given` are the prompt."""

    __slots__ = ("given", "ids", "log_probs", "number", "own")

    def __init__(self, number: int, ids: list[int]) -> None:
        self.number, self.ids, self.given = number, ids, len(ids)
        self.own: list[bool] = []
        self.log_probs: list[float] = []

    def take(self, token: int, log_prob: float, max_tokens: int, interject: Interject | None) -> bool:
        """Append a sampled token and the tokens inserted after it; return whether the row continues."""
        self.ids.append(token)
        self.own.append(True)
        self.log_probs.append(log_prob)
        if token == END_OF_TEXT_ID:
            return False
        if interject is not None:
            inserted = interject(self.number, self.ids[self.given :])
            self.ids += inserted
            self.own += [False] * len(inserted)
            self.log_probs += [0.0] * len(inserted)
        return len(self.own) < max_tokens

    def drawn(self) -> Drawn:
        return Drawn(tuple(self.ids[self.given :]), tuple(self.own), tuple(self.log_probs))

    def cut(self, max_tokens: int) -> None:
        del self.ids[self.given + max_tokens :], self.own[max_tokens:], self.log_probs[max_tokens:]


def _advance(
    model: Cognate,
    rows: Sequence[_Row],
    max_tokens: int,
    generator: torch.Generator,
    temperature: float,
    top_p: float,
    interject: Interject | None,
) -> None:
    device = next(model.parameters()).device
    running = set(range(len(rows)))
    position = min(len(row.ids) for row in rows)
    at_once = isinstance(model, Cognate)  # other streaming models have no parallel prefill and keep all rows
    logits_RV, state = _begin(model, torch.tensor([row.ids[:position] for row in rows], device=device), at_once)
    while True:
        drawing = [index for index in sorted(running) if position == len(rows[index].ids)]
        if drawing:
            next_RV = logits_RV[drawing].cpu()
            tokens = sample(next_RV, temperature, top_p, generator)
            log_probs = next_RV.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            for index, token, log_prob in zip(drawing, tokens.tolist(), log_probs.tolist(), strict=True):
                if not rows[index].take(token, log_prob, max_tokens, interject):
                    rows[index].cut(max_tokens)
                    running.remove(index)
        if not running:
            return
        if at_once and len(running) <= KEPT_SHARE * len(rows):
            kept = sorted(running)
            rows, state = [rows[index] for index in kept], take_rows(state, torch.tensor(kept, device=device))
            running = set(range(len(rows)))
        # Finished rows are fed END_OF_TEXT until they are dropped; no other row sees it.
        tokens_R = [row.ids[position] if position < len(row.ids) else END_OF_TEXT_ID for row in rows]
        logits_RV = model.step(torch.tensor(tokens_R, device=device), state)
        position += 1


def _begin(model: Cognate, tokens_RP: Tensor, at_once: bool) -> tuple[Tensor, StreamState]:
    """Prefill of tokens (rows, positions) up to the shortest prompt's length: the next token's logits and the state."""
    state = model.stream(len(tokens_RP))
    if at_once:
        return model.logits(model.read(tokens_RP, state).y[:, -1]), state
    logits_RV = torch.zeros(0)
    for tokens_R in tokens_RP.T:
        logits_RV = model.step(tokens_R, state)
    return logits_RV, state
