"""Many texts at once from one model, in lockstep, each from its own position 0.

A row whose prompt is over draws its next token while longer ones are still being fed, so that nothing is padded and
every row sees exactly its own tokens. Something outside the model may put tokens into a row, as a tool does that
answers a call; the row goes on behind them.

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
from training_core.nn.streaming import read_ahead, take_rows
from training_core.text.generation import sample

ROWS_AT_ONCE = 128
KEPT_SHARE = 0.75  # of the rows that are still running: where it is no more, the others are left behind


class Interject(Protocol):
    """Asked after every drawn token of a row: which tokens come next without being drawn, often none."""

    def __call__(self, row: int, written: Sequence[int]) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """A continuation: its token ids, which of them the model drew itself, and those tokens' log-probabilities.

    `log_probs` are natural logarithms under the model itself, whatever the temperature and the nucleus they were drawn
    with; 0.0 for tokens that were put in. An end-of-text that was drawn belongs to the continuation.
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
    """Continue END_OF_TEXT + row for every row, in the order given.

    A continuation ends with an END_OF_TEXT that was drawn, or when it holds `max_tokens` tokens; what is put in counts,
    and is cut off there. `generator` must be on the CPU. The model's mode is left as it was.

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
    """One text on its way."""

    __slots__ = ("given", "ids", "log_probs", "number", "own")

    def __init__(self, number: int, ids: list[int]) -> None:
        self.number, self.ids, self.given = number, ids, len(ids)
        self.own: list[bool] = []
        self.log_probs: list[float] = []

    def take(self, token: int, log_prob: float, max_tokens: int, interject: Interject | None) -> bool:
        """Add a drawn token and what is put in behind it; whether the row goes on."""
        self.ids.append(token)
        self.own.append(True)
        self.log_probs.append(log_prob)
        if token == END_OF_TEXT_ID:
            return False
        if interject is not None:
            put_in = interject(self.number, self.ids[self.given :])
            self.ids += put_in
            self.own += [False] * len(put_in)
            self.log_probs += [0.0] * len(put_in)
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
    at_once = isinstance(model, Cognate)  # what only streams is fed token by token, every row to the end
    logits_RV, state = _begin(model, torch.tensor([row.ids[:position] for row in rows], device=device), at_once)
    while True:
        drawing = [index for index in sorted(running) if position == len(rows[index].ids)]
        if drawing:
            asked_RV = logits_RV[drawing].cpu()
            tokens = sample(asked_RV, temperature, top_p, generator)
            log_probs = asked_RV.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
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
        # rows that are over are fed END_OF_TEXT until they are left behind; no other row sees it
        tokens_R = [row.ids[position] if position < len(row.ids) else END_OF_TEXT_ID for row in rows]
        logits_RV = model.step(torch.tensor(tokens_R, device=device), state)
        position += 1


def _begin(model: Cognate, tokens_RP: Tensor, at_once: bool) -> tuple[Tensor, StreamState]:
    """Logits behind the beginning (rows, positions) that all rows have, and the state there."""
    if at_once:
        return read_ahead(model, tokens_RP)
    state = model.stream(len(tokens_RP))
    logits_RV = torch.zeros(0)
    for tokens_R in tokens_RP.T:
        logits_RV = model.step(tokens_R, state)
    return logits_RV, state
