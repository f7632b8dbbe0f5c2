"""Streaming states as a whole: read the beginning of texts at once, and leave texts behind that are over."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from training_core.models.attention import append
from training_core.models.block import BlockState, LayerRecord
from training_core.models.cognate import Cognate, StreamState

StateT = TypeVar("StateT")


def read_ahead(model: Cognate, tokens_BS: Tensor) -> tuple[Tensor, StreamState]:
    """Feed tokens (batch, seq) in parallel: what `Cognate.step` would give after each of them in turn, the next token's
    logits (batch, vocab) and the state behind them. `answer` and `given` of the state come with the next step."""
    trace = model.trace(tokens_BS)
    limit = model.config.window - 1

    def cache(record: LayerRecord) -> BlockState:
        return BlockState(append(None, record.pair, limit), None if record.memory is None else record.memory.after)

    core = [[[cache(record).attention for record in layers] for layers in passes] for passes in trace.core]
    core += [core[-1]] * (model.config.num_supervision - len(core))
    used = trace.steps.amax(0).tolist()
    state = StreamState([cache(record) for record in trace.prelude], [_copied(part) for part in core], len(used), used)
    return model.logits(trace.y[:, -1]), state


def _copied(passes: list[list[Any]]) -> list[list[Any]]:
    """Lists of their own: streaming writes into them."""
    return [list(layers) for layers in passes]


def take_rows(state: StateT, rows: Tensor) -> StateT:
    """The same state of the rows (kept,) alone, in that order: every tensor in it has the batch as dimension 0."""
    taken: StateT = _take(state, rows)
    return taken


def _take(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(_take(each, rows) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _take(getattr(value, field.name), rows) for field in fields(value)})
    return value  # positions and counts are those of every row
